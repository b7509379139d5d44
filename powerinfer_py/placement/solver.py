"""Which blocks and neurons go on the GPU: the least expected time of a token under a budget.

A layer is either on the CPU, or has its block and some number of its most valuable neurons on the GPU; one option is
chosen a layer, under one budget. The maximum of two sides plus a jump where the last neuron leaves the CPU makes the
time of a layer no convex function of that number, so the options are binary: the linear relaxation is solved first,
then the binary problem over the options near its support. The relaxation bounds what any choice can reach, which gives
the gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from powerinfer_py.placement.candidates import candidates
from powerinfer_py.placement.choice import Choice
from powerinfer_py.placement.placement import Placement
from powerinfer_py.placement.problem import Floats, Integers, Problem, expected_seconds, placement_bytes
from powerinfer_py.placement.program import Program

TIME_LIMIT_S = 2.5
# Two options a layer.
UNSPLIT_LIMIT_S = 0.3
# Where the binary problem is small enough to be solved whole, in some 10 ms.
TIES_LIMIT_S = 0.25
# The solver stops here; what is promised is 0.1 %.
RELATIVE_GAP = 2e-4
PROMISED_GAP = 1e-3


@dataclass(frozen=True, eq=False)
class Solution:
    """placement: after filling. seconds: its expected time of a token. n_bytes: of the budget. bound_s: no placement in
    the solver's groups is faster; None where nothing was minimised, as where everything fits. gap: share of `seconds`
    by which the placement may miss the bound.
    """

    placement: Placement
    seconds: float
    n_bytes: int
    bound_s: float | None
    gap: float
    solve_s: float


def solve(problem: Problem) -> Solution:
    """The fastest placement in groups of neurons, then filled up to single ones."""
    started = perf_counter()
    tables = candidates(problem)
    everything = Choice.everything(problem, tables)
    if everything.fits:
        return _solution(everything, None, 0.0, started)
    program = Program(problem, tables)
    bound, relaxed = _relaxation(program)
    every = program.every_option()
    choices = [choice for x in relaxed for choice in program.choices(every, x)]
    whole_bound = np.inf
    if problem.split_budget_bytes:
        whole_bound, whole_choices = _unsplit(program)
        choices += whole_choices
    best = _fastest(choices)
    left_s = TIME_LIMIT_S - (perf_counter() - started)
    gap = _gap(best, min(bound, whole_bound))
    if gap > RELATIVE_GAP and (left_s > 0 or gap > PROMISED_GAP):
        columns = every if program.is_small else program.near_support(relaxed)
        found = program.run(columns, integral=True, gap=RELATIVE_GAP, limit_s=max(left_s, 0.5))
        if program.is_small:
            bound = max(bound, found.bound_s)
        if found.x is not None:
            best = _fastest([best, *program.choices(columns, found.x)])
    if program.is_small and best.n_bytes < problem.budget_bytes:
        best = _fastest([best, *_ties(program, best.total_seconds)])
    bound = min(bound, whole_bound)
    return _solution(best, bound, _gap(best, bound), started)


def _unsplit(program: Program) -> tuple[float, list[Choice]]:
    """(bound, choices) where no layer is split, whose budget is larger: nothing has to arrive from the other side."""
    columns = program.whole_options()
    found = program.run(columns, integral=True, gap=RELATIVE_GAP, limit_s=UNSPLIT_LIMIT_S, split=False)
    return found.bound_s, [] if found.x is None else program.choices(columns, found.x)


def _fastest(choices: list[Choice]) -> Choice:
    """The fastest; of equal ones the one that uses more bytes, and then the first layers."""

    def key(choice: Choice) -> tuple[float, int, list[bool]]:
        # Sums of the same terms in another order are equal to some 15 digits.
        return float(f"{choice.total_seconds:.11e}"), -choice.n_bytes, [not block for block in choice.blocks]

    return min(choices, key=key)


def _ties(program: Program, seconds: float) -> list[Choice]:
    """Choices of most bytes that take no longer, to HiGHS' tolerance; split layers and none apart."""
    found = []
    kinds = ((program.every_option(), True), (program.whole_options(), False))
    for columns, split in kinds if program.problem.split_budget_bytes else kinds[:1]:
        x = program.most_bytes(columns, seconds, split=split, limit_s=TIES_LIMIT_S)
        found += [] if x is None else program.choices(columns, x)
    return found


