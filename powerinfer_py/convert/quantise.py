"""A model file in another weight type: which tensor becomes what, and writing it band by band.

The blocks themselves are made by a `Quantizer`. Invariant: magic, alignment, keys, names, shapes and the order of the
tensors are those of the source, but for the keys that name the type; a tensor that keeps its type keeps its bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerinfer_py.convert.bands import FLOAT_TYPES, copied, encode
from powerinfer_py.convert.file_types import FILE_TYPES, QUANTIZATION_VERSION, QUANTIZATION_VERSION_KEY
from powerinfer_py.convert.output import Progress, ahead, reported
from powerinfer_py.convert.row_types import type_for_rows
from powerinfer_py.errors import NumericalError, OptionError, UnsupportedError, printable
from powerinfer_py.gguf import (
    BLOCK_LAYOUTS,
    WEIGHT_TYPES,
    GGMLType,
    GGUFFile,
    GGUFWriter,
    MetadataEntry,
    TensorInfo,
    ValueType,
    dequantize,
    keys,
    row_bytes,
)
from powerinfer_py.gguf.edited_copy import SPLIT_KEYS
from powerinfer_py.gguf.quantisation import Quantizer, can_quantize, quantize

# Types that serve the head as they are; for smaller ones it becomes Q6_K: its errors reach the logits undiminished.
_HEAD_AS_IS = frozenset({*FLOAT_TYPES, GGMLType.Q8_0})
_BAND_BYTES = 16 << 20


@dataclass(frozen=True)
class Keep:
    """A caller's word for the tensors whose names match a pattern of `fnmatch`."""

    pattern: str
    ggml_type: GGMLType


@dataclass(frozen=True)
class TensorPlan:
    """What one tensor becomes. `source` is as the file has it."""

    source: TensorInfo
    ggml_type: GGMLType

    @property
    def changes(self) -> bool:
        """Whether it gets other bytes."""
        return self.ggml_type is not self.source.ggml_type

    @property
    def n_bytes(self) -> int:
        """In the written file, padding apart."""
        return self.rows * row_bytes(self.ggml_type, self.source.shape[-1])

    @property
    def rows(self) -> int:
        """Rows, whatever the number of dimensions."""
        return self.source.n_weights // self.source.shape[-1] if self.source.shape[-1] else 0


