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
def is_finite(values):
    """Where values are neither infinite nor NaN. Not by a difference of equals: of a product the compiler makes one
    instruction with one rounding, and what is left is the product's error."""
    return tl.abs(values) < float("inf")


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
    STEP: tl.constexpr,
    STORAGE: tl.constexpr,
):
    """Dot products of `rows` (int64) with x (N; float32): float32, one for each. n: an int32 of 0 or more.

    Rows outside `keep` are not read and their results mean nothing. Sums: one per column of a tile (q8_0, q4_0: per
    block, of 32 products, times its scale) over the tiles in order, then over the columns of the tile.
    """
    x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset = activations(x, 0, N, STEP, STORAGE)
    total = tile_products(
        values, scales, rows, keep, x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset, 0, n, N, STEP, STORAGE
    )
    for start in range(STEP, N, STEP):
        x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset = activations(x, start, N, STEP, STORAGE)
        total += tile_products(
            values, scales, rows, keep, x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset, start, n, N, STEP, STORAGE
        )
    return tl.sum(total, axis=1)


@triton.jit
def activations(x, start, N: tl.constexpr, STEP: tl.constexpr, STORAGE: tl.constexpr):
    """Columns start .. start + STEP - 1 of x as `tile_products` takes them: eight tensors and what blocks subtract.

    A program that goes through many rows makes them once; all eight are the same one where fewer are needed.
    """
    if STORAGE == "q4_0":
        blocks = start // 32 + tl.arange(0, STEP // 32)
        inside = blocks < N // 32
        column = blocks[:, None] * 32 + tl.arange(0, 4)[None, :] * 4
        x_0, x_2, x_4, x_6 = _activations_of_words(x, column, inside)
        x_1, x_3, x_5, x_7 = _activations_of_words(x, column + 16, inside)
        low = tl.sum((x_0 + x_2) + (x_4 + x_6), axis=1)
        offset = low * 264.0 + tl.sum((x_1 + x_3) + (x_5 + x_7), axis=1) * 24.0
        x_0, x_2, x_4, x_6 = x_0 * 16.0, x_2 * 16.0, x_4 * 16.0, x_6 * 16.0
    elif STORAGE == "q8_0":
        blocks = start // 32 + tl.arange(0, STEP // 32)
        column = blocks[:, None] * 32 + tl.arange(0, 8)[None, :] * 4
        x_0, x_1, x_2, x_3 = _activations_of_words(x, column, blocks < N // 32)
        offset = tl.sum((x_0 + x_1) + (x_2 + x_3), axis=1) * 384.0
        x_4, x_5, x_6, x_7 = x_0, x_1, x_2, x_3
    else:
        at = start + tl.arange(0, STEP)
        x_0 = tl.load(x + at, mask=at < N, other=0.0)
        x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset = x_0, x_0, x_0, x_0, x_0, x_0, x_0, x_0
    return x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset


@triton.jit
def tile_products(
    values,
    scales,
    rows,
    keep,
    x_0,
    x_1,
    x_2,
    x_3,
    x_4,
    x_5,
    x_6,
    x_7,
    offset,
    start,
    n,
    N: tl.constexpr,
    STEP: tl.constexpr,
    STORAGE: tl.constexpr,
):
    """Sums that make up the products of `rows` with columns start .. start + STEP - 1: (ROWS, of each block or column).

    x_0 .. offset: of `activations` for the same columns. n: an int32 of 0 or more. Rows outside `keep` are not read.
    """
    # The bits of 1.0, as a number that no compiler knows: a logical operation of three operands takes one constant, and
    # with two there were two operations.
    one = 0x3F800000 | (n >> 31)
    if STORAGE == "q4_0" or STORAGE == "q8_0":
        WORDS: tl.constexpr = 4 if STORAGE == "q4_0" else 8
        blocks = start // 32 + tl.arange(0, STEP // 32)
        wanted = keep[:, None] & (blocks < N // 32)[None, :]  # (ROWS, blocks)
        at_word = blocks[:, None] * WORDS + tl.arange(0, WORDS)[None, :]  # (blocks, WORDS)
        first_word = values.to(tl.pointer_type(tl.int32), bitcast=True) + rows[:, None, None] * (N // 32 * WORDS)
        words = tl.load(first_word + at_word[None, :, :], mask=wanted[:, :, None], other=0)
        d = tl.load(scales + rows[:, None] * (N // 32) + blocks[None, :], mask=wanted, other=0.0)
        if STORAGE == "q4_0":
            products = _nibble_products(words, one, x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7) * 16.0
        else:
            products = _byte_products(words, one, x_0, x_1, x_2, x_3) * 256.0
        total = (products - offset[None, :]) * d.to(tl.float32)
    else:
        at = start + tl.arange(0, STEP)
        w = tl.load(values + rows[:, None] * N + at[None, :], mask=keep[:, None] & (at < N)[None, :], other=0.0)
        total = w.to(tl.float32) * x_0[None, :]
    return total


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
def _fraction(words, one, MASK: tl.constexpr):
    """float32 1 + f for bits of the mantissa, exactly."""
    return ((words & MASK) | one).to(tl.float32, bitcast=True)


@triton.jit
def _nibble_products(words, one, x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7):
    """Word w of a block holds weights 4 w + b in the low and 16 + 4 w + b in the high nibble of byte b.

    Half a shift, a logical operation and a multiplication with sum for each weight; made float32 numbers of their own
    first they took more than twice as many. A shift brings a high nibble to the upper end of the mantissa and the low
    one 4 bits below: 1 + q / 16 is multiplied with x, and 1 + q / 256 with 16 x. So 16 times their sum, less 256 + 8
    times that of the low ones' x and 16 + 8 times that of the high ones', is the sum of (q - 8) x. Over 4,096
    weights the NMSE against float64 is some 3e-11, a thousandth of that of weights rounded to F16.
    """
    shifted = words << 15
    products = _fraction(shifted, one, 0x78000) * x_0[None, :, :] + _fraction(shifted, one, 0x780000) * x_1[None, :, :]
    shifted = words << 7
    products += _fraction(shifted, one, 0x78000) * x_2[None, :, :]
    products += _fraction(shifted, one, 0x780000) * x_3[None, :, :]
    shifted = words >> 1
    products += _fraction(shifted, one, 0x78000) * x_4[None, :, :]
    products += _fraction(shifted, one, 0x780000) * x_5[None, :, :]
    shifted = words >> 9
    products += _fraction(shifted, one, 0x78000) * x_6[None, :, :]
    products += _fraction(shifted, one, 0x780000) * x_7[None, :, :]
    return tl.sum(products, axis=2)


@triton.jit
def _byte_products(words, one, x_0, x_1, x_2, x_3):
    """The same of bytes u = q + 128, which are q with its sign turned: 256 times the sum of (1 + u / 256) x, less
    256 + 128 times that of x, is the sum of q x."""
    words = words ^ -0x7F7F7F80
    products = _fraction(words << 15, one, 0x7F8000) * x_0[None, :, :]
    products += _fraction(words << 7, one, 0x7F8000) * x_1[None, :, :]
    products += _fraction(words >> 1, one, 0x7F8000) * x_2[None, :, :]
    products += _fraction(words >> 9, one, 0x7F8000) * x_3[None, :, :]
    return tl.sum(products, axis=2)
