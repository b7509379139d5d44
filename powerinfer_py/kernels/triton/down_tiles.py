# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The second half of a sparse FFN for the tokens of a prompt: one list of neurons for all, tiles through tl.dot.

A program adds up the list, or one of the parts it is cut into, for its tokens and columns, in the order of the list;
`partial_sums` adds the parts. Values that are exactly 0 must contribute 0 even where a row is not finite, which a
product does not see to. But such a row leaves no sum finite, so sums are looked at once, at the end: where one is not
finite the program starts again, what is not finite taken out of the rows, and makes NaN of what they touch in a pass
over single rows.
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
from powerinfer_py.kernels.triton.partial_sums import add_parts, part_length


@triton.jit
def n_strange(values):
    """How many elements of a (tokens, columns) tile are not finite."""
    return tl.sum(tl.sum((((values - values) == 0.0) == 0).to(tl.int32), axis=1), axis=0)


@triton.jit
def finite(w):
    """w with 0 for what is not finite."""
    return tl.where((w - w) == 0.0, w, 0.0).to(w.dtype)


@triton.jit
def listed_rows(ids, entry, keep, LISTED: tl.constexpr):
    """Row numbers (int64) of list entries."""
    if LISTED:  # noqa: SIM108
        rows = tl.load(ids + entry, mask=keep, other=0).to(tl.int64)
    else:
        rows = entry.to(tl.int64)
    return rows


