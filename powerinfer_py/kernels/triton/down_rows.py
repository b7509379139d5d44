# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The second half of a sparse FFN for one or a few tokens: rows of the down projection times their neurons' values.

A list is cut into chunks of entries, which are dealt out to at most `PARTS` parts. A program adds up the chunks
of a part for a tile of columns, in the order of the list; a second kernel adds the parts, then bias, and puts the
residual before them. No atomics on sums, so each has one order. Rows whose value is exactly 0 are not read, NaN is not
0. Moves the rows of neurons that fired, once, and 4 bytes a column and part twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.device_rows import Allocate, DeviceRows
from powerinfer_py.kernels.triton.overlap import starts_early, wait_for_kernel_ahead
from powerinfer_py.kernels.triton.weight_rows import high_nibbles, low_nibbles, signed_bytes

# (rows, columns) that a program reads at once, of blocks and of others: with ids and values before them they are three
# waits for memory. Rows read 16 at a time took an H200 27 us for a tenth of 11,008 neurons of Q4_0, mostly of waiting.
BLOCK_TILE, TILE = (64, 256), (32, 512)
# At 10 % of 11,008 neurons there are 18 chunks of 64, with 16 tiles of columns 288 programs; all are 172 chunks.
PARTS = 64
# Columns of a program that adds parts, all of which it reads at once: 64 x 256 bytes.
SUM_COLUMNS = 64


