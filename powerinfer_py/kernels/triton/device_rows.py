"""Weight matrices in device memory: the bytes of a GGUF tensor, quants and scales in arrays of their own.

An 18-byte block of Q4_0 starts at an odd multiple of two bytes, so that a thread could load two bytes at once; apart,
quants are read 16 bytes at once. The number of bytes is the file's. F32, F16, BF16, Q8_0 and Q4_0 are kept as they are;
every other type becomes F16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from powerinfer_py.gguf.types import BLOCK_LAYOUTS, GGMLType, row_bytes
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.reference import ReferenceKernels
from powerinfer_py.placement.device_bytes import device_type, matrix_bytes

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
# What a magnitude in bfloat16, as an integer, is short of 2^15 at infinity. So many at a time stay in the cache.
_BELOW_INFINITY = 0x80
_STEP_WORDS = 1 << 16
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


def upload(ggml_type: GGMLType, rows: int, cols: int, data: npt.NDArray[np.uint8], allocate: Allocate) -> DeviceRows:
    """Rows of a GGUF tensor on the device, in one allocation of uint8; by numpy, with a whole copy on the host.

    data: uint8 (rows * row_bytes). Raises ValueError for data of another length; UnsupportedError as `fill`.
    """
    n_row = row_bytes(ggml_type, cols)
    if data.dtype != np.uint8 or data.shape != (rows * n_row,):
        raise ValueError(f"{data.dtype} data of shape {data.shape}, expected uint8 ({rows * n_row},)")
    here = np.empty(matrix_bytes(ggml_type, rows, cols), np.uint8)
    # A down projection by columns has none of them where no neuron is hot.
    largest = fill(ggml_type, cols, data.reshape(rows, n_row), None, here, ReferenceKernels()) if here.size else 0.0
    there = allocate((here.size,), torch.uint8).copy_(torch.from_numpy(here))
    return placed(device_type(ggml_type), rows, cols, there, largest)


def row_parts(ggml_type: GGMLType, cols: int) -> tuple[int, ...]:
    """Bytes of a row's values, and of its scales where there are any."""
    held = device_type(ggml_type)
    n_row = row_bytes(held, cols)
    if STORAGES[held] not in _QUANT_BYTES:
        return (n_row,)
    n_quants = _QUANT_BYTES[STORAGES[held]] * (cols // BLOCK_LAYOUTS[held].n_weights)
    return n_quants, n_row - n_quants


def fill(
    ggml_type: GGMLType,
    cols: int,
    data: npt.NDArray[np.uint8],
    ids: npt.NDArray[np.int64] | None,
    place: npt.NDArray[np.uint8],
    host: Kernels,
) -> float:
    """Writes rows `ids` (None: all) of `data` (rows, row_bytes) into `place` on the host, as `placed` finds them.

    host: kernels of the CPU, whose threads do it. Returns the largest magnitude of a finite weight where `placed` has
    to know it, else 0. Raises UnsupportedError where a weight of a type that becomes F16 is too large for it.
    """
    storage = STORAGES.get(ggml_type)
    if storage is None:
        host.fill_halves(ggml_type, cols, data, ids, place)
        return 0.0
    largest = host.fill_blocks(data, ids, _QUANT_BYTES.get(storage, 0), place)
    if storage in _LARGEST_QUANT:
        return _LARGEST_QUANT[storage] * largest
    return _largest_bfloat16(place) if storage == "bf16" else 0.0


def placed(ggml_type: GGMLType, rows: int, cols: int, place: Tensor, largest: float) -> DeviceRows:
    """The rows that `fill` wrote, whose bytes lie in `place`, or will when they are used. place: uint8.

    largest: of what `fill` returned for them.
    """
    storage = STORAGES[ggml_type]
    values, scales = empty_arrays(storage, rows, cols, lambda shape, _dtype: place[: shape[0]])
    return DeviceRows(storage, rows, cols, values, scales, _half_scale(storage, largest))


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


def _largest_bfloat16(place: npt.NDArray[np.uint8]) -> float:
    """Largest finite magnitude; magnitudes are in the order of their bits."""
    words, largest = place.view("<u2"), _BELOW_INFINITY
    for begin in range(0, words.size, _STEP_WORDS):
        part = words[begin : begin + _STEP_WORDS]
        # What is not finite becomes negative.
        largest = max(largest, int(((part & 0x7FFF) + _BELOW_INFINITY).view(np.int16).max()))
    return float(np.uint32((largest - _BELOW_INFINITY) << 16).view(np.float32))


def _half_scale(storage: str, largest: float) -> float:
    if storage in ("f32", "f16") or largest == 0.0:
        return 1.0
    # Both the scale and its inverse must be normal float32 numbers.
    return 2.0 ** min(100, max(-120, math.floor(math.log2(_LARGEST_HALF / largest))))
