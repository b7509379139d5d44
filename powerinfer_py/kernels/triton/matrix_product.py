# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Products of a matrix with the tokens of a prompt, tile by tile through tl.dot with float32 sums.

The precision of each storage is explained in `halves`; F32 weights are multiplied in full float32 (`ieee`). A tile of
rows is read once for every tile of tokens; programs that share it run side by side and find it in the L2 cache. Where
tiles are too few for a device's multiprocessors, columns are cut into parts, whose sums `partial_sums` adds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.device_rows import Allocate, DeviceRows
from powerinfer_py.kernels.triton.halves import (
    EXACT_STORAGES,
    Halves,
    columns_inside,
    half_tile,
    nibble_columns,
    nibble_tiles,
)
from powerinfer_py.kernels.triton.loops import steps
from powerinfer_py.kernels.triton.matrix_vector import finish
from powerinfer_py.kernels.triton.partial_sums import add_parts, part_length


@triton.jit
def token_tile(x, tokens, inside, at, N: tl.constexpr, STEP: tl.constexpr):
    """Columns `at` of `tokens` (int64): (TOKENS, columns), 0 outside. STEP: columns from one tile to the next."""
    return tl.load(x + tokens[:, None] * N + at[None, :], mask=columns_inside(inside, at, N, STEP), other=0.0)


@triton.jit
def tile_products(
    x,
    low,
    tokens,
    inside,
    values,
    scales,
    rows,
    keep,
    half_scale,
    begin,
    end,
    N: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STORAGE: tl.constexpr,
    BOTH: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Sums (TOKENS, ROWS) of x times rows, in the units of the halves: times `inverse` of the token they are products
    with rows times half_scale. x: the high halves, or float32 for f32. Rows outside `keep` are not read and give 0.

    Of columns from `begin`, a multiple of STEP, to `end`, which is another, or N."""
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for start in steps(begin, end, STEP):
        if STORAGE == "f32":
            at = start + tl.arange(0, STEP)
            part = token_tile(x, tokens, inside, at, N, STEP)
            w = tl.load(values + rows[:, None] * N + at[None, :], mask=columns_inside(keep, at, N, STEP), other=0.0)
            total = tl.dot(part, tl.trans(w), total, input_precision="ieee")
        elif STORAGE == "q4_0":
            first, last = nibble_tiles(values, scales, rows, keep, start, half_scale, N, STEP, WARPS)
            at = nibble_columns(start, STEP)
            total = tl.dot(token_tile(x, tokens, inside, at, N, STEP), tl.trans(first), total)
            total = tl.dot(token_tile(x, tokens, inside, at + 16, N, STEP), tl.trans(last), total)
        else:
            at = start + tl.arange(0, STEP)
            w = tl.trans(half_tile(values, scales, rows, keep, start, half_scale, N, STEP, STORAGE, WARPS))
            total = tl.dot(token_tile(x, tokens, inside, at, N, STEP), w, total)
            if BOTH:
                total = tl.dot(token_tile(low, tokens, inside, at, N, STEP), w, total)
    return total


@triton.jit(do_not_specialize=["n_tokens", "parts"])
def product_kernel(
    x,
    low,
    inverse,
    values,
    scales,
    bias,
    residual,
    y,
    n_tokens,
    n_rows,
    half_scale,
    half_inverse,
    threshold,
    parts,
    N: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STORAGE: tl.constexpr,
    BOTH: tl.constexpr,
    WARPS: tl.constexpr,
    OUTPUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """y of TOKENS tokens and ROWS rows. SPLIT: of one part of the columns, as float32 (parts, n_tokens, n_rows)."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    rows = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = tokens < n_tokens
    keep = rows < n_rows
    if SPLIT:
        part = tl.program_id(2)
        length = part_length(N, parts, STEP)
        total = tile_products(
            x, low, tokens, inside, values, scales, rows, keep, half_scale, part * length,
            tl.minimum(part * length + length, N), N, TOKENS, ROWS, STEP, STORAGE, BOTH, WARPS,
        )  # fmt: skip
        y += part.to(tl.int64) * n_tokens * n_rows
    else:
        total = tile_products(
            x, low, tokens, inside, values, scales, rows, keep, half_scale, 0, N, N, TOKENS, ROWS, STEP, STORAGE, BOTH,
            WARPS,
        )  # fmt: skip
    if STORAGE != "f32":
        total = total * tl.load(inverse + tokens, mask=inside, other=0.0)[:, None] * half_inverse
    stored = inside[:, None] & keep[None, :]
    place = tokens[:, None] * n_rows + rows[None, :]
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=keep, other=0.0)[None, :]
    if HAS_RESIDUAL:
        total = tl.load(residual + place, mask=stored, other=0.0) + total
    tl.store(y + place, finish(total, OUTPUT, threshold), mask=stored)


def product(
    matrix: DeviceRows,
    x: Tensor,
    y: Tensor,
    allocate: Allocate,
    *,
    halves: Halves | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    output: str = "sum",
    threshold: float = 0.0,
) -> None:
    """The same as `matrix_vector.linear`, for many tokens. halves: x's, where another product made them already."""
    n_tokens = x.shape[0]
    launch.require(x, "x", torch.float32, (n_tokens, matrix.cols), x.device)
    launch.require(y, "y", torch.uint8 if output == "mask" else torch.float32, (n_tokens, matrix.rows), x.device)
    launch.require_bias(bias, matrix.rows, x.device)
    if residual is not None:
        launch.require(residual, "residual", torch.float32, (n_tokens, matrix.rows), x.device)
    if matrix.storage == "f32":
        halves = None
    elif halves is None:
        halves = Halves(x, allocate)
    config = launch.tile_config("product", matrix.storage, n_tokens, matrix.rows, matrix.cols, x.device)
    split = config.parts > 1
    sums = allocate((config.parts, n_tokens, matrix.rows), torch.float32) if split else y
    launch.run(
        product_kernel,
        (launch.cdiv(n_tokens, config.tokens), launch.cdiv(matrix.rows, config.rows), config.parts),
        warps=config.warps,
        stages=config.stages,
        x=x if halves is None else halves.high,
        low=x if halves is None else halves.low,
        inverse=x if halves is None else halves.inverse,
        values=matrix.values,
        scales=matrix.scales_or_values,
        bias=x if split or bias is None else bias,
        residual=x if split or residual is None else residual,
        y=sums,
        n_tokens=n_tokens,
        n_rows=matrix.rows,
        half_scale=matrix.half_scale,
        half_inverse=1.0 / matrix.half_scale,
        threshold=float(threshold),
        parts=config.parts,
        N=matrix.cols,
        TOKENS=config.tokens,
        ROWS=config.rows,
        STEP=config.step,
        STORAGE=matrix.storage,
        BOTH=matrix.storage in EXACT_STORAGES,
        WARPS=config.warps,
        OUTPUT="sum" if split else output,
        HAS_BIAS=not split and bias is not None,
        HAS_RESIDUAL=not split and residual is not None,
        SPLIT=split,
    )
    if split:
        add_parts(
            sums, y, n=matrix.cols, step=config.step, bias=bias, residual=residual, output=output, threshold=threshold
        )