@triton.jit(do_not_specialize=["n"])
def down_kernel(
    coefficients,
    values,
    scales,
    ids,
    list_counts,
    partial,
    counts,
    n,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    STORAGE: tl.constexpr,
    LISTED: tl.constexpr,
    GATHERED: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """partial[t, part, columns of this tile]; the first tile counts the rows that were read.

    GATHERED: the coefficient of list entry i lies at its neuron's place, else at i. ALL_ROWS: zeros are added too.
    """
    wait_for_kernel_ahead(EARLY)
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    tile = tl.program_id(2)
    end = tl.load(list_counts + token) if LISTED else n
    if part * CHUNK >= end:
        return
    columns = tile * COLUMNS + tl.arange(0, COLUMNS)
    block = tile * (COLUMNS // 32) + tl.arange(0, COLUMNS // 32)
    half = tl.arange(0, COLUMNS // 2)
    byte = tile * (COLUMNS // 2) + half
    total = tl.zeros((COLUMNS,), tl.float32)
    low_total = tl.zeros((COLUMNS // 2,), tl.float32)
    high_total = tl.zeros((COLUMNS // 2,), tl.float32)
    n_read = part * 0
    start = part * CHUNK
    while start < end:
        entry = start + tl.arange(0, CHUNK)
        keep = entry < end
        rows = entry.to(tl.int64)
        if LISTED:
            rows = tl.load(ids + token * n + entry, mask=keep, other=0).to(tl.int64)
        h = tl.load(coefficients + token * n + (rows if GATHERED else entry), mask=keep, other=0.0)
        reads = keep if ALL_ROWS else keep & (h != 0.0)
        n_read += tl.sum(reads.to(tl.int32), axis=0)
        if STORAGE == "q4_0" or STORAGE == "q8_0":
            wanted = reads[:, None] & (block < N // 32)[None, :]
            d = tl.load(scales + rows[:, None] * (N // 32) + block[None, :], mask=wanted, other=0.0)
            factor = h[:, None] * d.to(tl.float32)  # (CHUNK, blocks)
            # A row that is not read must not turn an infinite neighbour's 0 into NaN.
            factor = tl.where(wanted, factor, 0.0)[:, :, None]
        if STORAGE == "q4_0":
            packed = tl.load(
                values + rows[:, None] * (N // 2) + byte[None, :],
                mask=reads[:, None] & (byte < N // 2)[None, :],
                other=0,
            )
            packed = tl.reshape(packed, (CHUNK, COLUMNS // 32, 16))
            low_total += tl.sum(tl.reshape(low_nibbles(packed) * factor, (CHUNK, COLUMNS // 2)), axis=0)
            high_total += tl.sum(tl.reshape(high_nibbles(packed) * factor, (CHUNK, COLUMNS // 2)), axis=0)
        else:
            w = tl.load(
                values + rows[:, None] * N + columns[None, :], mask=reads[:, None] & (columns < N)[None, :], other=0
            )
            if STORAGE == "q8_0":
                w = signed_bytes(tl.reshape(w, (CHUNK, COLUMNS // 32, 32))) * factor
                total += tl.sum(tl.reshape(w, (CHUNK, COLUMNS)), axis=0)
            else:
                total += tl.sum(tl.where(reads[:, None], w.to(tl.float32) * h[:, None], 0.0), axis=0)
        start += tl.num_programs(1) * CHUNK
    out = partial + (token * tl.num_programs(1) + part) * N
    if STORAGE == "q4_0":
        column = tile * COLUMNS + (half // 16) * 32 + half % 16
        tl.store(out + column, low_total, mask=column < N)
        tl.store(out + column + 16, high_total, mask=column < N)
    else:
        tl.store(out + columns, total, mask=columns < N)
    if tile == 0:
        tl.atomic_add(counts + 2, n_read.to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["n", "n_parts"])
def combine_kernel(
    partial,
    bias,
    residual,
    y,
    list_counts,
    n,
    n_parts,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LISTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EARLY: tl.constexpr,
):
    """y = residual + (sum of parts + bias), for a tile of columns. PARTS: a power of two, at least n_parts."""
    wait_for_kernel_ahead(EARLY)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < N
    end = tl.load(list_counts + token) if LISTED else n
    part = tl.arange(0, PARTS)
    written = (part < n_parts) & (part * CHUNK < end)
    parts = tl.load(
        partial + (token * n_parts + part)[:, None] * N + columns[None, :],
        mask=written[:, None] & inside[None, :],
        other=0.0,
    )
    total = tl.sum(parts, axis=0)
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        total = tl.load(residual + token * N + columns, mask=inside, other=0.0) + total
    tl.store(y + token * N + columns, total, mask=inside)


def tile_of(storage: str) -> tuple[int, int]:
    """(neurons of a chunk, columns) of a program."""
    return BLOCK_TILE if storage in ("q4_0", "q8_0") else TILE


def down_rows(
    matrix: DeviceRows,
    coefficients: Tensor,
    y: Tensor,
    counts: Tensor,
    allocate: Allocate,
    *,
    lists: tuple[Tensor, Tensor] | None,
    gathered: bool = False,
    all_rows: bool = False,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    """`y[t] = residual[t] + (sum over list entries i of coefficients[t, i] * row ids[t, i] + bias)`.

    coefficients: float32 (T, rows), in the order of the list, or `gathered`: of the rows. y: float32 (T, cols).
    lists: ids int32 (T, rows), counts int32 (T); None for all rows. counts: int64 (4), to whose third number the rows
    that were read are added.
    """
    n_tokens, n = coefficients.shape
    device = coefficients.device
    launch.require(coefficients, "coefficients", torch.float32, (n_tokens, matrix.rows), device)
    launch.require(y, "y", torch.float32, (n_tokens, matrix.cols), device)
    launch.require(counts, "counts", torch.int64, (4,), device)
    launch.require_bias(bias, matrix.cols, device)
    if residual is not None:
        launch.require(residual, "residual", torch.float32, (n_tokens, matrix.cols), device)
    chunk, columns = tile_of(matrix.storage)
    n_parts = min(PARTS, max(1, launch.cdiv(n, chunk)))
    partial = allocate((n_tokens, n_parts, matrix.cols), torch.float32)
    ids, list_counts = (counts, counts) if lists is None else lists
    launch.run(
        down_kernel,
        (n_tokens, n_parts, launch.cdiv(matrix.cols, columns)),
        warps=4,
        coefficients=coefficients,
        values=matrix.values,
        scales=matrix.scales_or_values,
        ids=ids,
        list_counts=list_counts,
        partial=partial,
        counts=counts,
        n=n,
        N=matrix.cols,
        CHUNK=chunk,
        COLUMNS=columns,
        STORAGE=matrix.storage,
        LISTED=lists is not None,
        GATHERED=gathered,
        ALL_ROWS=all_rows,
        EARLY=starts_early(device),
    )
    launch.run(
        combine_kernel,
        (n_tokens, launch.cdiv(matrix.cols, SUM_COLUMNS)),
        warps=4,
        partial=partial,
        bias=y if bias is None else bias,
        residual=y if residual is None else residual,
        y=y,
        list_counts=list_counts,
        n=n,
        n_parts=n_parts,
        N=matrix.cols,
        CHUNK=chunk,
        PARTS=PARTS,
        COLUMNS=SUM_COLUMNS,
        LISTED=lists is not None,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        EARLY=starts_early(device),
    )
