# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Float32 activations as float16 halves for tl.dot, and what of a stored weight a float16 can hold.

A tensor core multiplies float16 exactly and adds in float32. An activation is first multiplied by a power of two that
brings the largest of its token to [2^14, 2^15), then written as high + low: 22 bits for everything above 2^-16 of the
largest, below that an error of 2^-39 of the largest, and nothing overflows. Over random rows of 4,096 F16 weights under
the interpreter the NMSE against float64 is 5e-14 with both halves and 4e-8 with the high half alone, of which a few
dozen products in a row would leave little of the 1e-6 that logits may be off by. So F16 and BF16 weights, exact in a
float16 (BF16 after the power of two that `DeviceRows.half_scale` is), get both. Q8_0 and Q4_0 weights have up to 18
significant bits and are rounded to 11, and so are their activations: 1e-7 together, a thousandth of llama.cpp's 8 bits.
They are unpacked in float16 throughout, which two at once go through: integers of 8 bits are exact in it, and so are
scales, but for those below 2^-21 of the largest.

Tensor cores of 9.0 add up with fewer bits than float32 has: with both halves an H200 left an NMSE of 6.6e-12.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.device_rows import Allocate

# Storages whose activations are multiplied in both halves.
EXACT_STORAGES = ("f16", "bf16")
# Activations of a token at once: 16 for each of 128 threads.
_STEP = 2048


