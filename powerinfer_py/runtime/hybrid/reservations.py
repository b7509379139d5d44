"""What of a budget is set aside for what, under its name and layer, once a placement is known; it places nothing."""

from __future__ import annotations

from dataclasses import dataclass

from powerinfer_py.placement import budget
from powerinfer_py.placement.budget import Ledger
from powerinfer_py.placement.fixed_bytes import FixedBytes
from powerinfer_py.placement.placement import Placement
from powerinfer_py.placement.sizes import ModelSizes
from powerinfer_py.runtime.hybrid.device_memory import DeviceMemory, Region
from powerinfer_py.runtime.hybrid.layers import Regions
from powerinfer_py.runtime.hybrid.part_source import LayerRegions


@dataclass(frozen=True, eq=False)
class Reserved:
    """Regions of everything on the device. kv: of each layer's cache. staging: None where no layer is split."""

    activations: Region
    staging: Region | None
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
    split = any(placement.layers[i].block_on_gpu and placement.layers[i].hot.size < sizes.config.n_ff for i in layers)
    staging = memory.region(budget.STAGING, fixed.staging) if split else None
    tables = memory.region(budget.DENSE_WEIGHTS, fixed.tables)
    for index in layers:
        placed, size = placement.layers[index], sizes.layers[index]
        if placed.block_on_gpu:
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
