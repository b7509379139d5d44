# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""What kernels share: rows of weights in every storage of `device_rows` as float32, and their products with a vector.

Functions of Triton's language that are inlined into kernels, no kernels themselves; each returns at its end alone:
Triton 3.2 goes on compiling behind a return. Rows are numbered in int64: a
matrix may have more than 2^31 weights.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _small_integer(bits, offset):
    """float32 `bits - offset` for integers below 2^23, exactly.

    Written into the low bits of 2^23, which takes one logical operation and one sum. A conversion instruction runs on
    16 lanes a multiprocessor and would be slower than memory: Q4_0 at 3.3 TB/s brings 26 weights a cycle to each.
    """
    return (bits | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + offset)


@triton.jit
def low_nibbles(packed):
    """Weights 0 to 15 of blocks of Q4_0 without their scale."""
    return _small_integer((packed & 15).to(tl.int32), 8.0)


@triton.jit
def high_nibbles(packed):
    """Weights 16 to 31 of blocks of Q4_0 without their scale."""
    return _small_integer((packed >> 4).to(tl.int32), 8.0)


@triton.jit
def signed_bytes(quants):
    """Weights of blocks of Q8_0 without their scale: bytes with their sign bit turned are the number plus 128."""
    return _small_integer((quants.to(tl.uint8, bitcast=True) ^ 128).to(tl.int32), 128.0)


@triton.jit
def row_products(
    values,
    scales,
    rows,
    keep,
    x,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
    STORAGE: tl.constexpr,
):
    """Dot products of `rows` (ROWS; int64) with x (N; float32): float32 (ROWS).

    Rows outside `keep` are not read and their results mean nothing. Sums: one per column of a tile (q8_0, q4_0: per
    block, of 32 products, times its scale) over the tiles in order, then over the columns of the tile.
    """
    if STORAGE == "q4_0":
        total = _nibble_products(values, scales, rows, keep, x, N, ROWS, STEP // 32, STAGES)
    elif STORAGE == "q8_0":
        total = _byte_products(values, scales, rows, keep, x, N, ROWS, STEP // 32, STAGES)
    else:
        total = _float_products(values, rows, keep, x, N, ROWS, STEP, STAGES)
    return total


@triton.jit
def _float_products(
    values, rows, keep, x, N: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr
):
    offsets = tl.arange(0, STEP)
    total = tl.zeros((ROWS, STEP), tl.float32)
    for start in tl.range(0, N, STEP, num_stages=STAGES):
        at = start + offsets
        inside = at < N
        w = tl.load(values + rows[:, None] * N + at[None, :], mask=keep[:, None] & inside[None, :], other=0.0)
        part = tl.load(x + at, mask=inside, other=0.0)
        total += w.to(tl.float32) * part[None, :]
    return tl.sum(total, axis=1)


@triton.jit
def _byte_products(
    values, scales, rows, keep, x, N: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr
):
    blocks = tl.arange(0, BLOCKS)
    place = tl.arange(0, 32)
    total = tl.zeros((ROWS, BLOCKS), tl.float32)
    for start in tl.range(0, N // 32, BLOCKS, num_stages=STAGES):
        at = start + blocks
        inside = at < N // 32
        wanted = keep[:, None] & inside[None, :]  # (ROWS, BLOCKS)
        at_weight = at[:, None] * 32 + place[None, :]  # (BLOCKS, 32)
        quants = tl.load(values + rows[:, None, None] * N + at_weight[None, :, :], mask=wanted[:, :, None], other=0)
        d = tl.load(scales + rows[:, None] * (N // 32) + at[None, :], mask=wanted, other=0.0)
        part = tl.load(x + at_weight, mask=inside[:, None], other=0.0)
        total += tl.sum(signed_bytes(quants) * part[None, :, :], axis=2) * d.to(tl.float32)
    return tl.sum(total, axis=1)


@triton.jit
def _nibble_products(
    values, scales, rows, keep, x, N: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr
):
    blocks = tl.arange(0, BLOCKS)
    place = tl.arange(0, 16)
    total = tl.zeros((ROWS, BLOCKS), tl.float32)
    for start in tl.range(0, N // 32, BLOCKS, num_stages=STAGES):
        at = start + blocks
        inside = at < N // 32
        wanted = keep[:, None] & inside[None, :]  # (ROWS, BLOCKS)
        at_byte = at[:, None] * 16 + place[None, :]  # (BLOCKS, 16)
        packed = tl.load(
            values + rows[:, None, None] * (N // 2) + at_byte[None, :, :], mask=wanted[:, :, None], other=0
        )
        d = tl.load(scales + rows[:, None] * (N // 32) + at[None, :], mask=wanted, other=0.0)
        at_weight = at[:, None] * 32 + place[None, :]
        low = tl.load(x + at_weight, mask=inside[:, None], other=0.0)
        high = tl.load(x + at_weight + 16, mask=inside[:, None], other=0.0)
        products = low_nibbles(packed) * low[None, :, :] + high_nibbles(packed) * high[None, :, :]
        total += tl.sum(products, axis=2) * d.to(tl.float32)
    return tl.sum(total, axis=1)
