"""The placement as a linear program with binary options, for HiGHS through `scipy.optimize.milp`.

Columns: of each layer the options that take part (its block on the CPU, or on the GPU with so many hot neurons), the
head, and for each place along the layers whether the token changes sides there. Rows: one option a layer, bytes,
neurons where they are limited. Times are exact; bytes are exact, to the rounding of each
allocation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from powerinfer_py.placement.candidates import Candidates
from powerinfer_py.placement.choice import Choice
from powerinfer_py.placement.options import ON_CPU, layer_options, whole_places
from powerinfer_py.placement.problem import Floats, Integers, Problem

# Up to so many options the binary problem is solved whole.
SMALL = 2500
# Groups on either side of what the relaxation takes, and steps of a coarse grid over all groups: one layer takes what
# whole steps of the others leave.
WINDOW = 6
GRID = 16
# Relaxations are cut off only where something is wrong.
RELAXATION_LIMIT_S = 60.0


@dataclass(frozen=True, eq=False)
class Found:
    """x: values of the columns, None where there are none. bound_s: seconds that no choice of these columns beats."""

    x: Floats | None
    bound_s: float


class _Rows:
    """Rows of a constraint matrix under construction."""

    def __init__(self) -> None:
        self.rows: list[Integers] = []
        self.columns: list[Integers] = []
        self.values: list[Floats] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, low: float, high: float, *terms: tuple[Any, Any]) -> None:
        """low <= sum over terms of (columns, values) <= high."""
        for at, value in terms:
            columns = np.atleast_1d(np.asarray(at, np.int64))
            self.rows.append(np.full(columns.size, len(self.low)))
            self.columns.append(columns)
            self.values.append(np.broadcast_to(np.asarray(value, np.float64), columns.shape))
        self.low.append(low)
        self.high.append(high)

    def matrix(self, n_columns: int) -> Any:
        """As scipy's sparse matrix."""
        from scipy.sparse import csr_array

        places = (np.concatenate(self.rows), np.concatenate(self.columns))
        return csr_array((np.concatenate(self.values), places), shape=(len(self.low), n_columns))


