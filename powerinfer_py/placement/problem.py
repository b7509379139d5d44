"""What the solver is asked: sizes, frequencies, rates and a budget; and what a token is expected to cost.

It decides nothing. The expected time of a token, in seconds:

    a block on the GPU:   layer_s + block / gpu + max(rows_s + hot / gpu rows, cold / cpu rows)
                          + (synchronise_s where a neuron is cold)
    a block on the CPU:   block / cpu + all its neurons / cpu rows
    and:                  head / (gpu or cpu) + change_s for each change of side from the embedding to the logits

with every term in bytes read: a block's weights whole and its keys and values half filled; of a neuron what the mode
reads of it. `dense` reads all rows, `exact` the gate and the others where it fires, `predictor` the gate where it is
named and the others where it fires too. Rows of neurons lie apart, and other kernels read them than whole matrices, so
that they have rates of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from powerinfer_py.config import Sparsity
from powerinfer_py.placement.placement import Placement
from powerinfer_py.placement.sizes import LayerSizes

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# A sequence grows from nothing to its context.
KV_FILL = 0.5
# Neurons that the solver moves at once; more only where rows cannot be parted.
LARGEST_GROUP = 64
# Layers with fewer neurons are cut into smaller groups, about so many.
GROUPS = 448


@dataclass(frozen=True)
class Rates:
    """What a machine does. Bytes a second that each side reads of whole matrices, and of rows (None: the same).

    synchronise_s: to hand a layer's cold neurons to the CPU and back. layer_s: of a layer on the GPU whatever is read:
    launches. rows_s: the same of the kernels of its hot neurons, 0 where `layer_s` has it. change_s: for a token to
    change sides, None for `synchronise_s`. source: where the figures come from, in words.
    """

    gpu_bytes_per_s: float
    cpu_bytes_per_s: float
    synchronise_s: float
    layer_s: float
    source: str
    gpu_rows_bytes_per_s: float | None = None
    cpu_rows_bytes_per_s: float | None = None
    rows_s: float = 0.0
    change_s: float | None = None

    @property
    def gpu_rows(self) -> float:
        """Bytes of neurons' rows that the GPU reads a second."""
        return self.gpu_bytes_per_s if self.gpu_rows_bytes_per_s is None else self.gpu_rows_bytes_per_s

    @property
    def cpu_rows(self) -> float:
        """The same of the CPU."""
        return self.cpu_bytes_per_s if self.cpu_rows_bytes_per_s is None else self.cpu_rows_bytes_per_s

    @property
    def change(self) -> float:
        """Seconds of a change of side."""
        return self.synchronise_s if self.change_s is None else self.change_s

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; without figures that say nothing beside the others."""
        unsaid = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != unsaid[name]}


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """One layer. fired: (n_ff) share of tokens for which a neuron fires; predicted: is named, None for the same."""

    sizes: LayerSizes
    fired: Floats
    predicted: Floats | None = None

    def work(self, mode: Sparsity) -> Floats:
        """Bytes read of each neuron for a token, as expected: (n_ff)."""
        rest = self.sizes.neuron_bytes - self.sizes.gate_bytes
        if mode is Sparsity.DENSE:
            return np.full(self.fired.size, float(self.sizes.neuron_bytes))
        if mode is Sparsity.EXACT:
            return np.asarray(self.sizes.gate_bytes + self.fired * rest, np.float64)
        named = self.fired if self.predicted is None else self.predicted
        return np.asarray(named * self.sizes.gate_bytes + np.minimum(self.fired, named) * rest, np.float64)


@dataclass(frozen=True, eq=False)
class Problem:
    """A model under a budget. mode: resolved. budget_bytes: for blocks, head and neurons, fixed bytes taken off.

    head_bytes: weights of the head; head_extra_bytes: what else the device holds with it, read by nobody. n_slots:
    sequences that the KV cache has room for, of which a token reads one. blocks_given: every block is on the GPU and
    takes nothing of the budget, nor does the head. split_bytes: what the device holds besides where a layer's block is
    there and not all of its neurons. neuron_limit: most neurons on the GPU.
    """

    layers: tuple[LayerProblem, ...]
    mode: Sparsity
    rates: Rates
    budget_bytes: int
    head_bytes: int = 0
    head_extra_bytes: int = 0
    n_slots: int = 1
    blocks_given: bool = False
    split_bytes: int = 0
    neuron_limit: int | None = None

    @cached_property
    def work(self) -> list[Floats]:
        """`LayerProblem.work` of each layer."""
        return [layer.work(self.mode) for layer in self.layers]

    @cached_property
    def total_work(self) -> list[float]:
        """Bytes read of all neurons of each layer."""
        return [float(work.sum()) for work in self.work]

    @property
    def n_neurons(self) -> int:
        """Neurons of all layers."""
        return sum(layer.fired.size for layer in self.layers)

    def block_read_bytes(self, layer: int) -> float:
        """Bytes of a layer's block that a token reads."""
        return block_read_bytes(self.layers[layer].sizes, self.n_slots)

    def block_bytes(self, layer: int) -> int:
        """Bytes of the budget that a layer's block takes."""
        return 0 if self.blocks_given else self.layers[layer].sizes.block_bytes

    @property
    def head_budget_bytes(self) -> int:
        """Bytes of the budget that the head takes."""
        return 0 if self.blocks_given else self.head_bytes + self.head_extra_bytes

    @property
    def split_budget_bytes(self) -> int:
        """Bytes of the budget that it takes to have any layer split."""
        return 0 if self.blocks_given else self.split_bytes

    def gpu_seconds(self, layer: int, hot_work: Floats, all_hot: npt.NDArray[np.bool_]) -> Floats:
        """Time of a layer whose block is on the GPU, for each amount of hot work (bytes)."""
        rates, total = self.rates, self.total_work[layer]
        cold = np.maximum(total - hot_work, 0.0)
        parts = np.maximum(rates.rows_s + hot_work / rates.gpu_rows, np.where(all_hot, 0.0, cold / rates.cpu_rows))
        fixed = rates.layer_s + self.block_read_bytes(layer) / rates.gpu_bytes_per_s
        return np.asarray(fixed + parts + np.where(all_hot, 0.0, rates.synchronise_s), np.float64)

    def cpu_seconds(self, layer: int) -> float:
        """Time of a layer that is wholly on the CPU."""
        rates = self.rates
        return self.block_read_bytes(layer) / rates.cpu_bytes_per_s + self.total_work[layer] / rates.cpu_rows

    def head_seconds(self, on_gpu: bool) -> float:
        """Time of the head."""
        return self.head_bytes / (self.rates.gpu_bytes_per_s if on_gpu else self.rates.cpu_bytes_per_s)