@triton.jit
def row_tile(
    values, scales, rows, keep, start, half_scale, N: tl.constexpr, COLUMNS: tl.constexpr, STORAGE: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """Columns from `start` of whole rows as tl.dot takes them; of no q4_0."""
    if STORAGE == "f32":
        at = start + tl.arange(0, COLUMNS)
        tile = tl.load(values + rows[:, None] * N + at[None, :], mask=columns_inside(keep, at, N, COLUMNS), other=0.0)
    else:
        tile = half_tile(values, scales, rows, keep, start, half_scale, N, COLUMNS, STORAGE, WARPS)
    return tile


@triton.jit
def nan_where_touched(total, used, w):
    """`total` with NaN where a token uses a weight of a row that is not finite. used: (tokens, 1), w: (1, columns)."""
    return tl.where(used & (((w - w) == 0.0) == 0), float("nan"), total)


@triton.jit
def store_sums(
    y, residual, bias, total, tokens, inside, columns, back, half_inverse, N: tl.constexpr, SCALED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """y = residual + (total in its own units + bias)."""
    if SCALED:
        total = total * back[:, None] * half_inverse
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < N, other=0.0)[None, :]
    place = tokens[:, None] * N + columns[None, :]
    stored = inside[:, None] & (columns < N)[None, :]
    if HAS_RESIDUAL:
        total = tl.load(residual + place, mask=stored, other=0.0) + total
    tl.store(y + place, total, mask=stored)


@triton.jit
def list_sums(
    hidden,
    high,
    low,
    values,
    scales,
    ids,
    tokens,
    inside,
    first,
    begin,
    end,
    stride,
    half_scale,
    GROUP: tl.constexpr,
    N: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    STORAGE: tl.constexpr,
    BOTH: tl.constexpr,
    WARPS: tl.constexpr,
    LISTED: tl.constexpr,
    CLEAN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sums over list entries begin (a multiple of STEP) .. end - 1, for columns from `first`: of q4_0 (TOKENS, COLUMNS
    / 2) each of the blocks' first and last halves, else (TOKENS, COLUMNS) and nothing. CLEAN: with 0 for weights that
    are not finite."""
    HALF: tl.constexpr = COLUMNS // 2 if STORAGE == "q4_0" else COLUMNS
    total = tl.zeros((TOKENS, HALF), tl.float32)
    other = tl.zeros((TOKENS, HALF if STORAGE == "q4_0" else 1), tl.float32)
    # `halves` has zeros up to there; whole groups can be loaded at once.
    padded = (end + (GROUP - 1)) // GROUP * GROUP
    for start in steps(begin, end, STEP, num_stages=STAGES):
        entry = start + tl.arange(0, STEP)
        keep = entry < end
        rows = listed_rows(ids, entry, keep, LISTED)
        at = tokens[:, None] * stride + entry[None, :]
        if STORAGE == "f32":
            h = tl.load(hidden + at, mask=inside[:, None] & keep[None, :], other=0.0)
            w = row_tile(values, scales, rows, keep, first, half_scale, N, COLUMNS, STORAGE, WARPS)
            total = tl.dot(h, finite(w) if CLEAN else w, total, input_precision="ieee")
        else:
            here = inside[:, None] & (entry < padded)[None, :]
            h = tl.load(high + at, mask=here, other=0.0)
            if STORAGE == "q4_0":
                w, v = nibble_tiles(values, scales, rows, keep, first, half_scale, N, COLUMNS, WARPS)
                total = tl.dot(h, finite(w) if CLEAN else w, total)
                other = tl.dot(h, finite(v) if CLEAN else v, other)
            else:
                w = row_tile(values, scales, rows, keep, first, half_scale, N, COLUMNS, STORAGE, WARPS)
                if CLEAN:
                    w = finite(w)
                total = tl.dot(h, w, total)
                if BOTH:
                    total = tl.dot(tl.load(low + at, mask=here, other=0.0), w, total)
    return total, other


@triton.jit
def count_products(
    hidden, tokens, inside, begin, end, stride, TOKENS: tl.constexpr, STEP: tl.constexpr, ALL_ROWS: tl.constexpr
):
    """How many products of tokens with list entries begin .. end - 1 add something other than exactly 0."""
    found = tl.zeros((TOKENS, STEP), tl.int32)
    start = begin
    while start < end:
        entry = start + tl.arange(0, STEP)
        here = inside[:, None] & (entry < end)[None, :]
        if ALL_ROWS:
            found += here.to(tl.int32)
        else:
            value = tl.load(hidden + tokens[:, None] * stride + entry[None, :], mask=here, other=0.0)
            found += (value != 0.0).to(tl.int32)
        start += STEP
    return tl.sum(tl.sum(found, axis=1), axis=0)


@triton.jit(do_not_specialize=["n_tokens", "n", "groups", "parts"])
def down_tiles_kernel(
    hidden,
    high,
    low,
    inverse,
    values,
    scales,
    half_scale,
    half_inverse,
    ids,
    count,
    bias,
    residual,
    y,
    products,
    n_tokens,
    n,
    groups,
    parts,
    GROUP: tl.constexpr,
    N: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    STORAGE: tl.constexpr,
    BOTH: tl.constexpr,
    WARPS: tl.constexpr,
    LISTED: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """y of TOKENS tokens and COLUMNS columns; programs behind the last tile of columns count the products.

    SPLIT: of one part of the list, as float32 (parts, n_tokens, N). Rows of hidden and its halves lie groups * GROUP
    apart.
    """
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    first = tl.program_id(1) * COLUMNS
    part = tl.program_id(2)
    inside = tokens < n_tokens
    stride = groups * GROUP
    end = tl.load(count) if LISTED else n
    begin = end * 0
    if SPLIT:
        length = part_length(end, parts, STEP)
        begin = part * length
        end = tl.minimum(begin + length, end)
    if first >= N:
        n_read = count_products(hidden, tokens, inside, begin, end, stride, TOKENS, STEP, ALL_ROWS)
        tl.store(products + tl.program_id(0) * parts + part, n_read)
        return
    if SPLIT and begin >= end:
        return
    total, other = list_sums(
        hidden, high, low, values, scales, ids, tokens, inside, first, begin, end, stride, half_scale, GROUP, N, TOKENS,
        COLUMNS, STEP, STORAGE, BOTH, WARPS, LISTED, False, STAGES,
    )  # fmt: skip
    # 0 times what is not finite is NaN, so a sum that is finite has met nothing strange.
    if n_strange(total) + n_strange(other) > 0:
        total, other = list_sums(
            hidden, high, low, values, scales, ids, tokens, inside, first, begin, end, stride, half_scale, GROUP, N,
            TOKENS, COLUMNS, STEP, STORAGE, BOTH, WARPS, LISTED, True, 1,
        )  # fmt: skip
        start = begin
        while start < end:
            entry = start + tl.arange(0, 1)
            keep = entry < end
            rows = listed_rows(ids, entry, keep, LISTED)
            here = inside[:, None] & keep[None, :]
            used = tl.load(hidden + tokens[:, None] * stride + entry[None, :], mask=here, other=0.0) != 0.0
            if STORAGE == "q4_0":
                w, v = nibble_tiles(values, scales, rows, keep, first, half_scale, N, COLUMNS, WARPS)
                total = nan_where_touched(total, used, w)
                other = nan_where_touched(other, used, v)
            else:
                w = row_tile(values, scales, rows, keep, first, half_scale, N, COLUMNS, STORAGE, WARPS)
                total = nan_where_touched(total, used, w)
            start += 1
    back = tl.load(inverse + tokens, mask=inside, other=0.0)
    if SPLIT:
        y += part.to(tl.int64) * n_tokens * N
    if STORAGE == "q4_0":
        columns = nibble_columns(first, COLUMNS)
        store_sums(
            y, residual, bias, total, tokens, inside, columns, back, half_inverse, N, True, HAS_BIAS, HAS_RESIDUAL
        )
        store_sums(
            y, residual, bias, other, tokens, inside, columns + 16, back, half_inverse, N, True, HAS_BIAS, HAS_RESIDUAL
        )
    else:
        columns = first + tl.arange(0, COLUMNS)
        store_sums(
            y, residual, bias, total, tokens, inside, columns, back, half_inverse, N, STORAGE != "f32", HAS_BIAS,
            HAS_RESIDUAL,
        )  # fmt: skip


def down_config(matrix: DeviceRows, n_tokens: int, device: torch.device) -> launch.TileConfig:
    """How `down_tiles` runs; `rows` are columns of the result here."""
    return launch.tile_config("down", matrix.storage, n_tokens, matrix.rows, matrix.cols, device)


def down_tiles(
    matrix: DeviceRows,
    hidden: Tensor,
    y: Tensor,
    products: Tensor,
    allocate: Allocate,
    *,
    union: tuple[Tensor, Tensor] | None,
    all_rows: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    """The same as `down_rows.down_rows` with one list for all tokens. products: int32 (token tiles * parts)."""
    n_tokens, n = hidden.shape
    device = hidden.device
    config = down_config(matrix, n_tokens, device)
    n_tiles = launch.cdiv(n_tokens, config.tokens)
    launch.require_strided(hidden, "hidden", torch.float32, (n_tokens, matrix.rows), device)
    groups, group = launch.row_groups(launch.row_stride(hidden))
    launch.require(y, "y", torch.float32, (n_tokens, matrix.cols), device)
    launch.require(products, "products", torch.int32, (n_tiles * config.parts,), device)
    launch.require_bias(bias, matrix.cols, device)
    if residual is not None:
        launch.require(residual, "residual", torch.float32, (n_tokens, matrix.cols), device)
    ids, count = (products, products) if union is None else union
    halves = Halves(hidden, allocate, None if union is None else count)
    split = config.parts > 1
    sums = allocate((config.parts, n_tokens, matrix.cols), torch.float32) if split else y
    launch.run(
        down_tiles_kernel,
        (n_tiles, launch.cdiv(matrix.cols, config.rows) + 1, config.parts),
        warps=config.warps,
        stages=config.stages,
        hidden=hidden,
        high=halves.high,
        low=halves.low,
        inverse=halves.inverse,
        values=matrix.values,
        scales=matrix.scales_or_values,
        half_scale=matrix.half_scale,
        half_inverse=1.0 / matrix.half_scale,
        ids=ids,
        count=count,
        bias=y if split or bias is None else bias,
        residual=y if split or residual is None else residual,
        y=sums,
        products=products,
        n_tokens=n_tokens,
        n=n,
        groups=groups,
        parts=config.parts,
        GROUP=group,
        N=matrix.cols,
        TOKENS=config.tokens,
        COLUMNS=config.rows,
        STEP=config.step,
        STORAGE=matrix.storage,
        BOTH=matrix.storage in EXACT_STORAGES,
        WARPS=config.warps,
        LISTED=union is not None,
        ALL_ROWS=all_rows,
        HAS_BIAS=not split and bias is not None,
        HAS_RESIDUAL=not split and residual is not None,
        SPLIT=split,
        STAGES=config.stages,
    )
    if split:
        add_parts(sums, y, n=n, step=config.step, count=None if union is None else count, bias=bias, residual=residual)