@dataclass(frozen=True)
class QuantisationPlan:
    """All tensors of `file` in its order. remarks: lines on what cannot be as it was asked for."""

    file: GGUFFile
    ggml_type: GGMLType
    tensors: tuple[TensorPlan, ...]
    remarks: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Of the tensors to be written."""
        return sum(tensor.n_bytes for tensor in self.tensors)


def plan_quantisation(
    file: GGUFFile, ggml_type: GGMLType, keep: Sequence[Keep] = (), *, allow_requantize: bool = False
) -> QuantisationPlan:
    """Which type each tensor gets; no weight is read.

    Matrices become `ggml_type`, the head (`output.weight`, or the embedding where that is the head) what suits it;
    norms, biases and other vectors F32; positions keep their type. keep: overrides for matrices; the last
    that matches wins.
    Raises OptionError where a pattern matches no matrix, or the file is quantised and `allow_requantize` is not given;
    UnsupportedError for a file that is no model.
    """
    if not can_quantize(ggml_type):
        raise OptionError(f"nothing is quantised to {ggml_type.name}, only to {', '.join(t.name for t in FILE_TYPES)}")
    if file.get_str(keys.ARCHITECTURE) == keys.GPU_INDEX_ARCHITECTURE:
        raise UnsupportedError(f"{printable(str(file.path))}: is a GPU index, which has no weights to quantise")
    matrices = [info for info in file.tensors.values() if _is_matrix(info)]
    _refuse_quantised(file, matrices, allow_requantize)
    _check_patterns(file, matrices, keep)
    remarks: dict[tuple[str, GGMLType, GGMLType, int], int] = {}
    tensors = []
    for info in file.tensors.values():
        wanted = _wanted(file, info, ggml_type, keep)
        chosen = _fitting(info, wanted)
        if chosen is not wanted:
            case = (_without_layer(info.name), wanted, chosen, info.shape[-1])
            remarks[case] = remarks.get(case, 0) + 1
        tensors.append(TensorPlan(info, chosen))
    return QuantisationPlan(file, ggml_type, tuple(tensors), tuple(_remark(*case, n) for case, n in remarks.items()))


def quantise_model(
    plan: QuantisationPlan,
    path: str | os.PathLike[str],
    quantizer: Quantizer = quantize,
    progress: Progress = lambda _: None,
    *,
    report: bool = False,
) -> dict[str, float]:
    """Writes the planned file; under its name there is nothing new until it is whole.

    report: returns the NMSE of every tensor that changed (0 where its weights are all 0), else an empty dict. Memory
    beside the map of the source: a few bands of 16 MiB. progress: told the bytes written since the last call.
    Raises OptionError where `path` is the source, NumericalError naming tensor, row and column for weights that are no
    finite numbers or too large, PowerInferError where the file cannot be written.
    """
    file = plan.file
    _refuse_source(file, Path(path))
    errors: dict[str, _SquaredError] = {}
    with GGUFWriter(path, file.magic, file.alignment) as writer:
        for entry in _entries(plan):
            writer.add_entry(entry)
        for tensor in plan.tensors:
            writer.add_tensor(tensor.source.name, tensor.ggml_type, tensor.source.shape)
        for tensor in plan.tensors:
            name = tensor.source.name
            if not tensor.changes:
                writer.write_tensor(name, reported(copied(file, name), progress))
                continue
            error = errors.setdefault(name, _SquaredError()) if report else None
            writer.write_tensor(name, reported(_quantised(file, tensor, quantizer, error), progress))
            file.release(name)
        file.require_unchanged()
    return {name: error.nmse for name, error in errors.items()}


class _SquaredError:
    """Of stored weights against their originals, summed in float64 over the bands of a tensor."""

    def __init__(self) -> None:
        self._error = self._square = 0.0

    def add(self, values: npt.NDArray[np.float32], data: npt.NDArray[np.uint8], ggml_type: GGMLType) -> None:
        stored = dequantize(data, ggml_type, *values.shape)
        self._error += float(np.square(np.subtract(stored, values, dtype=np.float64)).sum())
        self._square += float(np.square(values, dtype=np.float64).sum())

    @property
    def nmse(self) -> float:
        return self._error / self._square if self._square else 0.0


def _quantised(
    file: GGUFFile, tensor: TensorPlan, quantizer: Quantizer, error: _SquaredError | None
) -> Iterator[npt.NDArray[np.uint8]]:
    """While one band is quantised, a thread reads the next from disk and makes float32 of it."""
    first_row = 0
    for values in ahead(_bands(file, tensor)):
        try:
            data = encode(tensor.source.name, values, tensor.ggml_type, quantizer, first_row)
        except NumericalError as fault:
            raise NumericalError(f"{printable(str(file.paths[tensor.source.file_index]))}: {fault}") from None
        if error is not None:
            error.add(values, data, tensor.ggml_type)
        first_row += len(values)
        yield data


def _bands(file: GGUFFile, tensor: TensorPlan) -> Iterator[npt.NDArray[np.float32]]:
    info = tensor.source
    n_row, cols = row_bytes(info.ggml_type, info.shape[-1]), info.shape[-1]
    data = file.tensor_data(info.name)
    step = max(1, _BAND_BYTES // max(4 * cols, 1))
    for start in range(0, tensor.rows, step):
        rows = min(step, tensor.rows - start)
        yield dequantize(data[start * n_row : (start + rows) * n_row], info.ggml_type, rows, cols)


def _is_matrix(info: TensorInfo) -> bool:
    """Whether the tensor's type is a matter of choice."""
    return len(info.shape) > 1 and info.ggml_type in WEIGHT_TYPES and not info.name.endswith("_norm.weight")