def block_read_bytes(sizes: LayerSizes, n_slots: int) -> float:
    """Bytes of a layer's block that a token reads, its sequence being one of so many."""
    return sizes.dense_bytes + sizes.predictor_bytes + KV_FILL * sizes.kv_bytes / n_slots


def side_changes(blocks: Sequence[bool], head_on_gpu: bool) -> int:
    """How often a token goes from one side to the other; embedding and logits are on the CPU."""
    sides = [False, *blocks, head_on_gpu, False]
    return sum(a != b for a, b in pairwise(sides))


def expected_seconds(problem: Problem, placement: Placement) -> float:
    """The time that a token is expected to take, as the module says."""
    seconds = problem.head_seconds(placement.head_on_gpu)
    for layer, placed in enumerate(placement.layers):
        if placed.block_on_gpu:
            work = problem.work[layer]
            hot = np.array([work[placed.hot].sum()])
            seconds += float(problem.gpu_seconds(layer, hot, np.array([placed.hot.size == work.size]))[0])
        else:
            seconds += problem.cpu_seconds(layer)
    blocks = [placed.block_on_gpu for placed in placement.layers]
    return seconds + problem.rates.change * side_changes(blocks, placement.head_on_gpu)


def placement_bytes(problem: Problem, placement: Placement) -> int:
    """Bytes of the budget that a placement takes."""
    n_bytes = problem.head_budget_bytes if placement.head_on_gpu else 0
    if placement.is_split(problem.layers[0].fired.size):
        n_bytes += problem.split_budget_bytes
    for layer, placed in enumerate(placement.layers):
        if placed.block_on_gpu:
            n_bytes += problem.block_bytes(layer) + problem.layers[layer].sizes.hot_bytes(placed.hot.size)
    return n_bytes


def captured_share(problem: Problem, placement: Placement) -> float:
    """Share of all activations that the neurons on the GPU make; 0 where nothing ever fires."""
    total = sum(float(layer.fired.sum()) for layer in problem.layers)
    hot = sum(
        float(layer.fired[placed.hot].sum()) for layer, placed in zip(problem.layers, placement.layers, strict=True)
    )
    return hot / total if total > 0 else 0.0
