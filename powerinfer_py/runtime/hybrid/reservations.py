"""What of a budget is set aside for what, before a neuron is placed and after.

Fixed: the context, the activations of a prompt chunk, staging, tables of positions. The prompt chunk is halved before
anything fails. Then the placement's weights and caches, each under its name and layer. Places nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from powerinfer_py.placement import budget
from powerinfer_py.placement.budget import Ledger, require_minimum
from powerinfer_py.placement.device_bytes import aligned
from powerinfer_py.placement.placement import Placement
from powerinfer_py.placement.sizes import ModelSizes, staging_bytes, workspace_bytes
from powerinfer_py.runtime.hybrid.buffers import COUNTS
from powerinfer_py.runtime.hybrid.device_memory import DeviceMemory, Region
from powerinfer_py.runtime.hybrid.layers import Regions
from powerinfer_py.runtime.hybrid.part_source import LayerRegions

# A larger part of what the context leaves is worth more as neurons than as a longer prompt chunk.
_ACTIVATION_SHARE = 0.25


@dataclass(frozen=True)
class FixedBytes:
    """Bytes that do not depend on the placement, for prompt chunks of `n_tokens`. head_extra: what more the
    activations take where the head is on the device."""

    n_tokens: int
    activations: int
    staging: int
    tables: int
    head_extra: int

    @property
    def total(self) -> int:
        """All but the head's."""
        return self.activations + self.staging + self.tables


def fixed_bytes(sizes: ModelSizes, n_tokens: int) -> FixedBytes:
    """The bytes of a prompt chunk."""
    counts = aligned(8 * COUNTS * len(sizes.layers))
    without, with_head = (workspace_bytes(sizes, n_tokens, head_on_gpu=on_gpu) for on_gpu in (False, True))
    return FixedBytes(n_tokens, without + counts, staging_bytes(sizes, n_tokens), sizes.rope_bytes, with_head - without)


def choose_chunk(sizes: ModelSizes, wanted: int, budget_bytes: int, context_bytes: int) -> FixedBytes:
    """The longest prompt chunk up to `wanted` tokens that leaves room for the model.

    It holds a token of every sequence at least. Raises BudgetError, naming the minimum, where even that leaves no room
    for the smallest of what can be placed: a block, or the head.
    """
    least = min(wanted, sizes.n_slots)
    left = budget_bytes - context_bytes
    chunk = wanted
    while chunk > least:
        fixed = fixed_bytes(sizes, chunk)
        if fixed.total <= _ACTIVATION_SHARE * left and fixed.total + _smallest_unit(sizes, fixed) <= left:
            return fixed
        chunk = max(least, chunk // 2)
    fixed = fixed_bytes(sizes, least)
    require_minimum(budget_bytes, context_bytes + fixed.total + _smallest_unit(sizes, fixed))
    return fixed


def _smallest_unit(sizes: ModelSizes, fixed: FixedBytes) -> int:
    return min([sizes.head_bytes + fixed.head_extra, *(layer.block_bytes for layer in sizes.layers)])


@dataclass(frozen=True, eq=False)
class Reserved:
    """Regions of everything on the device. kv: of each layer's keys and values."""

    activations: Region
    staging: Region
    tables: Region
    weights: Regions
    kv: dict[int, Region]


def reserve(
    memory: DeviceMemory, sizes: ModelSizes, fixed: FixedBytes, placement: Placement, layers: range
) -> Reserved:
    """Sets aside what the layers `layers` of a placement need. Raises BudgetError where the budget does not suffice."""
    last = layers.stop == len(sizes.layers)
    head_on_device = last and placement.head_on_gpu
    weights: dict[int, LayerRegions] = {}
    kv: dict[int, Region] = {}
    extra = fixed.head_extra if head_on_device else 0
    activations = memory.region(budget.ACTIVATIONS, fixed.activations + extra)
    staging = memory.region(budget.STAGING, fixed.staging)
    tables = memory.region(budget.DENSE_WEIGHTS, fixed.tables)
    for index in layers:
        placed, size = placement.layers[index], sizes.layers[index]
        if placed.block_on_gpu:
            # A down bias is with the hot neurons' sum; without them the CPU adds it.
            weights[index] = LayerRegions(
                memory.region(budget.DENSE_WEIGHTS, size.dense_bytes, index),
                memory.region(budget.PREDICTORS, size.predictor_bytes, index),
                memory.region(budget.HOT_NEURONS, size.hot_bytes(placed.hot.size), index),
            )
            kv[index] = memory.region(budget.KV_CACHE, size.kv_bytes, index)
    head = memory.region(budget.HEAD, sizes.head_bytes) if head_on_device else None
    return Reserved(activations, staging, tables, Regions(weights, head), kv)


def reserve_context(ledger: Ledger, n_bytes: int) -> None:
    """Notes what the device holds of the process besides tensors."""
    ledger.take(ledger.reserve(budget.CONTEXT, n_bytes), n_bytes)