class Program:
    """The program of one problem. Which options take part is given to each run, as indices a layer."""

    def __init__(self, problem: Problem, tables: list[Candidates]) -> None:
        self.problem = problem
        self.tables = tables
        self.options = [layer_options(problem, layer, table) for layer, table in enumerate(tables)]
        # Time in units of the slowest choice: HiGHS compares with absolute tolerances of 1e-7.
        self._unit_s = max(sum(float(option.seconds.max()) for option in self.options), 1e-30)

    @property
    def is_small(self) -> bool:
        """Whether the binary problem can be solved over all options."""
        return sum(option.counts.size for option in self.options) <= SMALL

    def every_option(self) -> list[Integers]:
        """All options of every layer."""
        return [np.arange(option.counts.size) for option in self.options]

    def near(self, chosen: Sequence[Integers]) -> list[Integers]:
        """Of each layer the options near those of these choices (hot neurons of each layer), and a coarse grid."""
        result = []
        for layer, option in enumerate(self.options):
            last = int(np.flatnonzero(option.counts != ON_CPU)[-1])
            wanted = {*range(last + 1, option.counts.size), *np.linspace(0, last, GRID + 1).astype(int).tolist()}
            for counts in chosen:
                place = int(np.searchsorted(option.counts[: last + 1], counts[layer]))
                if counts[layer] != ON_CPU:
                    wanted |= set(range(max(0, place - WINDOW), min(last, place + WINDOW) + 1))
            result.append(np.array(sorted(wanted), np.int64))
        return result

    def whole_options(self) -> list[Integers]:
        """Those of every layer with which it is not split."""
        return [whole_places(option, table.n_neurons) for option, table in zip(self.options, self.tables, strict=True)]

    def choice(self, columns: Sequence[Integers], x: Floats) -> Choice:
        """What a binary solution means, within the limits and with nothing left unused."""
        blocks, counts, start = [], [], 0
        for option, at in zip(self.options, columns, strict=True):
            count = int(option.counts[at[int(np.argmax(x[start : start + at.size]))]])
            start += at.size
            blocks.append(count != ON_CPU)
            counts.append(max(count, 0))
        head = self.problem.blocks_given or bool(x[start] > 0.5)
        choice = Choice(self.problem, self.tables, blocks, counts, head)
        # HiGHS keeps its constraints to a relative 1e-7 only.
        choice.shrink()
        choice.fill()
        return choice

    def run(
        self,
        columns: Sequence[Integers],
        *,
        integral: bool,
        gap: float = 0.0,
        limit_s: float = RELAXATION_LIMIT_S,
        split: bool = True,
    ) -> Found:
        """The least time over these options. integral: else the linear relaxation. split: whether layers may be."""
        cost, n_sides = self._seconds(columns)
        rows = self._rows(columns, n_sides, split)
        result = self._solve(columns, cost / self._unit_s, rows, integral, gap, limit_s)
        if result.status == 2:
            return Found(None, np.inf)
        bound = result.mip_dual_bound if integral else result.fun
        return Found(result.x, -np.inf if bound is None else float(bound) * self._unit_s + self._constant_s)

    def most_bytes(self, columns: Sequence[Integers], within_s: float, *, split: bool, limit_s: float) -> Floats | None:
        """The choice of these options that uses most bytes of those that take a token at most so long."""
        cost, n_sides = self._seconds(columns)
        rows = self._rows(columns, n_sides, split)
        allowed = (within_s - self._constant_s) / self._unit_s
        rows.add(-np.inf, allowed, (np.arange(cost.size), cost / self._unit_s))
        n_bytes = np.zeros(cost.size)
        of_options = [option.n_bytes[at] for option, at in zip(self.options, columns, strict=True)]
        n_options = sum(part.size for part in of_options)
        n_bytes[:n_options] = np.concatenate(of_options)
        n_bytes[n_options] = self.problem.head_budget_bytes
        result = self._solve(columns, -n_bytes / max(self.problem.budget_bytes, 1), rows, True, 0.0, limit_s)
        x: Floats | None = result.x
        return x

    @property
    def _constant_s(self) -> float:
        """Seconds that no column has: the head on the CPU, and where all blocks are given the way there and back."""
        changes = 2 * self.problem.rates.change if self.problem.blocks_given else 0.0
        return self.problem.head_seconds(on_gpu=False) + changes

    def _seconds(self, columns: Sequence[Integers]) -> tuple[Floats, int]:
        """(seconds of each column, for how many places there is a column of changing sides)."""
        problem = self.problem
        seconds = np.concatenate([option.seconds[at] for option, at in zip(self.options, columns, strict=True)])
        n_sides = 0 if problem.blocks_given else len(columns) + 2
        head_s = problem.head_seconds(on_gpu=True) - problem.head_seconds(on_gpu=False)
        return np.concatenate([seconds, [head_s], np.full(n_sides, problem.rates.change)]), n_sides

    def _solve(
        self, columns: Sequence[Integers], cost: Floats, rows: _Rows, integral: bool, gap: float, limit_s: float
    ) -> Any:
        from scipy.optimize import Bounds, LinearConstraint, milp

        n_options = sum(at.size for at in columns)
        lower = np.zeros(cost.size)
        lower[n_options] = float(self.problem.blocks_given)
        integrality = np.zeros(cost.size)
        integrality[: n_options + 1] = int(integral)
        return milp(
            cost,
            integrality=integrality,
            bounds=Bounds(lower, np.ones(cost.size)),
            constraints=LinearConstraint(rows.matrix(cost.size), np.array(rows.low), np.array(rows.high)),
            options={"mip_rel_gap": gap, "time_limit": limit_s},
        )

    def _rows(self, columns: Sequence[Integers], n_sides: int, split: bool) -> _Rows:
        problem, rows = self.problem, _Rows()
        budget_bytes = max(0, problem.budget_bytes - (problem.split_budget_bytes if split else 0))
        counts = np.concatenate([option.counts[at] for option, at in zip(self.options, columns, strict=True)])
        n_bytes = np.concatenate([option.n_bytes[at] for option, at in zip(self.options, columns, strict=True)])
        every, head = np.arange(counts.size), counts.size
        parts = np.split(every, np.cumsum([at.size for at in columns])[:-1])
        for part in parts:
            rows.add(1.0, 1.0, (part, 1.0))
        budget = max(budget_bytes, 1)
        head_bytes = problem.head_budget_bytes / budget
        rows.add(0.0, budget_bytes / budget, (every, n_bytes / budget), (head, head_bytes))
        if problem.neuron_limit is not None:
            n = problem.n_neurons
            rows.add(0.0, problem.neuron_limit / n, (every, np.maximum(counts, 0) / n))
        # d >= |this side - the next|; embedding and logits are on the CPU.
        sides = [part[counts[part] != ON_CPU] for part in parts] + [np.array([head])]
        for place in range(n_sides):
            for sign in (1.0, -1.0):
                before = [(sides[place - 1], sign)] if place else []
                after = [(sides[place], -sign)] if place < len(sides) else []
                rows.add(0.0, np.inf, (head + 1 + place, 1.0), *before, *after)
        return rows
