# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The second half of a sparse FFN for one or a few tokens: rows of the down projection times their neurons' values.

A list is cut into chunks of `CHUNK` entries. A program adds up one chunk for a tile of columns in the order of the
list; a second kernel adds the chunks in order, then bias, and puts the residual before them. No atomics, so a sum has
one order. Rows whose value is exactly 0 are not read, NaN is not 0.
Moves the rows of neurons that fired, once, and 4 bytes a column and chunk twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.device_rows import Allocate, DeviceRows
from powerinfer_py.kernels.triton.weight_rows import high_nibbles, low_nibbles, signed_bytes

# 64 neurons: at 10 % of 11,008 there are 17 chunks, with 16 tiles of 256 columns 272 programs; their partial sums are
# 17 x 16 KB, a tenth of the rows of Q4_0 and a thirtieth of those of F16.
CHUNK = 64
# 256 columns are 128 bytes of nibbles, the run a warp reads at once.
COLUMNS = 256
# Rows read together: 16 x 128 bytes of nibbles in 128 threads of 16 bytes, or 64 of halves. The loop over them is not
# pipelined: its loads depend on loaded ids, which Triton 3.2 cannot schedule.
ROWS = 16
# Chunks that are read together, so that one does not wait for memory after the other; still added in order.
TOGETHER = 8


@triton.jit(do_not_specialize=["n", "n_chunks"])
def down_kernel(
    coefficients,
    values,
    scales,
    ids,
    counts,
    partial,
    products,
    n,
    n_chunks,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STORAGE: tl.constexpr,
    LISTED: tl.constexpr,
    GATHERED: tl.constexpr,
    ALL_ROWS: tl.constexpr,
):
    """partial[t, chunk, columns of this tile], and from the first tile how many rows were read.

    GATHERED: the coefficient of list entry i lies at its neuron's place, else at i. ALL_ROWS: zeros are added too.
    """
    token = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    tile = tl.program_id(2)
    end = tl.load(counts + token) if LISTED else n
    if chunk * CHUNK >= end:
        return
    columns = tile * COLUMNS + tl.arange(0, COLUMNS)
    block = tile * (COLUMNS // 32) + tl.arange(0, COLUMNS // 32)
    half = tl.arange(0, COLUMNS // 2)
    byte = tile * (COLUMNS // 2) + half
    total = tl.zeros((COLUMNS,), tl.float32)
    low_total = tl.zeros((COLUMNS // 2,), tl.float32)
    high_total = tl.zeros((COLUMNS // 2,), tl.float32)
    n_read = 0
    for start in range(0, CHUNK, ROWS):
        entry = chunk * CHUNK + start + tl.arange(0, ROWS)
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
            factor = h[:, None] * d.to(tl.float32)  # (ROWS, blocks)
            # A row that is not read must not turn an infinite neighbour's 0 into NaN.
            factor = tl.where(wanted, factor, 0.0)[:, :, None]
        if STORAGE == "q4_0":
            packed = tl.load(
                values + rows[:, None] * (N // 2) + byte[None, :],
                mask=reads[:, None] & (byte < N // 2)[None, :],
                other=0,
            )
            packed = tl.reshape(packed, (ROWS, COLUMNS // 32, 16))
            low_total += tl.sum(tl.reshape(low_nibbles(packed) * factor, (ROWS, COLUMNS // 2)), axis=0)
            high_total += tl.sum(tl.reshape(high_nibbles(packed) * factor, (ROWS, COLUMNS // 2)), axis=0)
        else:
            w = tl.load(
                values + rows[:, None] * N + columns[None, :], mask=reads[:, None] & (columns < N)[None, :], other=0
            )
            if STORAGE == "q8_0":
                w = signed_bytes(tl.reshape(w, (ROWS, COLUMNS // 32, 32))) * factor
                total += tl.sum(tl.reshape(w, (ROWS, COLUMNS)), axis=0)
            else:
                total += tl.sum(tl.where(reads[:, None], w.to(tl.float32) * h[:, None], 0.0), axis=0)
    out = partial + (token * n_chunks + chunk) * N
    if STORAGE == "q4_0":
        column = tile * COLUMNS + (half // 16) * 32 + half % 16
        tl.store(out + column, low_total, mask=column < N)
        tl.store(out + column + 16, high_total, mask=column < N)
    else:
        tl.store(out + columns, total, mask=columns < N)
    if tile == 0:
        tl.store(products + token * n_chunks + chunk, n_read)


@triton.jit(do_not_specialize=["n", "n_chunks"])
def combine_kernel(
    partial,
    bias,
    residual,
    y,
    counts,
    n,
    n_chunks,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOGETHER: tl.constexpr,
    LISTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """y = residual + (chunks in order + bias), for a tile of columns."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < N
    end = tl.load(counts + token) if LISTED else n
    total = tl.zeros((COLUMNS,), tl.float32)
    chunk = 0
    while chunk * CHUNK < end:
        for i in tl.static_range(TOGETHER):
            there = inside & ((chunk + i) * CHUNK < end)
            total += tl.load(partial + (token * n_chunks + chunk + i) * N + columns, mask=there, other=0.0)
        chunk += TOGETHER
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        total = tl.load(residual + token * N + columns, mask=inside, other=0.0) + total
    tl.store(y + token * N + columns, total, mask=inside)


def n_chunks(n: int) -> int:
    """Chunks of a list of n neurons."""
    return max(1, launch.cdiv(n, CHUNK))


def down_rows(
    matrix: DeviceRows,
    coefficients: Tensor,
    y: Tensor,
    products: Tensor,
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
    lists: ids int32 (T, rows), counts int32 (T); None for all rows. products: int32 (T, chunks), rows read, a number
    for each chunk that has entries.
    """
    n_tokens, n = coefficients.shape
    device = coefficients.device
    launch.require(coefficients, "coefficients", torch.float32, (n_tokens, matrix.rows), device)
    launch.require(y, "y", torch.float32, (n_tokens, matrix.cols), device)
    launch.require(products, "products", torch.int32, (n_tokens, n_chunks(n)), device)
    launch.require_bias(bias, matrix.cols, device)
    if residual is not None:
        launch.require(residual, "residual", torch.float32, (n_tokens, matrix.cols), device)
    partial = allocate((n_tokens, n_chunks(n), matrix.cols), torch.float32)
    ids, counts = (products, products) if lists is None else lists
    n_tiles = launch.cdiv(matrix.cols, COLUMNS)
    launch.run(
        down_kernel,
        (n_tokens, n_chunks(n), n_tiles),
        warps=4,
        coefficients=coefficients,
        values=matrix.values,
        scales=matrix.scales_or_values,
        ids=ids,
        counts=counts,
        partial=partial,
        products=products,
        n=n,
        n_chunks=n_chunks(n),
        N=matrix.cols,
        CHUNK=CHUNK,
        ROWS=CHUNK if device.type == "cpu" else ROWS,
        COLUMNS=COLUMNS,
        STORAGE=matrix.storage,
        LISTED=lists is not None,
        GATHERED=gathered,
        ALL_ROWS=all_rows,
    )
    launch.run(
        combine_kernel,
        (n_tokens, n_tiles),
        warps=4,
        partial=partial,
        bias=y if bias is None else bias,
        residual=y if residual is None else residual,
        y=y,
        counts=counts,
        n=n,
        n_chunks=n_chunks(n),
        N=matrix.cols,
        CHUNK=CHUNK,
        COLUMNS=COLUMNS,
        TOGETHER=TOGETHER,
        LISTED=lists is not None,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
    )