@triton.jit
def power_of_two_scale(largest):
    """(scale, 1 / scale): powers of two with largest * scale in [2^14, 2^15), or (1, 1) where that is not finite."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    # Of a tiny number the largest scale whose inverse is a normal number.
    field = tl.where(exponent == 255, 127, tl.minimum(268 - exponent, 253))
    scale = (field << 23).to(tl.float32, bitcast=True)
    return scale, ((254 - field) << 23).to(tl.float32, bitcast=True)


@triton.jit
def two_halves(scaled):
    """float16 (high, low) with scaled = high + low. What is not finite is in the high half alone."""
    high = scaled.to(tl.float16)
    rest = scaled - high.to(tl.float32)
    return high, tl.where(rest == rest, rest, 0.0).to(tl.float16)


@triton.jit
def columns_inside(rows_too, at, N: tl.constexpr, STEP: tl.constexpr):
    """Mask (rows, columns) of columns `at` below N; of whole steps all are, which the compiler cannot see."""
    if N % STEP == 0:  # noqa: SIM108  an expression would have both its sides compiled
        inside = rows_too[:, None]
    else:
        inside = rows_too[:, None] & (at < N)[None, :]
    return inside


@triton.jit
def half_integer(bits, OFFSET: tl.constexpr):
    """float16 `bits - OFFSET` for bits (int16) below 1024, exactly: written into the low bits of 1024."""
    return (bits | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + OFFSET)


@triton.jit
def half_scales(d, half_scale):
    """float16 d times half_scale, which is a power of two: exact from 2^-14 on."""
    return (d.to(tl.float32) * half_scale).to(tl.float16)


@triton.jit
def block_scales(scales, rows, keep, start, half_scale, N: tl.constexpr, STEP: tl.constexpr, WARPS: tl.constexpr):
    """float16 (ROWS, STEP / 32): scales of the blocks from column `start`, times half_scale. WARPS: of the program."""
    ROWS: tl.constexpr = keep.shape[0]
    BLOCKS: tl.constexpr = STEP // 32
    if (N % 64 == 0 and BLOCKS % 2 == 0) and ROWS * BLOCKS < 64 * WARPS:
        # Copies to shared memory that go on beside the computation take 4 bytes a thread at least. Where there are two
        # scales for every thread that is so anyway, and taking pairs apart costs an exchange between threads.
        pair = start // 64 + tl.arange(0, BLOCKS // 2)
        at = scales.to(tl.pointer_type(tl.int32)) + rows[:, None] * (N // 64) + pair[None, :]
        pairs = tl.load(at, mask=columns_inside(keep, pair, N // 64, BLOCKS // 2), other=0)
        first = (pairs & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
        second = (pairs >> 16).to(tl.uint16).to(tl.float16, bitcast=True)
        d = tl.reshape(tl.join(first, second), (ROWS, BLOCKS))
    else:
        block = start // 32 + tl.arange(0, BLOCKS)
        at = scales + rows[:, None] * (N // 32) + block[None, :]
        d = tl.load(at, mask=columns_inside(keep, block, N // 32, BLOCKS), other=0.0)
    return half_scales(d, half_scale)


@triton.jit
def half_tile(
    values, scales, rows, keep, start, half_scale, N: tl.constexpr, STEP: tl.constexpr, STORAGE: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """Columns start .. start + STEP - 1 of `rows` times half_scale as float16 (ROWS, STEP); of no q4_0. Else 0."""
    at = start + tl.arange(0, STEP)
    wanted = columns_inside(keep, at, N, STEP)
    if STORAGE == "f16":
        tile = tl.load(values + rows[:, None] * N + at[None, :], mask=wanted, other=0.0)
    elif STORAGE == "bf16":
        w = tl.load(values + rows[:, None] * N + at[None, :], mask=wanted, other=0.0)
        tile = (w.to(tl.float32) * half_scale).to(tl.float16)
    else:
        ROWS: tl.constexpr = keep.shape[0]
        BLOCKS: tl.constexpr = STEP // 32
        quants = tl.load(values + rows[:, None] * N + at[None, :], mask=wanted, other=0)
        d = block_scales(scales, rows, keep, start, half_scale, N, STEP, WARPS)
        quants = tl.reshape(quants, (ROWS, BLOCKS, 32))
        # With its sign bit turned a byte is the number plus 128.
        bits = (quants.to(tl.uint8, bitcast=True) ^ 128).to(tl.int16)
        tile = tl.reshape(half_integer(bits, 128) * d[:, :, None], (ROWS, STEP))
    return tile


@triton.jit
def nibble_tiles(
    values, scales, rows, keep, start, half_scale, N: tl.constexpr, STEP: tl.constexpr, WARPS: tl.constexpr
):
    """Blocks of Q4_0 from column `start` times half_scale: float16 (ROWS, STEP / 2) of each block's first 16 weights,
    and the same of its last 16. Sums over columns take any order, so the two need not be interleaved."""
    ROWS: tl.constexpr = keep.shape[0]
    BLOCKS: tl.constexpr = STEP // 32
    byte = start // 2 + tl.arange(0, STEP // 2)
    # Loaded without the third dimension: with it threads side by side are given blocks of different rows.
    packed = tl.load(
        values + rows[:, None] * (N // 2) + byte[None, :], mask=columns_inside(keep, byte, N // 2, STEP // 2), other=0
    )
    packed = tl.reshape(packed, (ROWS, BLOCKS, 16))
    scale = block_scales(scales, rows, keep, start, half_scale, N, STEP, WARPS)[:, :, None]
    low = tl.reshape(half_integer((packed & 15).to(tl.int16), 8) * scale, (ROWS, STEP // 2))
    high = tl.reshape(half_integer((packed >> 4).to(tl.int16), 8) * scale, (ROWS, STEP // 2))
    return low, high


@triton.jit
def nibble_columns(start, STEP: tl.constexpr):
    """Column numbers (STEP / 2) of the first of `nibble_tiles`; those of the second are 16 more."""
    half = tl.arange(0, STEP // 2)
    return start + (half // 16) * 32 + half % 16


@triton.jit(do_not_specialize=["n", "groups"])
def split_kernel(
    x, high, low, inverse, n_listed, n, groups, GROUP: tl.constexpr, STEP: tl.constexpr, LIMITED: tl.constexpr
):
    """One token's activations as halves. LIMITED: only the first `n_listed[0]` of them; the rest is left alone, but
    for zeros up to the next multiple of GROUP, so that kernels may read whole groups.

    Rows of x and of the halves lie groups * GROUP apart.
    """
    token = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, STEP)
    end = tl.minimum(tl.load(n_listed), n) if LIMITED else n
    row = token * (groups * GROUP)
    largest = tl.zeros((STEP,), tl.float32)
    start = n * 0
    while start < end:
        at = start + offsets
        part = tl.abs(tl.load(x + row + at, mask=at < end, other=0.0))
        # NaN says nothing about the size of the others.
        largest = tl.where(part > largest, part, largest)
        start += STEP
    scale, backwards = power_of_two_scale(tl.max(largest, axis=0))
    tl.store(inverse + token, backwards)
    padded = (end + (GROUP - 1)) // GROUP * GROUP
    start = n * 0
    while start < padded:
        at = start + offsets
        part = tl.load(x + row + at, mask=at < end, other=0.0)
        first, second = two_halves(part * scale)
        tl.store(high + row + at, first, mask=at < padded)
        tl.store(low + row + at, second, mask=at < padded)
        start += STEP


class Halves:
    """Activations (T, n) as `split_kernel` leaves them: high and low float16 (T, n), inverse float32 (T).

    Rows of high and low lie as far apart as those of the activations.
    """

    def __init__(self, x: Tensor, allocate: Allocate, n_listed: Tensor | None = None) -> None:
        """x: float32 (T, n), whose rows may lie apart. n_listed: int32 (1), how many columns count; None for all."""
        n_tokens, n = x.shape
        stride = launch.row_stride(x)
        groups, group = launch.row_groups(stride)
        self.high = allocate((n_tokens, stride), torch.float16)[:, :n]
        self.low = allocate((n_tokens, stride), torch.float16)[:, :n]
        self.inverse = allocate((n_tokens,), torch.float32)
        launch.run(
            split_kernel,
            (n_tokens,),
            warps=4,
            x=x,
            high=self.high,
            low=self.low,
            inverse=self.inverse,
            n_listed=x if n_listed is None else n_listed,
            n=n,
            groups=groups,
            GROUP=group,
            STEP=_STEP,
            LIMITED=n_listed is not None,
        )
