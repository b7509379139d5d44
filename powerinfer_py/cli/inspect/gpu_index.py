"""What is in a gpuidx file: which share of each layer's neurons it puts on the GPU, and whether it agrees with itself.

It does not compare the file with a model. A disagreement is reported, not raised: seeing it is why one inspects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from powerinfer_py.gguf import GGMLType, GGUFFile, keys


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
    layers: list[GpuIndexLayer] = []
    while keys.gpu_idx(len(layers)) in file.tensors or keys.gpu_bucket(len(layers)) in file.tensors:
        layers.append(_layer(file, len(layers)))
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


def _layer(file: GGUFFile, layer: int) -> GpuIndexLayer:
    faults: list[str] = []
    flags = _integers(file, keys.gpu_idx(layer), faults)
    bucket = _integers(file, keys.gpu_bucket(layer), faults)
    if not faults:
        faults += _disagreements(flags, bucket)
    return GpuIndexLayer(layer, flags.size, bucket.size, bucket.size / max(flags.size, 1), faults)


def _integers(file: GGUFFile, name: str, faults: list[str]) -> npt.NDArray[np.int32]:
    info = file.tensors.get(name)
    if info is not None and info.ggml_type is GGMLType.I32 and len(info.shape) == 1:
        return file.tensor_data(name).view("<i4")
    found = "is missing" if info is None else f"is {info.ggml_type.name} {info.shape}"
    faults.append(f"{name} {found}, expected a row of I32")
    return np.zeros(0, np.int32)


def _disagreements(flags: npt.NDArray[np.int32], bucket: npt.NDArray[np.int32]) -> list[str]:
    faults: list[str] = []
    if np.any((flags != 0) & (flags != 1)):
        faults.append("gpu_idx holds values other than 0 and 1")
    if np.any(bucket[1:] <= bucket[:-1]):
        faults.append("gpu_bucket is not strictly ascending")
    if bucket.size and (bucket.min() < 0 or bucket.max() >= flags.size):
        faults.append(f"gpu_bucket holds ids outside 0 to {flags.size - 1}")
    elif not np.array_equal(np.unique(bucket), np.flatnonzero(flags)):
        faults.append("gpu_idx and gpu_bucket name different neurons")
    return faults


def _plain(value: Any) -> Any:
    """For JSON, which knows no NaN or infinity: those become words."""
    if isinstance(value, np.ndarray):
        return [_plain(element) for element in value.tolist()]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
