"""Weights of every type as float32. Plain and slow: the definition that kernels are measured against, not a kernel.

Values are exactly what the block's scales and integers say; NaN and infinite scales pass through.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType, row_bytes


def dequantize(data: npt.NDArray[np.uint8], ggml_type: GGMLType, rows: int, cols: int) -> npt.NDArray[np.float32]:
    """`rows` rows of `cols` weights as a new float32 array (rows, cols).

    data: uint8, one dimension, rows * row_bytes(ggml_type, cols) bytes, alignment does not matter.
    Raises ValueError for a type outside WEIGHT_TYPES, a row that is no whole number of blocks, or a wrong length.
    """
    if ggml_type not in WEIGHT_TYPES:
        raise ValueError(
            f"{ggml_type.name} is no weight type, expected one of {', '.join(t.name for t in WEIGHT_TYPES)}"
        )
    n_row = row_bytes(ggml_type, cols)
    if data.dtype != np.uint8 or data.shape != (rows * n_row,):
        raise ValueError(
            f"{data.dtype} data of shape {data.shape}, expected uint8 ({rows * n_row},) "
            f"for {rows} x {cols} {ggml_type.name}"
        )
    if data.size == 0:
        return np.zeros((rows, cols), np.float32)
    return _dequantize_matrix(np.ascontiguousarray(data).reshape(rows, n_row), ggml_type)


def dequantize_rows(
    data: npt.NDArray[np.uint8], ggml_type: GGMLType, rows: int, cols: int, ids: npt.NDArray[np.integer]
) -> npt.NDArray[np.float32]:
    """Rows `ids` (n; any integer type) alone as a new float32 array (n, cols); other rows are not read.

    Errors as `dequantize`; IndexError for an id outside 0 .. rows - 1.
    """
    n_row = row_bytes(ggml_type, cols)
    if data.shape != (rows * n_row,):
        raise ValueError(f"data of shape {data.shape}, expected ({rows * n_row},) for {rows} x {cols} {ggml_type.name}")
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        raise IndexError(f"row ids from {ids.min()} to {ids.max()}, expected 0 to {rows - 1}")
    chosen = data.reshape(rows, n_row)[ids]
    return dequantize(chosen.reshape(-1), ggml_type, len(ids), cols)


def _dequantize_matrix(data: npt.NDArray[np.uint8], ggml_type: GGMLType) -> npt.NDArray[np.float32]:
    """data: (rows, bytes of a row), contiguous, not empty."""
    if ggml_type is GGMLType.F32:
        return data.view("<f4").astype(np.float32)
    if ggml_type is GGMLType.F16:
        return data.view("<f2").astype(np.float32)
    if ggml_type is GGMLType.BF16:
        # The upper half of a float32's bits.
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    # Imported where it is needed: the package takes 0.1 s, and many commands never dequantise.
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as dequantize_blocks

    # Hostile scales overflow or are NaN; the values say so themselves, a warning would say it twice.
    with np.errstate(all="ignore"):
        result: npt.NDArray[np.float32] = dequantize_blocks(data, GGMLQuantizationType(int(ggml_type)))
    return result
