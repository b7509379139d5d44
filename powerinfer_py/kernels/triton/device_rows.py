"""Weight matrices in device memory: the bytes of a GGUF tensor, quants and scales in arrays of their own.

An 18-byte block of Q4_0 starts at an odd multiple of two bytes, so that a thread could load two bytes at once; apart,
quants are read 16 bytes at once. The number of bytes is the file's. F32, F16, BF16, Q8_0 and Q4_0 are kept as they are;
every other type is dequantised to F16 here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from powerinfer_py.errors import UnsupportedError
from powerinfer_py.gguf.quants import dequantize_rows
from powerinfer_py.gguf.types import GGMLType, row_bytes
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.parted_blocks import part_blocks

_Made = TypeVar("_Made")
Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]

STORAGES: dict[GGMLType, str] = {
    GGMLType.F32: "f32",
    GGMLType.F16: "f16",
    GGMLType.BF16: "bf16",
    GGMLType.Q8_0: "q8_0",
    GGMLType.Q4_0: "q4_0",
}
_VALUE_DTYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "q8_0": torch.int8,
    "q4_0": torch.uint8,
}
# Largest magnitude of an integer of a block.
_LARGEST_QUANT = {"q8_0": 128, "q4_0": 8}
# Bytes of a block's quants.
_QUANT_BYTES = {"q8_0": 32, "q4_0": 16}
# Rows are laid out in bands of about this many bytes, a few of them at once: numpy lets go of the interpreter's lock
# while it copies, and loading takes no second copy of a matrix.
_BAND_BYTES = 1 << 20
_THREADS = 8
# Where the largest weight goes when weights are made float16 for tl.dot: its products with the largest activation
# (below 2^15) and sums of 2^16 of them stay far below the largest float32.
_LARGEST_HALF = 2.0**14


@dataclass(frozen=True, eq=False)
class DeviceRows:
    """`Matrix.handle` of these kernels.

    storage: one of `STORAGES`. values: (rows, cols) weights or int8 quants, or for q4_0 uint8 (rows, cols / 2), byte j
    of a block of 16 holding weight j low and weight j + 16 high. scales: float16 (rows, cols / 32); None: no blocks.
    half_scale: a power of two; times it, the largest weight is at most 2^14 and a float16 (1 for f32 and f16).
    """

    storage: str
    rows: int
    cols: int
    values: Tensor
    scales: Tensor | None
    half_scale: float

    @property
    def scales_or_values(self) -> Tensor:
        """What kernels get as scales; they do not look at it where there are none."""
        return self.values if self.scales is None else self.scales


def upload(
    ggml_type: GGMLType,
    rows: int,
    cols: int,
    data: npt.NDArray[np.uint8],
    allocate: Allocate,
    ids: npt.NDArray[np.integer] | None = None,
) -> DeviceRows:
    """Rows of a GGUF tensor on the device, in one allocation of uint8.

    data: uint8 (rows * row_bytes). ids: the rows to take, in their new order; None for all.
    Raises ValueError for data of another length and IndexError for an id out of range; UnsupportedError where a weight
    of a type that becomes F16 is too large for it.
    """
    n_row = row_bytes(ggml_type, cols)
    if data.dtype != np.uint8 or data.shape != (rows * n_row,):
        raise ValueError(f"{data.dtype} data of shape {data.shape}, expected uint8 ({rows * n_row},)")
    if ids is not None and ids.size and not (ids.min() >= 0 and ids.max() < rows):
        raise IndexError(f"row ids from {ids.min()} to {ids.max()}, expected 0 to {rows - 1}")
    storage = STORAGES.get(ggml_type, "f16")
    n = rows if ids is None else len(ids)
    values, scales = empty_arrays(storage, n, cols, allocate)

    def laid_out(begin: int, end: int) -> tuple[npt.NDArray[np.uint8], float]:
        """Rows [begin, end) as the device holds them, and the largest magnitude among them."""
        chosen = None if ids is None else ids[begin:end]
        if ggml_type in STORAGES:
            raw = data.reshape(rows, n_row)
            raw = raw[begin:end] if chosen is None else raw
        else:
            numbers = np.arange(begin, end) if chosen is None else chosen
            raw, chosen = as_halves(dequantize_rows(data, ggml_type, rows, cols, numbers), ggml_type), None
        place = np.empty((end - begin) * raw.shape[1], np.uint8)
        return place, _lay_out(storage, raw, chosen, place, part_blocks)

    largest = 0.0
    # A down projection by columns has none of them where no neuron is hot.
    for begin, end, (place, magnitude) in _in_bands(n if n_row else 0, n_row, laid_out):
        largest = max(largest, magnitude)
        n_values = values[begin:end].nbytes
        values[begin:end].copy_(torch.from_numpy(place[:n_values]).view(values.dtype).view(end - begin, -1))
        if scales is not None:
            scales[begin:end].copy_(torch.from_numpy(place[n_values:]).view(scales.dtype).view(end - begin, -1))
    return DeviceRows(storage, n, cols, values, scales, _half_scale(storage, largest))


def fill(
    ggml_type: GGMLType,
    data: npt.NDArray[np.uint8],
    ids: npt.NDArray[np.int64] | None,
    place: npt.NDArray[np.uint8],
    host: Kernels,
) -> float:
    """Rows `ids` (None: all) of `data` (rows, row_bytes) as `upload` would lay them out, into `place` on the host.

    Returns `half_scale`. host: kernels of the CPU, whose threads do it.
    """
    storage = STORAGES[ggml_type]
    return _half_scale(storage, _lay_out(storage, data, ids, place, host.fill_blocks))


def _lay_out(
    storage: str,
    data: npt.NDArray[np.uint8],
    ids: npt.NDArray[np.integer] | None,
    place: npt.NDArray[np.uint8],
    fill_blocks: Callable[..., float],
) -> float:
    """As `fill`; returns the largest finite magnitude where `_half_scale` needs it."""
    largest = fill_blocks(data, ids, _QUANT_BYTES.get(storage, 0), place)
    if storage in _LARGEST_QUANT:
        return _LARGEST_QUANT[storage] * largest
    if storage != "bf16" or not place.size:
        return 0.0
    return _largest_finite(torch.from_numpy(place).view(torch.bfloat16).float().numpy())


def placed(ggml_type: GGMLType, rows: int, cols: int, place: Tensor, half_scale: float) -> DeviceRows:
    """The rows that `fill` wrote, whose bytes lie in `place`, or will when they are used. place: uint8."""
    storage = STORAGES[ggml_type]
    values, scales = empty_arrays(storage, rows, cols, lambda shape, _dtype: place[: shape[0]])
    return DeviceRows(storage, rows, cols, values, scales, half_scale)


def empty_arrays(storage: str, n: int, cols: int, allocate: Allocate) -> tuple[Tensor, Tensor | None]:
    """`values` and `scales` of `n` rows, in one allocation."""
    dtype = _VALUE_DTYPES[storage]
    width = cols // 2 if storage == "q4_0" else cols
    n_values = n * width * dtype.itemsize
    if storage not in _LARGEST_QUANT:
        return allocate((n_values,), torch.uint8).view(dtype).view(n, width), None
    # A row's quants are a multiple of 16 bytes, so that the scales behind them are aligned too.
    buffer = allocate((n_values + 2 * n * (cols // 32),), torch.uint8)
    values = buffer[:n_values].view(dtype).view(n, width)
    return values, buffer[n_values:].view(torch.float16).view(n, cols // 32)


def _in_bands(n: int, n_row: int, make: Callable[[int, int], _Made]) -> Iterator[tuple[int, int, _Made]]:
    """`make(begin, end)` of all rows, in bands and in order, some of them made ahead by other threads."""
    step = max(1, _BAND_BYTES // max(n_row, 1))
    bands = [(begin, min(begin + step, n)) for begin in range(0, n, step)]
    if len(bands) <= 1:
        yield from ((*band, make(*band)) for band in bands)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        ahead: deque[Future[_Made]] = deque()
        for number, band in enumerate(bands):
            while len(ahead) < 2 * _THREADS and number + len(ahead) < len(bands):
                ahead.append(pool.submit(make, *bands[number + len(ahead)]))
            yield (*band, ahead.popleft().result())


def as_halves(values: npt.NDArray[np.float32], ggml_type: GGMLType) -> npt.NDArray[np.uint8]:
    """Bytes of float16, the last dimension twice as long. Raises UnsupportedError for a weight too large for it."""
    with np.errstate(over="ignore", invalid="ignore"):
        halves = values.astype("<f2")
    if (np.isinf(halves) & np.isfinite(values)).any():
        raise UnsupportedError(f"a {ggml_type.name} weight is too large for F16, which it becomes on the GPU")
    return halves.view(np.uint8)


def _largest_finite(values: npt.NDArray[np.float32]) -> float:
    magnitudes = np.abs(values[np.isfinite(values)])
    return float(magnitudes.max(initial=0.0))


def _half_scale(storage: str, largest: float) -> float:
    if storage in ("f32", "f16") or largest == 0.0:
        return 1.0
    # Both the scale and its inverse must be normal float32 numbers.
    return 2.0 ** min(100, max(-120, math.floor(math.log2(_LARGEST_HALF / largest))))