def _gap(choice: Choice, bound: float) -> float:
    return min(1.0, max(0.0, 1.0 - bound / choice.total_seconds))


def _relaxation(program: Program) -> tuple[float, list[Floats]]:
    """(bound on any choice, solutions of the linear relaxation).

    A model has a whole number of blocks on the GPU: where the relaxation has a part of one, each of the two whole
    numbers beside it is relaxed on its own, and the better one is the bound. A block is a hundredth of all time, which
    is what the bound would miss by.
    """
    whole = program.run(program.every_option(), integral=False)
    if whole.x is None:
        raise AssertionError("putting nothing on the GPU is always possible")
    n_blocks = program.blocks_of(whole.x)
    if abs(n_blocks - round(n_blocks)) < 1e-6:
        return whole.bound_s, [whole.x]
    parts = [
        program.run(program.every_option(), integral=False, blocks=limits)
        for limits in ((0, int(n_blocks)), (int(n_blocks) + 1, len(program.problem.layers)))
    ]
    solutions = [part.x for part in parts if part.x is not None]
    return min(part.bound_s for part in parts), solutions


def solve_by_frequency(problem: Problem) -> Solution:
    """The most frequent neurons of all layers first, after the blocks and the head; no time is minimised."""
    started = perf_counter()
    tables = candidates(problem, by_frequency=True)
    if (everything := Choice.everything(problem, tables)).fits:
        return _solution(everything, None, 0.0, started)
    choice = Choice.nothing(problem, tables)
    choice.fill_blocks()
    on_gpu = [layer for layer, block in enumerate(choice.blocks) if block]
    owner = np.concatenate([np.full(tables[i].n_neurons, i) for i in on_gpu] or [np.zeros(0, np.int64)])
    value = np.concatenate([problem.layers[i].fired[tables[i].order] for i in on_gpu] or [np.zeros(0)])
    owner = owner[np.argsort(-value, kind="stable")]
    fits, too_many = 0, owner.size + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        _count(choice, owner[:middle])
        fits, too_many = (middle, too_many) if choice.fits else (fits, middle)
    _count(choice, owner[:fits])
    choice.fill()
    return _solution(choice, None, 0.0, started)


def solve_evenly(problem: Problem) -> Solution:
    """As many neurons of every layer as fit, the same number in each: what is left where no statistics exist."""
    started = perf_counter()
    tables = candidates(problem)
    if (everything := Choice.everything(problem, tables)).fits:
        return _solution(everything, None, 0.0, started)
    choice = Choice.nothing(problem, tables)
    choice.fill_blocks()
    unit = max(table.unit for table in tables)
    fits, too_many = 0, min(table.n_neurons for table in tables) // unit + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        choice.counts = [middle * unit if block else 0 for block in choice.blocks]
        fits, too_many = (middle, too_many) if choice.fits else (fits, middle)
    choice.counts = [fits * unit if block else 0 for block in choice.blocks]
    # Whatever is left is less than a neuron of every layer.
    choice.fill()
    return _solution(choice, None, 0.0, started)


def _solution(choice: Choice, bound: float | None, gap: float, started: float) -> Solution:
    placement = choice.placement()
    problem = choice.problem
    n_bytes = placement_bytes(problem, placement)
    if n_bytes > problem.budget_bytes and not problem.blocks_given:
        raise AssertionError(f"a placement of {n_bytes} bytes for a budget of {problem.budget_bytes}")
    return Solution(placement, expected_seconds(problem, placement), n_bytes, bound, gap, perf_counter() - started)


def _count(choice: Choice, owner: Integers) -> None:
    counts = np.bincount(owner, minlength=len(choice.counts))
    choice.counts = [int(n) // table.unit * table.unit for n, table in zip(counts, choice.tables, strict=True)]
