# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The second half of a sparse FFN for the tokens of a prompt: one list of neurons for all, tiles through tl.dot.

A program adds up the whole list for its tokens and columns, in the order of the list. Values that are exactly 0 must
contribute 0 even where a row is not finite, which a product does not see to: what is not finite is taken out of it, and
a second pass over single rows, which only such rows cause, makes NaN of what they touch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.device_rows import Allocate, DeviceRows
from powerinfer_py.kernels.triton.halves import EXACT_STORAGES, Halves, half_tile, nibble_columns, nibble_tiles


@triton.jit
def split_finite(w):
    """(w with 0 for what is not finite, how many elements that are)."""
    finite = (w - w) == 0.0
    return tl.where(finite, w, 0.0).to(w.dtype), tl.sum(tl.sum((finite == 0).to(tl.int32), axis=1), axis=0)


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
    values, scales, rows, keep, start, half_scale, N: tl.constexpr, COLUMNS: tl.constexpr, STORAGE: tl.constexpr
):
    """Columns from `start` of whole rows as tl.dot takes them; of no q4_0."""
    if STORAGE == "f32":
        at = start + tl.arange(0, COLUMNS)
        tile = tl.load(values + rows[:, None] * N + at[None, :], mask=keep[:, None] & (at < N)[None, :], other=0.0)
    else:
        tile = half_tile(values, scales, rows, keep, start, half_scale, N, COLUMNS, STORAGE)
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


@triton.jit(do_not_specialize=["n_tokens", "n", "groups"])
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
    GROUP: tl.constexpr,
    N: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    STORAGE: tl.constexpr,
    BOTH: tl.constexpr,
    LISTED: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """y of TOKENS tokens and COLUMNS columns; the first tile of columns counts the products.

    Rows of hidden and its halves lie groups * GROUP apart.
    """
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    first = tl.program_id(1) * COLUMNS
    inside = tokens < n_tokens
    end = tl.load(count) if LISTED else n
    total = tl.zeros((TOKENS, COLUMNS // 2 if STORAGE == "q4_0" else COLUMNS), tl.float32)
    other = tl.zeros((TOKENS, COLUMNS // 2), tl.float32)
    n_read = end * 0
    n_strange = end * 0
    start = end * 0
    while start < end:
        entry = start + tl.arange(0, STEP)
        keep = entry < end
        rows = listed_rows(ids, entry, keep, LISTED)
        here = inside[:, None] & keep[None, :]
        at = tokens[:, None] * (groups * GROUP) + entry[None, :]
        h = tl.load((hidden if STORAGE == "f32" else high) + at, mask=here, other=0.0)
        if BOTH:
            rest = tl.load(low + at, mask=here, other=0.0)
        if first == 0:
            value = tl.load(hidden + at, mask=here, other=0.0)
            n_read += tl.sum(tl.sum((here if ALL_ROWS else value != 0.0).to(tl.int32), axis=1), axis=0)
        if STORAGE == "q4_0":
            w, v = nibble_tiles(values, scales, rows, keep, first, half_scale, N, COLUMNS)
            w, strange = split_finite(w)
            v, too = split_finite(v)
            n_strange += strange + too
            total = tl.dot(h, w, total)
            other = tl.dot(h, v, other)
        else:
            w = row_tile(values, scales, rows, keep, first, half_scale, N, COLUMNS, STORAGE)
            w, strange = split_finite(w)
            n_strange += strange
            if STORAGE == "f32":
                total = tl.dot(h, w, total, input_precision="ieee")
            else:
                total = tl.dot(h, w, total)
                if BOTH:
                    total = tl.dot(rest, w, total)
        start += STEP
    start = end * 0
    while (start < end) & (n_strange > 0):
        entry = start + tl.arange(0, 1)
        keep = entry < end
        rows = listed_rows(ids, entry, keep, LISTED)
        here = inside[:, None] & keep[None, :]
        used = tl.load(hidden + tokens[:, None] * (groups * GROUP) + entry[None, :], mask=here, other=0.0) != 0.0
        if STORAGE == "q4_0":
            w, v = nibble_tiles(values, scales, rows, keep, first, half_scale, N, COLUMNS)
            total = nan_where_touched(total, used, w)
            other = nan_where_touched(other, used, v)
        else:
            w = row_tile(values, scales, rows, keep, first, half_scale, N, COLUMNS, STORAGE)
            total = nan_where_touched(total, used, w)
        start += 1
    back = tl.load(inverse + tokens, mask=inside, other=0.0)
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
    if first == 0:
        tl.store(products + tl.program_id(0), n_read)


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
    """The same as `down_rows.down_rows` with one list for all tokens. products: int32 (token tiles)."""
    n_tokens, n = hidden.shape
    device = hidden.device
    config = down_config(matrix, n_tokens, device)
    n_tiles = launch.cdiv(n_tokens, config.tokens)
    launch.require_strided(hidden, "hidden", torch.float32, (n_tokens, matrix.rows), device)
    groups, group = launch.row_groups(launch.row_stride(hidden))
    launch.require(y, "y", torch.float32, (n_tokens, matrix.cols), device)
    launch.require(products, "products", torch.int32, (n_tiles,), device)
    launch.require_bias(bias, matrix.cols, device)
    if residual is not None:
        launch.require(residual, "residual", torch.float32, (n_tokens, matrix.cols), device)
    ids, count = (products, products) if union is None else union
    halves = Halves(hidden, allocate, None if union is None else count)
    launch.run(
        down_tiles_kernel,
        (n_tiles, launch.cdiv(matrix.cols, config.rows)),
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
        bias=y if bias is None else bias,
        residual=y if residual is None else residual,
        y=y,
        products=products,
        n_tokens=n_tokens,
        n=n,
        groups=groups,
        GROUP=group,
        N=matrix.cols,
        TOKENS=config.tokens,
        COLUMNS=config.rows,
        STEP=config.step,
        STORAGE=matrix.storage,
        BOTH=matrix.storage in EXACT_STORAGES,
        LISTED=union is not None,
        ALL_ROWS=all_rows,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
    )
