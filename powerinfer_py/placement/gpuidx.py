"""gpuidx files: which neurons of each layer are on the GPU, in PowerInfer's format, with what they were solved for.

Knows no weights and decides nothing. Invariant: an index that was loaded agrees with itself, and with the dimensions it
was held against; every way in which a file can fail that is one exception, `GpuIndexError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from powerinfer_py.errors import FileFormatError, PowerInferError, printable
from powerinfer_py.gguf import GGMLType, GGUFFile, GGUFWriter, ValueType, keys, open_gguf

Ids = npt.NDArray[np.int32]
# Stands for the hash of statistics where there were none and neurons were spread evenly.
NO_STATISTICS = "none"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class GpuIndexError(FileFormatError):
    """A gpuidx file is damaged, contradicts itself, or belongs to another model."""


@dataclass(frozen=True)
class SolvedFor:
    """What an index was solved for; our own keys in the file, which PowerInfer ignores.

    model_fingerprint: `gguf.fingerprint` of the model file. activation_hash: `ActivationStatistics.sha256`, or
    `NO_STATISTICS`. budget_bytes: of the whole process, 0 where the budget was one of neurons. rates: JSON values of
    what the machine was taken to do. gap: share of the expected time by which the split may miss the best one in
    groups. blocks_on_gpu: a flag a layer. head_on_gpu: the same of the head.
    """

    model_fingerprint: str
    activation_hash: str
    budget_bytes: int
    rates: Mapping[str, Any]
    gap: float
    blocks_on_gpu: tuple[bool, ...]
    head_on_gpu: bool


@dataclass(frozen=True, eq=False)
class GpuIndex:
    """hot: int32 ids of each layer's neurons on the GPU, ascending. n_ff: neurons a layer.

    vram_capacity: bytes of those neurons' rows. solved_for: None in a file of PowerInfer's own.
    """

    hot: tuple[Ids, ...]
    n_ff: int
    vram_capacity: int
    solved_for: SolvedFor | None = None


def write_gpu_index(path: Path, index: GpuIndex) -> None:
    """Writes the file, whole or not at all. Raises PowerInferError where the file system refuses."""
    with GGUFWriter(path, "PWRI") as writer:
        writer.add(keys.ARCHITECTURE, keys.GPU_INDEX_ARCHITECTURE, ValueType.STRING)
        writer.add(keys.GPU_INDEX_BLOCK_COUNT, len(index.hot), ValueType.UINT32)
        writer.add(keys.VRAM_CAPACITY, index.vram_capacity, ValueType.UINT64)
        if index.solved_for is not None:
            _add_solved_for(writer, index.solved_for)
        for layer, hot in enumerate(index.hot):
            writer.add_tensor(keys.gpu_idx(layer), GGMLType.I32, (index.n_ff,))
            writer.add_tensor(keys.gpu_bucket(layer), GGMLType.I32, (len(hot),))
        for layer, hot in enumerate(index.hot):
            flags = np.zeros(index.n_ff, "<i4")
            flags[hot] = 1
            writer.write_tensor(keys.gpu_idx(layer), flags)
            writer.write_tensor(keys.gpu_bucket(layer), hot.astype("<i4"))


def load_gpu_index(path: Path, n_layer: int | None = None, n_ff: int | None = None) -> GpuIndex:
    """Reads and checks a file. n_layer, n_ff: what the model has, where known. Raises GpuIndexError."""
    try:
        with open_gguf(path) as file:
            return _read(file, path, n_layer, n_ff)
    except GpuIndexError:
        raise
    except PowerInferError as error:
        reason = str(error).removeprefix(f"{printable(str(path))}: ")
        raise GpuIndexError(f"cannot be used as a GPU index: {reason}", path=path) from None


@dataclass(frozen=True, eq=False)
class IndexedLayer:
    """One layer as the file has it. faults: every way in which `flags` and `bucket` are not what they must be."""

    flags: Ids
    bucket: Ids
    faults: list[str]


def indexed_layers(file: GGUFFile) -> list[IndexedLayer]:
    """The layers of an open gpuidx file, from 0 as far as there is a tensor of one."""
    layers: list[IndexedLayer] = []
    while keys.gpu_idx(len(layers)) in file.tensors or keys.gpu_bucket(len(layers)) in file.tensors:
        layers.append(_indexed_layer(file, len(layers)))
    return layers


def _read(file: GGUFFile, path: Path, n_layer: int | None, n_ff: int | None) -> GpuIndex:
    if not file.is_powerinfer or file.get_str(keys.ARCHITECTURE) != keys.GPU_INDEX_ARCHITECTURE:
        raise GpuIndexError("is no GPU index", path=path)
    layers = indexed_layers(file)
    declared = file.require_int(keys.GPU_INDEX_BLOCK_COUNT)
    names = [name for layer in range(len(layers)) for name in (keys.gpu_idx(layer), keys.gpu_bucket(layer))]
    for layer, indexed in enumerate(layers):
        if indexed.faults:
            raise GpuIndexError(f"layer {layer}: {indexed.faults[0]}", path=path)
    if declared != len(layers) or not layers:
        raise GpuIndexError(f"{keys.GPU_INDEX_BLOCK_COUNT} is {declared}, found {len(layers)} layers", path=path)
    if list(file.tensors) != names:
        raise GpuIndexError("its tensors are not gpu_idx and gpu_bucket of each layer in order", path=path)
    if n_layer is not None and len(layers) != n_layer:
        raise GpuIndexError(f"is of a model with {len(layers)} layers, this one has {n_layer}", path=path)
    sizes = {indexed.flags.size for indexed in layers}
    expected = min(sizes) if n_ff is None else n_ff
    if sizes != {expected}:
        other = min(sizes - {expected})
        raise GpuIndexError(f"is of a model with {other} neurons a layer, this one has {expected}", path=path)
    capacity = file.require_int(keys.VRAM_CAPACITY)
    if capacity < 0:
        raise GpuIndexError(f"{keys.VRAM_CAPACITY} is {capacity}", path=path)
    hot = tuple(indexed.bucket.astype(np.int32) for indexed in layers)
    return GpuIndex(hot, expected, capacity, _solved_for(file, path, hot))


def _indexed_layer(file: GGUFFile, layer: int) -> IndexedLayer:
    faults: list[str] = []
    flags = _integers(file, keys.gpu_idx(layer), faults)
    bucket = _integers(file, keys.gpu_bucket(layer), faults)
    if not faults:
        faults += _disagreements(flags, bucket)
    return IndexedLayer(flags, bucket, faults)


def _integers(file: GGUFFile, name: str, faults: list[str]) -> Ids:
    info = file.tensors.get(name)
    if info is not None and info.ggml_type is GGMLType.I32 and len(info.shape) == 1:
        return file.tensor_data(name).view("<i4")
    found = "is missing" if info is None else f"is {info.ggml_type.name} {info.shape}"
    faults.append(f"{name} {found}, expected a row of I32")
    return np.zeros(0, np.int32)


def _disagreements(flags: Ids, bucket: Ids) -> list[str]:
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


def _add_solved_for(writer: GGUFWriter, solved: SolvedFor) -> None:
    writer.add(keys.GPU_INDEX_FINGERPRINT, solved.model_fingerprint, ValueType.STRING)
    writer.add(keys.GPU_INDEX_ACTIVATION_HASH, solved.activation_hash, ValueType.STRING)
    writer.add(keys.GPU_INDEX_BUDGET_BYTES, solved.budget_bytes, ValueType.UINT64)
    writer.add(keys.GPU_INDEX_RATES, json.dumps(dict(solved.rates), allow_nan=False), ValueType.STRING)
    writer.add(keys.GPU_INDEX_GAP, solved.gap, ValueType.FLOAT64)
    writer.add(keys.GPU_INDEX_BLOCKS, "".join("01"[flag] for flag in solved.blocks_on_gpu), ValueType.STRING)
    writer.add(keys.GPU_INDEX_HEAD, solved.head_on_gpu, ValueType.BOOL)


def _solved_for(file: GGUFFile, path: Path, hot: tuple[Ids, ...]) -> SolvedFor | None:
    """Our keys, or None where the file has none of them. Raises GpuIndexError where they are no sense."""
    if not any(key.startswith(keys.GPU_INDEX_PREFIX) for key in file.metadata):
        return None
    fingerprint = file.require_str(keys.GPU_INDEX_FINGERPRINT)
    activation_hash = file.require_str(keys.GPU_INDEX_ACTIVATION_HASH)
    if not _SHA256.fullmatch(fingerprint) or not (
        activation_hash == NO_STATISTICS or _SHA256.fullmatch(activation_hash)
    ):
        raise GpuIndexError("its fingerprints are none", path=path)
    blocks = file.require_str(keys.GPU_INDEX_BLOCKS)
    if len(blocks) != len(hot) or set(blocks) - {"0", "1"}:
        raise GpuIndexError(f"{keys.GPU_INDEX_BLOCKS} is no flag a layer", path=path)
    if any(ids.size and flag == "0" for ids, flag in zip(hot, blocks, strict=True)):
        raise GpuIndexError("it has neurons on the GPU in a layer whose block is not", path=path)
    gap = file.require_float(keys.GPU_INDEX_GAP)
    if not (math.isfinite(gap) and gap >= 0):
        raise GpuIndexError(f"{keys.GPU_INDEX_GAP} is {gap}", path=path)
    return SolvedFor(
        model_fingerprint=fingerprint,
        activation_hash=activation_hash,
        budget_bytes=file.require_int(keys.GPU_INDEX_BUDGET_BYTES),
        rates=_rates(file.require_str(keys.GPU_INDEX_RATES), path),
        gap=gap,
        blocks_on_gpu=tuple(flag == "1" for flag in blocks),
        head_on_gpu=file.metadata.get(keys.GPU_INDEX_HEAD) is True,
    )


def _rates(text: str, path: Path) -> dict[str, Any]:
    try:
        rates = json.loads(text)
    except (ValueError, RecursionError):
        rates = None
    if not isinstance(rates, dict):
        raise GpuIndexError(f"{keys.GPU_INDEX_RATES} is no JSON object", path=path)
    return rates
