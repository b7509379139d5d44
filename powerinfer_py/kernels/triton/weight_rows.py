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
    n,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
    STORAGE: tl.constexpr,
):
    """Dot products of `rows` (ROWS; int64) with x (N; float32): float32 (ROWS). n: an int32 of 0 or more.

    Rows outside `keep` are not read and their results mean nothing. Sums: one per column of a tile (q8_0, q4_0: per
    block, of 32 products, times its scale) over the tiles in order, then over the columns of the tile.
    """
    # The bits of 1.0, as a number that no compiler knows: a logical operation of three operands takes one constant, and
    # with two there were two operations.
    one = 0x3F800000 | (n >> 31)
    if STORAGE == "q4_0":
        total = _nibble_products(values, scales, rows, keep, x, one, N, ROWS, STEP // 32, STAGES)
    elif STORAGE == "q8_0":
        total = _byte_products(values, scales, rows, keep, x, one, N, ROWS, STEP // 32, STAGES)
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
    values, scales, rows, keep, x, one, N: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr
):
    """As `_nibble_products`, of bytes u = q + 128: the sum of q x is 256 times that of (1 + u / 256) x, less 384 times
    that of x."""
    blocks = tl.arange(0, BLOCKS)
    place = tl.arange(0, 8)
    words_of = values.to(tl.pointer_type(tl.int32), bitcast=True)
    total = tl.zeros((ROWS, BLOCKS), tl.float32)
    for start in tl.range(0, N // 32, BLOCKS, num_stages=STAGES):
        at = start + blocks
        inside = at < N // 32
        wanted = keep[:, None] & inside[None, :]  # (ROWS, BLOCKS)
        at_word = at[:, None] * 8 + place[None, :]  # (BLOCKS, 8)
        words = tl.load(
            words_of + rows[:, None, None] * (N // 4) + at_word[None, :, :], mask=wanted[:, :, None], other=0
        )
        words = words ^ -0x7F7F7F80
        d = tl.load(scales + rows[:, None] * (N // 32) + at[None, :], mask=wanted, other=0.0)
        x_0, x_1, x_2, x_3 = _activations_of_words(x, at_word * 4, inside)
        sums = tl.sum((x_0 + x_1) + (x_2 + x_3), axis=1)  # (BLOCKS)
        products = _fraction(words, one, 0x7F8000, 15, 0) * x_0[None, :, :]
        products += _fraction(words, one, 0x7F8000, 7, 0) * x_1[None, :, :]
        products += _fraction(words, one, 0x7F8000, 0, 1) * x_2[None, :, :]
        products += _fraction(words, one, 0x7F8000, 0, 9) * x_3[None, :, :]
        total += (tl.sum(products, axis=2) * 256.0 - sums[None, :] * 384.0) * d.to(tl.float32)
    return tl.sum(total, axis=1)


@triton.jit
def _activations_of_words(x, column, inside):
    """x at `column` (BLOCKS, words; the first of four) and the three behind it, each (BLOCKS, words; float32).

    x is read in its own order, four values a lane, and handed to the lanes of the words in shared memory: read as the
    words want it, each lane would touch a cache line of its own.
    """
    BLOCKS: tl.constexpr = column.shape[0]
    WORDS: tl.constexpr = column.shape[1]
    values = tl.load(x + (column[:, :, None] + tl.arange(0, 4)[None, None, :]), mask=inside[:, None, None], other=0.0)
    even, odd = tl.split(tl.reshape(values, (BLOCKS, WORDS, 2, 2)))
    byte_0, byte_2 = tl.split(even)
    byte_1, byte_3 = tl.split(odd)
    return byte_0, byte_1, byte_2, byte_3


@triton.jit
def _fraction(words, one, MASK: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """float32 1 + f for the bits that a shift brings to the upper end of the mantissa, exactly."""
    moved = words << LEFT if LEFT > 0 else words >> RIGHT
    return ((moved & MASK) | one).to(tl.float32, bitcast=True)


@triton.jit
def _nibble_products(
    values, scales, rows, keep, x, one, N: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, STAGES: tl.constexpr
):
    """Word w of a block holds weights 4 w + b in the low and 16 + 4 w + b in the high nibble of byte b.

    A shift, a logical operation and a multiplication with sum for each weight; made float32 numbers of their own first
    they took more than twice as many. The sum of (q - 8) x over a block is 16 times that of (1 + q / 16) x, less 24
    times that of x. What cancels is no larger than what stays, so that the sum has the precision of float32.
    """
    blocks = tl.arange(0, BLOCKS)
    place = tl.arange(0, 4)
    words_of = values.to(tl.pointer_type(tl.int32), bitcast=True)
    total = tl.zeros((ROWS, BLOCKS), tl.float32)
    for start in tl.range(0, N // 32, BLOCKS, num_stages=STAGES):
        at = start + blocks
        inside = at < N // 32
        wanted = keep[:, None] & inside[None, :]  # (ROWS, BLOCKS)
        at_word = at[:, None] * 4 + place[None, :]  # (BLOCKS, 4)
        words = tl.load(
            words_of + rows[:, None, None] * (N // 8) + at_word[None, :, :], mask=wanted[:, :, None], other=0
        )
        d = tl.load(scales + rows[:, None] * (N // 32) + at[None, :], mask=wanted, other=0.0)
        column = at[:, None] * 32 + place[None, :] * 4
        low_0, low_1, low_2, low_3 = _activations_of_words(x, column, inside)
        high_0, high_1, high_2, high_3 = _activations_of_words(x, column + 16, inside)
        sums = tl.sum(((low_0 + low_1) + (low_2 + low_3)) + ((high_0 + high_1) + (high_2 + high_3)), axis=1)
        products = _fraction(words, one, 0x780000, 19, 0) * low_0[None, :, :]
        products += _fraction(words, one, 0x780000, 15, 0) * high_0[None, :, :]
        products += _fraction(words, one, 0x780000, 11, 0) * low_1[None, :, :]
        products += _fraction(words, one, 0x780000, 7, 0) * high_1[None, :, :]
        products += _fraction(words, one, 0x780000, 3, 0) * low_2[None, :, :]
        products += _fraction(words, one, 0x780000, 0, 1) * high_2[None, :, :]
        products += _fraction(words, one, 0x780000, 0, 5) * low_3[None, :, :]
        products += _fraction(words, one, 0x780000, 0, 9) * high_3[None, :, :]
        total += (tl.sum(products, axis=2) * 16.0 - sums[None, :] * 24.0) * d.to(tl.float32)
    return tl.sum(total, axis=1)
