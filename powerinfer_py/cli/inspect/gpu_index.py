"""What is in a gpuidx file: which share of each layer's neurons it puts on the GPU, and whether it agrees with itself.

It does not compare the file with a model. A disagreement is reported, not raised: seeing it is why one inspects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from powerinfer_py.gguf import GGUFFile, keys
from powerinfer_py.placement.gpuidx import indexed_layers


@dataclass(frozen=True)
class GpuIndexLayer:
    """One layer. faults: every way in which `gpu_idx` and `gpu_bucket` are not what they must be; empty if none."""

    layer: int
    n_neurons: int
    n_gpu: int
    fraction: float
    faults: list[str]


@dataclass(frozen=True)
class GpuIndexReport:
    """A whole gpuidx file. solved_for: our own keys, what the split was made for; empty in PowerInfer's files."""

    vram_capacity: int | None
    n_layers: int
    n_neurons: int
    n_gpu: int
    fraction: float
    agrees: bool
    faults: list[str]
    solved_for: dict[str, Any]
    layers: list[GpuIndexLayer]


def inspect_gpu_index(file: GGUFFile) -> GpuIndexReport:
    """Describes an open gpuidx file. Raises FileFormatError where a key has the wrong type."""
    n_layers = file.get_int(keys.GPU_INDEX_BLOCK_COUNT)
    layers = [
        GpuIndexLayer(
            layer=number,
            n_neurons=layer.flags.size,
            n_gpu=layer.bucket.size,
            fraction=layer.bucket.size / max(layer.flags.size, 1),
            faults=layer.faults,
        )
        for number, layer in enumerate(indexed_layers(file))
    ]
    faults = [] if n_layers == len(layers) else [f"{keys.GPU_INDEX_BLOCK_COUNT} is {n_layers}, found {len(layers)}"]
    n_neurons = sum(layer.n_neurons for layer in layers)
    n_gpu = sum(layer.n_gpu for layer in layers)
    return GpuIndexReport(
        vram_capacity=file.get_int(keys.VRAM_CAPACITY),
        n_layers=len(layers),
        n_neurons=n_neurons,
        n_gpu=n_gpu,
        fraction=n_gpu / max(n_neurons, 1),
        agrees=not faults and not any(layer.faults for layer in layers),
        faults=faults,
        solved_for={k: _plain(v) for k, v in file.metadata.items() if k.startswith(keys.GPU_INDEX_PREFIX)},
        layers=layers,
    )


def _plain(value: Any) -> Any:
    """For JSON, which knows no NaN or infinity: those become words."""
    if isinstance(value, np.ndarray):
        return [_plain(element) for element in value.tolist()]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
