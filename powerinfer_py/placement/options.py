"""What each layer may choose among: its block on the CPU, or on the GPU with so many hot neurons; times and bytes.

Decides nothing. Invariant: options with the block on the GPU come first, by ascending number of neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from powerinfer_py.placement.candidates import Candidates
from powerinfer_py.placement.problem import Floats, Integers, Problem

ON_CPU = -1


@dataclass(frozen=True, eq=False)
class Options:
    """Options of one layer: hot neurons (ON_CPU for none and no block), time, bytes."""

    counts: Integers
    seconds: Floats
    n_bytes: Integers

    def at(self, places: Integers) -> Options:
        """Those of these places."""
        return Options(self.counts[places], self.seconds[places], self.n_bytes[places])


def layer_options(problem: Problem, layer: int, table: Candidates) -> Options:
    """All options of a layer, in the solver's groups."""
    counts = table.group_counts()
    seconds = problem.gpu_seconds(layer, table.hot_work[counts], counts == table.n_neurons)
    n_bytes = table.hot_bytes(counts) + problem.block_bytes(layer)
    if not problem.blocks_given:
        counts = np.append(counts, ON_CPU)
        seconds = np.append(seconds, problem.cpu_seconds(layer))
        n_bytes = np.append(n_bytes, 0)
    return Options(counts, seconds, n_bytes)


def whole_places(options: Options, n_neurons: int) -> Integers:
    """Places of the options with which a layer is not split."""
    return np.flatnonzero((options.counts == ON_CPU) | (options.counts == n_neurons))
