# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Rows of the KV cache in kernels: reading them as float32, and writing a row as `cache_rows.encode_rows` rounds it.

A row is DIM float16 values ("f16"), or DIM / 32 blocks of a float16 scale and 32 signed bytes ("q8_0"). Of blocks of 34
bytes the scale is read once, the quants byte by byte: the rows are those of the host's cache, and Q8_0 is chosen for
room, not for speed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.config import CacheType
from powerinfer_py.kernels.cache_rows import cache_layout, cache_type_of
from powerinfer_py.kernels.triton import launch

# Just below 65520, the first number that float16 rounds to infinity.
LARGEST_SCALE = tl.constexpr(65519.99609375)


@triton.jit
def row_start(cache, row, DIM: tl.constexpr, TYPE: tl.constexpr):
    """Where `row` (int64) begins. From there a sequence's rows are counted in int32: a head's context is small."""
    if TYPE == "q8_0":  # noqa: SIM108
        start = cache + row * (DIM // 32 * 34)
    else:
        start = cache + row * DIM
    return start


@triton.jit
def load_cache_blocks(cache, places, keep, column, COLUMNS: tl.constexpr, DIM: tl.constexpr):
    """Of q8_0 rows the quants without their scale, float32 (n, blocks, 32), and the scales, float32 (n, blocks)."""
    block = column // 32 + tl.arange(0, COLUMNS // 32)
    wanted = keep[:, None] & (block < DIM // 32)[None, :]
    start = places[:, None] * (DIM // 32 * 34) + block[None, :] * 34
    # Blocks begin at even places.
    d = tl.load((cache + start).to(tl.pointer_type(tl.float16)), mask=wanted, other=0.0)
    at = start[:, :, None] + (2 + tl.arange(0, 32))[None, None, :]
    quants = tl.load(cache + at, mask=wanted[:, :, None], other=0)
    return quants.to(tl.int8, bitcast=True).to(tl.float32), d.to(tl.float32)


@triton.jit
def load_cache_rows(cache, places, keep, column, COLUMNS: tl.constexpr, DIM: tl.constexpr, TYPE: tl.constexpr):
    """COLUMNS values from `column` of rows `places` (n; int32): (n, COLUMNS), float16, or float32 of q8_0; 0 outside.

    q8_0: column and COLUMNS are multiples of 32.
    """
    if TYPE == "q8_0":
        quants, d = load_cache_blocks(cache, places, keep, column, COLUMNS, DIM)
        tile = tl.reshape(quants * d[:, :, None], (places.shape[0], COLUMNS))
    else:
        at = column + tl.arange(0, COLUMNS)
        wanted = keep[:, None] & (at < DIM)[None, :]
        tile = tl.load(cache + places[:, None] * DIM + at[None, :], mask=wanted, other=0.0)
    return tile


@triton.jit
def store_cache_blocks(cache, row, values, block, keep, DIM: tl.constexpr):
    """A row of q8_0: values (blocks, 32), each block with the bytes of `encode_rows`."""
    largest = tl.max(tl.abs(values), axis=1)
    strange = tl.sum((values != values).to(tl.int32), axis=1) > 0
    d = tl.div_rn(largest, 127.0)
    fits = (strange == 0) & (d <= LARGEST_SCALE)
    inverse = tl.div_rn(1.0, tl.where(d == 0.0, 1.0, d))
    inverse = tl.where((d != 0.0) & (tl.abs(inverse) < float("inf")), inverse, 0.0)
    scaled = values * inverse[:, None]
    # To nearest, ties away from zero.
    magnitude = tl.abs(scaled)
    whole = tl.floor(magnitude)
    whole = whole + tl.floor(2.0 * (magnitude - whole))
    quants = tl.where(scaled < 0.0, -whole, whole)
    quants = tl.where(fits[:, None], quants, 0.0).to(tl.int32).to(tl.uint8)
    # The NaN that numpy makes: 0x7e00.
    bits = tl.where(fits, d.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.int32), 0x7E00)
    start = cache + row * (DIM // 32 * 34) + block * 34
    tl.store(start, (bits & 255).to(tl.uint8), mask=keep)
    tl.store(start + 1, (bits >> 8).to(tl.uint8), mask=keep)
    tl.store(start[:, None] + 2 + tl.arange(0, 32)[None, :], quants, mask=keep[:, None])


def require_cache(cache: Tensor, name: str, n_head_kv: int, dim: int, device: torch.device) -> CacheType:
    """How `cache` (n_slots, n_head_kv, n_ctx, row) stores its rows of `dim` values. Raises TypeError or ValueError."""
    cache_type = cache_type_of(cache)
    dtype, width = cache_layout(cache_type, dim)
    launch.require(cache, name, dtype, (cache.shape[0], n_head_kv, cache.shape[2], width), device)
    return cache_type
