"""Rows of any weight type as float16: what becomes of those that devices have no form of.

`halve_rows` is the definition of `Kernels.fill_halves`, and what runs where there are no native kernels: the values of
`gguf.quants`, rounded to the nearest float16. A few rows at a time pass through float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from powerinfer_py.errors import UnsupportedError
from powerinfer_py.gguf.quants import dequantize_rows
from powerinfer_py.gguf.types import GGMLType

if TYPE_CHECKING:
    from powerinfer_py import _native

# 4 MiB of float32: they stay in the cache, and threads have enough to share out.
_STEP_WEIGHTS = 1 << 20


def halve_rows(
    ggml_type: GGMLType,
    cols: int,
    data: npt.NDArray[np.uint8],
    ids: npt.NDArray[np.int64] | None,
    place: npt.NDArray[np.uint8],
) -> None:
    """As `Kernels.fill_halves` says."""
    for some, halves in _steps(cols, data, ids, place):
        halves[...] = _halved(dequantize_rows(data.reshape(-1), ggml_type, len(data), cols, some), ggml_type)


def halve_rows_natively(
    native: _native.CpuKernels,
    ggml_type: GGMLType,
    cols: int,
    data: npt.NDArray[np.uint8],
    ids: npt.NDArray[np.int64] | None,
    place: npt.NDArray[np.uint8],
) -> None:
    """The same by the threads of `native`, bit for bit but for what a NaN says besides."""
    from powerinfer_py import _native

    matrix = _native.Matrix(data.reshape(-1), int(ggml_type), len(data), cols)
    values: npt.NDArray[np.float32] | None = None
    for some, halves in _steps(cols, data, ids, place):
        if values is None:
            # The first step is the longest.
            values = np.empty(halves.shape, np.float32)
        values = values[: some.size]
        native.rows(matrix, some.ctypes.data, some.size, values.ctypes.data)
        if not native.quantise(values.ctypes.data, values.size, int(GGMLType.F16), halves.ctypes.data):
            halves[...] = _halved(values, ggml_type)


def _steps(
    cols: int, data: npt.NDArray[np.uint8], ids: npt.NDArray[np.int64] | None, place: npt.NDArray[np.uint8]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
    """Some rows' numbers (n; int64), and the part of `place` that is theirs, float16 (n, cols)."""
    numbers = np.arange(len(data)) if ids is None else np.ascontiguousarray(ids, np.int64)
    halves = place.view("<f2").reshape(numbers.size, cols)
    step = max(1, _STEP_WEIGHTS // max(cols, 1))
    for begin in range(0, numbers.size, step):
        yield numbers[begin : begin + step], halves[begin : begin + step]


def _halved(values: npt.NDArray[np.float32], ggml_type: GGMLType) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore", invalid="ignore"):
        halves: npt.NDArray[np.float16] = values.astype("<f2")
    if (np.isinf(halves) & np.isfinite(values)).any():
        raise UnsupportedError(f"a {ggml_type.name} weight is too large for F16, which it becomes on the GPU")
    return halves
