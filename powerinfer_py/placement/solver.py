"""Which blocks and neurons go on the GPU: the least expected time of a token under a budget.

A layer is either on the CPU, or has its block and some number of its most valuable neurons on the GPU; one option is
chosen a layer, under one budget. The maximum of two sides plus a jump where the last neuron leaves the CPU makes the
time of a layer no convex function of that number, so the options are binary. A relaxation bounds what any choice can
reach, which gives the gap, and brackets the best choice. What is rounded from it is mostly within the gap; else the
binary problem over the options near it is solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from powerinfer_py.placement.candidates import candidates
from powerinfer_py.placement.choice import Choice
from powerinfer_py.placement.options import ON_CPU, Options, whole_places
from powerinfer_py.placement.placement import Placement
from powerinfer_py.placement.problem import Integers, Problem, expected_seconds, placement_bytes
from powerinfer_py.placement.program import Program
from powerinfer_py.placement.relaxation import Bounds, Bracket, Limit, Relaxation

# HiGHS gets what is left of this, where it has to be asked about a large problem; what is promised is 3 s.
TIME_LIMIT_S = 1.5
# Two options a layer.
UNSPLIT_LIMIT_S = 0.3
# Where the binary problem is small enough to be solved whole, in some 10 ms.
TIES_LIMIT_S = 0.25
# A small problem is solved to this gap. A large one is left alone at half of what is promised: the relaxation's choices
# are there in a tenth of the time and do not depend on how busy the machine is.
RELATIVE_GAP = 2e-4
LARGE_GAP = 5e-4
# Numbers of blocks, the most promising first, whose choices are tried.
TRIED = 4


@dataclass(frozen=True, eq=False)
class Solution:
    """placement: after filling. seconds: its expected time of a token. n_bytes: of the budget. bound_s: no placement in
    the solver's groups is faster; None where nothing was minimised, as where everything fits. gap: share of `seconds`
    by which the placement may miss the fastest one in these groups that, as it does, leaves nothing out that would fit.
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
    split, whole = _bounds(program, split=True), _bounds(program, split=False)
    any_s, filled_s = min(split.any_s, whole.any_s), min(split.filled_s, whole.filled_s)
    brackets = [*split.brackets[:TRIED], *whole.brackets[:TRIED]]
    best = _fastest([choice for bracket in brackets for choice in _rounded(program, bracket)])
    if _gap(best, filled_s) > (RELATIVE_GAP if program.is_small else LARGE_GAP):
        left_s = TIME_LIMIT_S - (perf_counter() - started)
        bound_s, choices = _binary(program, split.brackets[:TRIED], max(left_s, 0.5))
        best = _fastest([best, *choices])
        any_s = max(any_s, bound_s)
        filled_s = max(filled_s, any_s)
    if program.is_small and best.n_bytes < problem.budget_bytes:
        best = _fastest([best, *_ties(program, best.total_seconds)])
    return _solution(best, any_s, _gap(best, filled_s), started)


def _bounds(program: Program, *, split: bool) -> Bounds:
    """What the relaxation says where layers may be split, or of the larger budget where none is."""
    problem = program.problem
    if not split and problem.blocks_given:
        # Then everything is on the GPU, which does not fit.
        return Bounds(np.inf, np.inf, [])
    options = program.options
    if not split:
        options = [
            option.at(whole_places(option, table.n_neurons))
            for option, table in zip(options, program.tables, strict=True)
        ]
    limit = problem.neuron_limit
    if limit is not None:
        options = [option.at(np.flatnonzero(option.counts <= limit)) for option in options]
    bounds = Relaxation(problem, options, _limit(program, options, split=split)).bounds()
    if limit is not None and 0 < limit < problem.n_neurons and not _all_bytes_fit(program):
        # Both limits may bind, and a price is put on one of them.
        columns = program.every_option() if split else program.whole_options()
        bound_s = program.run(columns, integral=False, split=split).bound_s
        bounds = Bounds(max(bounds.any_s, bound_s), max(bounds.filled_s, bound_s), bounds.brackets)
    return bounds


def _limit(program: Program, options: Sequence[Options], *, split: bool) -> Limit:
    """Of neurons where they are the scarcer thing, else of bytes."""
    problem, tables = program.problem, program.tables
    limit = problem.neuron_limit
    everything = Choice.everything(problem, tables).n_bytes
    if limit is not None and (
        _all_bytes_fit(program) or 0 < limit / problem.n_neurons < problem.budget_bytes / everything
    ):
        unit = max(table.unit for table in tables)
        # Otherwise the next neuron would be allowed.
        is_filled = problem.blocks_given and limit < problem.n_neurons and _all_bytes_fit(program)
        least = limit - unit + 1 if is_filled else None
        return Limit([np.maximum(option.counts, 0) for option in options], 0, limit, least)
    head = problem.head_budget_bytes
    if split:
        most = max(0, problem.budget_bytes - problem.split_budget_bytes)
        # Otherwise the next neuron of a layer that is split would fit.
        missing = max(table.layer.sizes.hot_bytes(table.unit) for table in tables)
    else:
        most = problem.budget_bytes
        # Otherwise the block that is left out would fit, or the head.
        blocks = [problem.block_bytes(layer) for layer in range(len(tables))]
        missing = max(max(blocks) + problem.split_budget_bytes, head)
    return Limit([option.n_bytes for option in options], head, most, most - missing if limit is None else None)


def _all_bytes_fit(program: Program) -> bool:
    problem = program.problem
    everything = Choice.everything(problem, program.tables).n_bytes
    return everything + problem.split_budget_bytes <= problem.budget_bytes


def _rounded(program: Program, bracket: Bracket) -> list[Choice]:
    """The choices of a bracket, each brought towards the other as far as the limits allow, nothing left unused."""
    choices = []
    ends = (bracket.below, bracket.above)
    for base, other in (ends, ends[::-1]) if bracket.below is not bracket.above else (ends,):
        blocks = base.counts != ON_CPU
        both = blocks & (other.counts != ON_CPU)
        own = np.maximum(base.counts, 0)
        low = np.where(both, np.minimum(own, other.counts), own)
        high = np.where(both, np.maximum(own, other.counts), own)
        choice = Choice(program.problem, program.tables, blocks.tolist(), low.tolist(), base.head)
        choice.shrink()
        choice.grow(high.tolist())
        choice.fill()
        choices.append(choice)
    return choices


def _binary(program: Program, brackets: Sequence[Bracket], limit_s: float) -> tuple[float, list[Choice]]:
    """(bound, choices) of the binary problem over all options where they are few, else over those near brackets, with
    no bound. Where no layer is split the budget is larger: nothing has to arrive from the other side."""
    near = [path.counts for bracket in brackets for path in (bracket.below, bracket.above)]
    kinds = [(program.every_option() if program.is_small else program.near(near), True, limit_s)]
    if program.problem.split_budget_bytes:
        kinds.append((program.whole_options(), False, UNSPLIT_LIMIT_S))
    bound, choices = np.inf, []
    for columns, split, seconds in kinds:
        found = program.run(columns, integral=True, gap=RELATIVE_GAP, limit_s=seconds, split=split)
        bound = min(bound, found.bound_s)
        choices += [] if found.x is None else [program.choice(columns, found.x)]
    return bound if program.is_small else -np.inf, choices


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
        found += [] if x is None else [program.choice(columns, x)]
    return found


def _gap(choice: Choice, bound: float) -> float:
    return min(1.0, max(0.0, 1.0 - bound / choice.total_seconds))


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
