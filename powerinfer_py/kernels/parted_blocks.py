"""Rows of blocks taken apart: the quants of all rows, and behind them their scales, as devices hold them.

`part_blocks` is the definition of `Kernels.fill_blocks`, and what runs where there are no native kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from powerinfer_py import _native

# What was gathered is read again while it lies in the cache.
_CACHED_BYTES = 1 << 19


def part_blocks(
    data: npt.NDArray[np.uint8],
    ids: npt.NDArray[np.integer] | None,
    quant_bytes: int,
    place: npt.NDArray[np.uint8],
) -> float:
    """As `Kernels.fill_blocks` says."""
    n, n_row = len(data) if ids is None else ids.size, data.shape[1]
    if quant_bytes == 0:
        target = place.reshape(n, n_row)
        if ids is None:
            target[...] = data
        else:
            np.take(data, ids, axis=0, out=target, mode="clip")
        return 0.0
    # One copied element is all quants of a block: byte by byte it took eight times as long.
    block = np.dtype([("d", "<f2"), ("quants", f"V{quant_bytes}")])
    n_blocks = n_row // block.itemsize
    n_values = n * n_blocks * quant_bytes
    quants = place[:n_values].view(block["quants"]).reshape(n, n_blocks)
    scales = place[n_values:].view("<f2").reshape(n, n_blocks)
    largest, step = 0.0, max(1, _CACHED_BYTES // n_row)
    for begin in range(0, n, step):
        part = slice(begin, min(begin + step, n))
        raw = np.ascontiguousarray(data[part if ids is None else ids[part]]).view(block)
        quants[part], scales[part] = raw["quants"], raw["d"]
        magnitudes = np.abs(raw["d"].astype(np.float32))
        largest = max(largest, float(magnitudes[np.isfinite(magnitudes)].max(initial=0.0)))
    return largest


def part_blocks_natively(
    native: _native.CpuKernels,
    data: npt.NDArray[np.uint8],
    ids: npt.NDArray[np.int64] | None,
    quant_bytes: int,
    place: npt.NDArray[np.uint8],
) -> float:
    """The same by the threads of `native`. Raises ValueError for a place of another size, IndexError for an id."""
    n_stored, row_bytes = data.shape
    n = n_stored if ids is None else ids.size
    if not (data.flags.c_contiguous and place.flags.c_contiguous) or place.size != n * row_bytes:
        raise ValueError(f"{n} rows of {row_bytes} bytes do not go into {place.size}, or have gaps")
    numbers = None if ids is None else np.ascontiguousarray(ids, np.int64)
    bits = native.fill_device_rows(
        data.ctypes.data,
        n_stored,
        row_bytes,
        0 if numbers is None else numbers.ctypes.data,
        n,
        row_bytes // (2 + quant_bytes) if quant_bytes else 0,
        quant_bytes,
        place.ctypes.data,
    )
    return float(np.uint16(bits).view(np.float16))