def _wanted(file: GGUFFile, info: TensorInfo, ggml_type: GGMLType, keep: Sequence[Keep]) -> GGMLType:
    if not _is_matrix(info):
        return GGMLType.F32 if info.ggml_type in WEIGHT_TYPES else info.ggml_type
    for kept in reversed(keep):
        if fnmatchcase(info.name, kept.pattern):
            return kept.ggml_type
    # Added to the embedding as they are: there is no product in which errors would average out.
    if info.name == keys.POSITION_EMBEDDING:
        return info.ggml_type if info.ggml_type in FLOAT_TYPES else GGMLType.F16
    head = keys.OUTPUT if keys.OUTPUT in file.tensors else keys.TOKEN_EMBEDDING
    if info.name == head and ggml_type not in _HEAD_AS_IS:
        # As PowerInfer's own quantiser has it, falcon's head included.
        return GGMLType.Q8_0 if file.get_str(keys.ARCHITECTURE) == "falcon" else GGMLType.Q6_K
    return ggml_type


def _fitting(info: TensorInfo, wanted: GGMLType) -> GGMLType:
    if wanted is info.ggml_type:
        return wanted
    chosen = type_for_rows(wanted, info.shape[-1])
    # Rows that fit no block remain floats, those of 16 bits as they are.
    if chosen is not wanted and chosen is GGMLType.F16 and info.ggml_type is GGMLType.BF16:
        return GGMLType.BF16
    return chosen


def _without_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _remark(name: str, wanted: GGMLType, chosen: GGMLType, cols: int, n_tensors: int) -> str:
    count = "" if n_tensors == 1 else f" ({n_tensors} tensors)"
    n_block = BLOCK_LAYOUTS[wanted].n_weights
    return (
        f"{printable(name)}{count}: rows of {cols} weights are no multiple of {n_block}: "
        f"{chosen.name} in place of {wanted.name}"
    )


def _refuse_quantised(file: GGUFFile, matrices: Sequence[TensorInfo], allowed: bool) -> None:
    quantised = [info for info in matrices if info.ggml_type not in FLOAT_TYPES]
    if quantised and not allowed:
        first = quantised[0]
        raise OptionError(
            f"{printable(str(file.path))}: is quantised already ({len(quantised)} of {len(matrices)} matrices, first "
            f"{printable(first.name)} as {first.ggml_type.name}); start from an F16 or F32 file, or accept the loss of "
            "quantising twice with --allow-requantize"
        )


def _check_patterns(file: GGUFFile, matrices: Sequence[TensorInfo], keep: Sequence[Keep]) -> None:
    for kept in keep:
        matched = [info.name for info in matrices if fnmatchcase(info.name, kept.pattern)]
        if not matched:
            raise OptionError(
                f"--keep {printable(kept.pattern)}={kept.ggml_type.name}: no matrix of {printable(str(file.path))} has "
                "a name like that (vectors, such as norms and biases, are always F32)"
            )
        if keys.POSITION_EMBEDDING in matched and kept.ggml_type not in FLOAT_TYPES:
            raise OptionError(
                f"--keep {printable(kept.pattern)}={kept.ggml_type.name}: {keys.POSITION_EMBEDDING} must stay F32, F16 "
                "or BF16; name a pattern that leaves it out"
            )


def _refuse_source(file: GGUFFile, target: Path) -> None:
    try:
        status = target.stat()
    except (OSError, ValueError):
        return  # there is none yet, or writing it will say what is wrong
    if any(os.path.samestat(status, path.stat()) for path in file.paths):
        raise OptionError(f"{printable(str(target))}: is the file that is read; name another to be written")


def _entries(plan: QuantisationPlan) -> list[MetadataEntry]:
    dropped = SPLIT_KEYS if len(plan.file.paths) > 1 else ()
    entries = {key: entry for key, entry in plan.file.entries.items() if key not in dropped}
    for key, value in (
        (keys.FILE_TYPE, FILE_TYPES[plan.ggml_type]),
        (QUANTIZATION_VERSION_KEY, QUANTIZATION_VERSION),
    ):
        # Assigning to a key that is there keeps its place.
        entries[key] = MetadataEntry(key, ValueType.UINT32, None, value, 0, 0)
    return list(entries.values())
