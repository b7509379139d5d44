"""The solver against brute force, its promises of bytes and gap, and PowerInfer's own fixture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_placement import (
    STATED_RATES,
    bytes_of,
    every_placement,
    layer_problem,
    random_problem,
    seconds_of,
    smallest_unit,
)

from powerinfer_py.config import Sparsity
from powerinfer_py.gguf import open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement.candidates import candidates
from powerinfer_py.placement.problem import LayerProblem, Problem, captured_share, expected_seconds, placement_bytes
from powerinfer_py.placement.program import Program
from powerinfer_py.placement.sizes import model_sizes
from powerinfer_py.placement.solver import RELATIVE_GAP, solve, solve_by_frequency, solve_evenly
from powerinfer_py.placement.statistics.frequencies import read_frequencies

SOLVERS = (solve, solve_by_frequency, solve_evenly)


def brute_force(problem: Problem) -> float:
    fitting = [p for p in every_placement(problem) if bytes_of(problem, p) <= problem.budget_bytes]
    return min(seconds_of(problem, placement) for placement in fitting)


@pytest.mark.parametrize("seed", range(12))
def test_the_program_finds_what_brute_force_finds(seed: int) -> None:
    problem = random_problem(np.random.default_rng(seed), n_layer=3, n_ff=4)
    program = Program(problem, candidates(problem))
    found = program.run(program.every_option(), integral=True, gap=1e-9)
    best = brute_force(problem)
    assert found.bound_s == pytest.approx(best, rel=1e-5)
    bound = solve(problem).bound_s
    everything = solve(replace(problem, budget_bytes=10**9)).n_bytes
    assert (bound is None) == (everything <= problem.budget_bytes)
    assert bound is None or bound <= best * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_a_solution_is_as_fast_as_brute_force_where_the_gpu_is_the_faster_side(seed: int) -> None:
    problem = random_problem(np.random.default_rng(100 + seed), n_layer=3, n_ff=4)
    problem = replace(problem, rates=replace(STATED_RATES, synchronise_s=1e-10))
    solution = solve(problem)
    assert solution.seconds <= brute_force(problem) * (1 + 2 * RELATIVE_GAP)


@pytest.mark.parametrize("seed", range(40))
def test_what_a_split_layer_takes_besides_is_weighed(seed: int) -> None:
    """As fast as brute force within the solver's gap, whether or not layers are split then."""
    problem = random_problem(np.random.default_rng(400 + seed), n_layer=3, n_ff=4, split=True)
    problem = replace(problem, rates=replace(STATED_RATES, synchronise_s=1e-10))
    solution, best = solve(problem), brute_force(problem)
    assert bytes_of(problem, solution.placement) == solution.n_bytes <= problem.budget_bytes
    assert solution.seconds <= best * (1 + 2 * RELATIVE_GAP)
    assert solution.bound_s is None or solution.bound_s <= best * (1 + 1e-6)


def tie_of_blocks() -> list[LayerProblem]:
    return [layer_problem(np.ones(4), block=1000, row=10**6), layer_problem(np.ones(4), block=800, kv=400, row=10**6)]


@pytest.mark.parametrize("larger_first", [False, True])
def test_ties_go_to_more_bytes(larger_first: bool) -> None:
    """Two blocks that save the same time: 1,000 bytes, and 1,200, of which half of the keys and values is not read."""
    pair = tie_of_blocks()
    layers = tuple(reversed(pair)) if larger_first else tuple(pair)
    problem = Problem(layers, Sparsity.EXACT, replace(STATED_RATES, synchronise_s=0.0), 1200, head_bytes=10**6)
    times = {tuple(p.block_on_gpu for p in at.layers): seconds_of(problem, at) for at in every_placement(problem)}
    assert times[True, False] == pytest.approx(times[False, True], rel=1e-12)
    solution = solve(problem)
    assert solution.n_bytes == 1200
    assert [placed.block_on_gpu for placed in solution.placement.layers] == [larger_first, not larger_first]


