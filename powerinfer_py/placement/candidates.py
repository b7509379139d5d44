"""A layer's neurons in the order in which they go to the GPU, and what each number of them costs and captures.

Chooses nothing. Invariant: the first k ids of the order are the best k; where rows cannot be parted, k steps over whole
groups of consecutive ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from powerinfer_py.placement.device_bytes import ALIGNMENT
from powerinfer_py.placement.problem import GROUPS, LARGEST_GROUP, Floats, Integers, LayerProblem, Problem


@dataclass(frozen=True, eq=False)
class Candidates:
    """order: ids (n_ff), the most valuable first. hot_work: (n_ff + 1) bytes read of the first k. unit: the step of k.

    group: neurons that the solver moves at once, a multiple of unit.
    """

    layer: LayerProblem
    order: Integers
    hot_work: Floats
    unit: int
    group: int

    @property
    def n_neurons(self) -> int:
        """Neurons of the layer."""
        return self.order.size

    def group_counts(self) -> Integers:
        """Numbers of hot neurons that the solver chooses among: 0, a group, two groups, .. all."""
        counts = np.arange(0, self.n_neurons, self.group, dtype=np.int64)
        return np.append(counts, self.n_neurons)

    def hot_bytes(self, counts: Integers) -> Integers:
        """`LayerSizes.hot_bytes` of each count."""
        arrays = counts[:, None] * np.array(self.layer.sizes.neuron_row_bytes, np.int64)
        return np.asarray((-(-arrays // ALIGNMENT) * ALIGNMENT).sum(axis=1), np.int64)

    def largest_count(self, low: int, high: int, n_bytes: int) -> int:
        """The largest reachable count in [low, high] whose bytes exceed those of `low` by at most `n_bytes`."""
        base = self.layer.sizes.hot_bytes(low)
        fits, too_many = 0, (high - low) // self.unit + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.layer.sizes.hot_bytes(low + middle * self.unit) - base <= n_bytes:
                fits = middle
            else:
                too_many = middle
        return low + fits * self.unit


def candidates(problem: Problem, *, by_frequency: bool = False) -> list[Candidates]:
    """Every layer's neurons, by expected bytes read or by how often they fire; equal ones by id."""
    return [
        _candidates(layer, work, layer.fired if by_frequency else work)
        for layer, work in zip(problem.layers, problem.work, strict=True)
    ]


def _candidates(layer: LayerProblem, work: Floats, value: Floats) -> Candidates:
    n, unit = value.size, layer.sizes.neuron_multiple
    if n % unit:
        raise ValueError(f"{n} neurons are no whole number of groups of {unit}")
    units = np.argsort(-value.reshape(-1, unit).sum(axis=1), kind="stable")
    order = (units[:, None] * unit + np.arange(unit)).reshape(-1).astype(np.int64)
    hot_work = np.concatenate([[0.0], np.cumsum(work[order])])
    wanted = min(LARGEST_GROUP, max(1, -(-n // GROUPS)))
    return Candidates(layer, order, hot_work, unit, max(unit, wanted // unit * unit))
