"""The relaxation's bounds against HiGHS and brute force, and how little work a large problem takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers_placement import (
    STATED_RATES,
    bytes_of,
    every_placement,
    fills,
    layer_problem,
    random_problem,
    seconds_of,
)

from powerinfer_py.config import Sparsity
from powerinfer_py.placement.candidates import candidates
from powerinfer_py.placement.options import ON_CPU
from powerinfer_py.placement.problem import Problem
from powerinfer_py.placement.program import Program
from powerinfer_py.placement.relaxation import Bounds, Limit, Relaxation
from powerinfer_py.placement.solver import LARGE_GAP, Solution, solve


def test_bytes_of_many_counts_are_those_of_each() -> None:
    table = candidates(random_problem(np.random.default_rng(3), n_layer=1, n_ff=40))[0]
    table = replace(table, layer=replace(table.layer, sizes=replace(table.layer.sizes, neuron_row_bytes=(18, 4, 256))))
    counts = table.group_counts()
    assert table.hot_bytes(counts).tolist() == [table.layer.sizes.hot_bytes(count) for count in counts.tolist()]


def bounds_of(problem: Problem, least: int | None = None) -> tuple[Program, Bounds]:
    program = Program(problem, candidates(problem))
    weights = [option.n_bytes for option in program.options]
    limit = Limit(weights, problem.head_budget_bytes, problem.budget_bytes, least)
    return program, Relaxation(problem, program.options, limit).bounds()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("given", [False, True])
def test_a_bound_lies_between_the_linear_relaxation_and_the_best_choice(seed: int, given: bool) -> None:
    problem = replace(random_problem(np.random.default_rng(600 + seed), n_layer=5, n_ff=6), blocks_given=given)
    program, bounds = bounds_of(problem)
    columns = program.every_option()
    linear = program.run(columns, integral=False).bound_s
    binary = program.run(columns, integral=True, gap=1e-9).bound_s
    assert linear * (1 - 1e-6) <= bounds.any_s <= binary * (1 + 1e-6)
    # Without a least use there is nothing that would tell the two apart.
    assert bounds.filled_s == bounds.any_s


@pytest.mark.parametrize("seed", range(12))
def test_the_ends_of_a_bracket_are_choices_on_either_side_of_the_limit(seed: int) -> None:
    problem = random_problem(np.random.default_rng(700 + seed), n_layer=4, n_ff=8)
    program, bounds = bounds_of(problem)
    for bracket in bounds.brackets:
        assert bracket.below.weight <= problem.budget_bytes
        assert bracket.below is bracket.above or bracket.above.weight > problem.budget_bytes
        for path in (bracket.below, bracket.above):
            places = [
                int(np.flatnonzero(option.counts == count)[0])
                for option, count in zip(program.options, path.counts, strict=True)
            ]
            n_bytes = sum(int(option.n_bytes[at]) for option, at in zip(program.options, places, strict=True))
            assert path.weight == n_bytes + path.head * problem.head_budget_bytes
            assert {bool(count != ON_CPU) for count in path.counts} <= {False, True}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_gap_is_that_to_the_best_choice_that_leaves_nothing_out(seed: int, split: bool) -> None:
    """Whichever side is the faster one."""
    problem = random_problem(np.random.default_rng(800 + seed), n_layer=3, n_ff=4, split=split)
    placements = (p for p in every_placement(problem) if bytes_of(problem, p) <= problem.budget_bytes)
    best = min(seconds_of(problem, placement) for placement in placements if fills(problem, placement))
    solution = solve(problem)
    assert solution.seconds * (1 - solution.gap) <= best * (1 + 1e-6)


def deep_problem(share: float, mode: Sparsity, exponent: float, *, given: bool) -> Problem:
    """80 layers of 28,672 neurons as Q4_0 stores those of a 70B model; the budget is a share of the neurons' bytes."""
    rng = np.random.default_rng(0)
    ranks = np.arange(1, 28673)
    layers = []
    for _ in range(80):
        fired = ranks**-exponent * rng.uniform(0.7, 1.3, ranks.size)
        layers.append(layer_problem(np.minimum(1, fired / fired.mean() * rng.uniform(0.03, 0.2)), row=4608))
    sizes = replace(layers[0].sizes, dense_bytes=85_000_000, kv_bytes=16 << 20)
    sizes = replace(sizes, predictor_bytes=21_000_000 if mode is Sparsity.PREDICTOR else 0)
    rates = replace(STATED_RATES, gpu_bytes_per_s=2.88e11, cpu_bytes_per_s=4e10, synchronise_s=2e-5, layer_s=2e-5)
    budget = int(share * 80 * sizes.hot_bytes(ranks.size))
    return Problem(
        tuple(replace(layer, sizes=sizes) for layer in layers),
        mode,
        rates,
        budget,
        head_bytes=147_000_000,
        blocks_given=given,
        split_bytes=0 if given else 40_000_000,
    )


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("mode", "exponent"), [(Sparsity.EXACT, 0.75), (Sparsity.PREDICTOR, 0.75), (Sparsity.DENSE, 0.0)]
)
def test_a_large_problem_needs_no_binary_program(
    mode: Sparsity, exponent: float, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what would take seconds; so the answer does not depend on how busy the machine is."""
    prices: list[float] = []
    price_of = Relaxation._price

    def priced(self: Relaxation, price: float) -> object:
        prices.append(price)
        return price_of(self, price)

    monkeypatch.setattr(Relaxation, "_price", priced)
    monkeypatch.setattr(Program, "_solve", lambda *_: pytest.fail("HiGHS was asked"))
    problem = deep_problem(0.15, mode, exponent, given=given)
    everything = problem.budget_bytes / 0.15
    for share in (0.15, 0.95):
        prices.clear()
        solution: Solution = solve(replace(problem, budget_bytes=int(share * everything)))
        assert solution.gap <= LARGE_GAP
        assert solution.n_bytes >= 0.99 * share * everything
        assert len(prices) <= 250


@pytest.mark.parametrize("n_blocks", [1, 8, 40])
def test_a_budget_that_blocks_fill_to_the_byte_keeps_the_bound_below_the_best(n_blocks: int) -> None:
    """A byte's price is then so dear that it leaves little of the seconds in a sum."""
    problem = deep_problem(0.1, Sparsity.PREDICTOR, 0.75, given=False)
    full = problem.head_budget_bytes + n_blocks * problem.block_bytes(0) + problem.split_bytes
    solution = solve(replace(problem, budget_bytes=full))
    assert solution.bound_s is not None
    assert solution.bound_s <= solution.seconds