def test_a_tie_of_the_head_and_a_block_goes_to_more_bytes() -> None:
    rates = replace(STATED_RATES, synchronise_s=0.0)
    small, large = tie_of_blocks()
    extra = Problem((small,), Sparsity.EXACT, rates, 1200, head_bytes=1000, head_extra_bytes=200)
    assert solve(extra).placement.head_on_gpu
    assert not solve(Problem((large,), Sparsity.EXACT, rates, 1200, head_bytes=1000)).placement.head_on_gpu


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_a_budget_is_kept_and_nothing_that_would_fit_is_left_out(solver: object, seed: int, split: bool) -> None:
    problem = random_problem(np.random.default_rng(200 + seed), n_layer=4, n_ff=9, split=split)
    solution = solver(problem)  # type: ignore[operator]
    n_bytes = bytes_of(problem, solution.placement)
    assert n_bytes == solution.n_bytes == placement_bytes(problem, solution.placement) <= problem.budget_bytes
    unit = smallest_unit(problem, solution.placement)
    assert unit is None or problem.budget_bytes - n_bytes < unit
    assert solution.seconds == pytest.approx(seconds_of(problem, solution.placement), rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_and_everything(solver: object) -> None:
    problem = random_problem(np.random.default_rng(1), n_layer=3, n_ff=6)
    nothing = solver(replace(problem, budget_bytes=0, head_bytes=1)).placement  # type: ignore[operator]
    assert (nothing.n_hot, nothing.head_on_gpu, [p.block_on_gpu for p in nothing.layers]) == (0, False, [False] * 3)
    everything = solver(replace(problem, budget_bytes=10**9)).placement  # type: ignore[operator]
    assert (everything.n_hot, everything.head_on_gpu) == (18, True)


def zipf_problem(n_layer: int, n_ff: int, share: float, mode: Sparsity, *, block: int = 2_000_000) -> Problem:
    """Layers of unequal sparsity, shuffled; the budget is a share of everything."""
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(n_layer):
        fired = np.minimum(1, rng.uniform(5, 100) * np.arange(1, n_ff + 1) ** -0.9 * rng.uniform(0.5, 1.5, n_ff))
        rng.shuffle(fired)
        layers.append(layer_problem(fired, block=block, row=4608))
    everything = sum(layer.sizes.block_bytes + layer.sizes.hot_bytes(n_ff) for layer in layers)
    rates = replace(STATED_RATES, synchronise_s=2e-5, layer_s=2e-5)
    return Problem(tuple(layers), mode, rates, int(share * everything), head_bytes=3_000_000)


@pytest.mark.parametrize(("mode", "share"), [(Sparsity.EXACT, 0.5), (Sparsity.DENSE, 0.3), (Sparsity.PREDICTOR, 0.1)])
def test_the_gap_is_small_and_proven_for_a_deep_model(mode: Sparsity, share: float) -> None:
    # Of the shape of a 70B model with everything a two hundredth, the cost of changing sides too.
    problem = zipf_problem(80, 128, share, mode, block=400_000)
    problem = replace(problem, rates=STATED_RATES)
    solution = solve(problem)
    assert solution.bound_s is not None
    assert solution.seconds >= solution.bound_s * (1 - 1e-9)
    assert solution.gap <= 1e-3
    assert solution.gap == pytest.approx(1 - solution.bound_s / solution.seconds, abs=1e-9)
    assert solution.solve_s < 60
    assert problem.budget_bytes - solution.n_bytes <= 0.03 * problem.budget_bytes


def test_the_solver_beats_frequencies_where_the_sides_have_to_be_balanced() -> None:
    problem = zipf_problem(6, 256, 0.7, Sparsity.PREDICTOR)
    problem = replace(problem, rates=replace(STATED_RATES, gpu_bytes_per_s=2.5e10))
    milp, frequency = solve(problem), solve_by_frequency(problem)
    assert milp.seconds < frequency.seconds
    assert captured_share(problem, frequency.placement) >= captured_share(problem, milp.placement) - 1e-9


@pytest.mark.parametrize("solver", SOLVERS)
def test_neurons_that_cannot_be_parted_come_in_whole_groups(solver: object) -> None:
    layers = tuple(layer_problem(np.ones(128), unit=32, block=3000) for _ in range(2))
    for budget in range(20_000, 420_000, 90_000):
        solution = solver(Problem(layers, Sparsity.DENSE, STATED_RATES, budget))  # type: ignore[operator]
        for placed in solution.placement.layers:
            groups = np.unique(placed.hot // 32)
            assert placed.hot.tolist() == [g * 32 + i for g in groups.tolist() for i in range(32)]
        unit = smallest_unit(Problem(layers, Sparsity.DENSE, STATED_RATES, budget), solution.placement)
        assert unit is None or budget - solution.n_bytes < unit


def test_without_statistics_every_layer_has_as_many() -> None:
    layers = tuple(layer_problem(np.full(500, 0.1)) for _ in range(6))
    solution = solve_evenly(Problem(layers, Sparsity.EXACT, STATED_RATES, 6 * 1000 + 6 * 3 * 512 * 123))
    assert {placed.hot.size for placed in solution.placement.layers} == {123}


def test_a_limit_of_neurons_is_reached(fixtures: Path) -> None:
    problem = fixture_problem(fixtures, neuron_limit=1000)
    problem = replace(problem, layers=problem.layers[:2])
    for solver in SOLVERS:
        assert solver(problem).placement.n_hot == 1000


def fixture_problem(fixtures: Path, **limits: int) -> Problem:
    with open_gguf(fixtures / "relu-llama.powerinfer.gguf") as file:
        config = read_config(file)
        sizes = model_sizes(file, config, sparsity=Sparsity.PREDICTOR, n_ctx=128)
    fired = read_frequencies(fixtures / "relu-llama-activation", config).fired
    layers = tuple(LayerProblem(layer, row) for layer, row in zip(sizes.layers, fired, strict=True))
    return Problem(layers, Sparsity.PREDICTOR, STATED_RATES, 10**12, blocks_given=True, **limits)  # type: ignore[arg-type]


def test_three_eighths_of_the_neurons_capture_what_they_can(fixtures: Path) -> None:
    problem = fixture_problem(fixtures, neuron_limit=12 * 1024 * 3 // 8)
    solution = solve_by_frequency(problem)
    fired = np.concatenate([layer.fired for layer in problem.layers])
    ideal = np.sort(fired)[::-1][: fired.size * 3 // 8].sum() / fired.sum()
    captured = captured_share(problem, solution.placement)
    assert captured >= 0.960
    assert captured == pytest.approx(ideal, abs=1e-12)


def test_time_of_a_placement_counts_predictions_apart_from_firing() -> None:
    layer = layer_problem(np.array([0.5, 0.25]), block=1000, row=100, rows=3)
    layer = replace(layer, predicted=np.array([0.75, 0.125]))
    assert layer.work(Sparsity.PREDICTOR).tolist() == [75 + 100, 12.5 + 25]
    assert layer.work(Sparsity.EXACT).tolist() == [100 + 100, 100 + 50]
    assert layer.work(Sparsity.DENSE).tolist() == [300, 300]


def test_expected_time_agrees_with_its_description() -> None:
    rng = np.random.default_rng(7)
    for _ in range(20):
        problem = random_problem(rng, n_layer=3, n_ff=3)
        placements = list(every_placement(problem))
        for index in rng.integers(0, len(placements), 20):
            placement = placements[int(index)]
            assert expected_seconds(problem, placement) == pytest.approx(seconds_of(problem, placement), rel=1e-12)
