# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Products of a matrix with one or a few tokens: each program reads its rows once, a token's programs side by side.

A program keeps a token's activations in registers, in the order of the weights' words, and goes through many groups of
rows: made anew for every group they took an H200 more time than the rows of Q4_0.
Moves the matrix's bytes once from DRAM, once more from the L2 cache for every token after the first. What follows a
product (bias, residual, ReLU, comparison with a threshold) is done on the sums while they are in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.device_rows import DeviceRows
from powerinfer_py.kernels.triton.overlap import starts_early, wait_for_kernel_ahead
from powerinfer_py.kernels.triton.weight_rows import activations, row_products, tile_products


@triton.jit
def finish(total, OUTPUT: tl.constexpr, threshold):
    """What is stored of a sum: itself, its ReLU (NaN stays), or whether it reaches the threshold (NaN does)."""
    if OUTPUT == "relu":
        result = tl.where(total < 0.0, 0.0, total)
    elif OUTPUT == "mask":
        result = tl.where(total < threshold, 0, 1).to(tl.uint8)
    else:
        result = total
    return result


@triton.jit
def few_products(
    x,
    values,
    scales,
    bias,
    residual,
    y,
    ids,
    end,
    token,
    n_rows,
    threshold,
    x_0,
    x_1,
    x_2,
    x_3,
    x_4,
    x_5,
    x_6,
    x_7,
    offset,
    TURNS: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
    STORAGE: tl.constexpr,
    OUTPUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    LISTED: tl.constexpr,
):
    """y[t, r] for the groups of ROWS rows that are this program's: in each of TURNS turns one for every program.

    x_0 .. offset: `activations` of the first STEP columns, which are all of them in most models.
    """
    for turn in tl.range(0, TURNS, num_stages=STAGES):
        at = (turn * tl.num_programs(1) + tl.program_id(1)) * ROWS + tl.arange(0, ROWS)
        keep = at < end
        rows = tl.load(ids + token * n_rows + at, mask=keep, other=0).to(tl.int64) if LISTED else at.to(tl.int64)
        if N <= STEP:
            tile = tile_products(
                values, scales, rows, keep, x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset, 0, n_rows,
                N, STEP, STORAGE,
            )  # fmt: skip
            total = tl.sum(tile, axis=1)
        else:
            total = row_products(values, scales, rows, keep, x, n_rows, N, STEP, STORAGE)
        if HAS_BIAS:
            total += tl.load(bias + rows, mask=keep, other=0.0)
        if HAS_RESIDUAL:
            total = tl.load(residual + token * n_rows + rows, mask=keep, other=0.0) + total
        tl.store(y + token * n_rows + rows, finish(total, OUTPUT, threshold), mask=keep)


@triton.jit
def linear_kernel(
    x,
    values,
    scales,
    bias,
    residual,
    y,
    ids,
    counts,
    n_rows,
    threshold,
    TURNS: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
    STORAGE: tl.constexpr,
    OUTPUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    LISTED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """y[t, r] for one token; LISTED: for rows of the token's list alone, at their own places."""
    wait_for_kernel_ahead(EARLY)
    token = tl.program_id(0).to(tl.int64)
    x += token * N
    end = tl.load(counts + token) if LISTED else n_rows
    x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset = activations(x, 0, N, STEP, STORAGE)
    few_products(
        x, values, scales, bias, residual, y, ids, end, token, n_rows, threshold,
        x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset,
        TURNS, N, ROWS, STEP, STAGES, STORAGE, OUTPUT, HAS_BIAS, HAS_RESIDUAL, LISTED,
    )  # fmt: skip


def linear(
    matrix: DeviceRows,
    x: Tensor,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    output: str = "sum",
    threshold: float = 0.0,
    lists: tuple[Tensor, Tensor] | None = None,
) -> None:
    """`y[t, r] = residual[t, r] + dot(row r, x[t]) + bias[r]`, or what `output` makes of it.

    x: float32 (T, cols). y: (T, rows), float32, or uint8 for `output` mask. lists: ids int32 (T, rows) and counts
    int32 (T) of the rows to compute; other elements of y are left alone.
    """
    n_tokens = x.shape[0]
    launch.require(x, "x", torch.float32, (n_tokens, matrix.cols), x.device)
    launch.require(y, "y", torch.uint8 if output == "mask" else torch.float32, (n_tokens, matrix.rows), x.device)
    launch.require_bias(bias, matrix.rows, x.device)
    if residual is not None:
        launch.require(residual, "residual", torch.float32, (n_tokens, matrix.rows), x.device)
    ids, counts = (y, y) if lists is None else lists
    config = launch.row_config("linear", matrix.storage, matrix.rows, matrix.cols, x.device)
    programs = config.programs_for(matrix.rows)
    launch.run(
        linear_kernel,
        (n_tokens, programs),
        warps=config.warps,
        stages=config.stages,
        x=x,
        values=matrix.values,
        scales=matrix.scales_or_values,
        bias=x if bias is None else bias,
        residual=x if residual is None else residual,
        y=y,
        ids=ids,
        counts=counts,
        n_rows=matrix.rows,
        threshold=float(threshold),
        TURNS=launch.cdiv(matrix.rows, programs * config.rows),
        N=matrix.cols,
        ROWS=config.rows,
        STEP=config.step,
        STAGES=config.stages,
        STORAGE=matrix.storage,
        OUTPUT=output,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        LISTED=lists is not None,
        EARLY=starts_early(x.device),
    )


@triton.jit
def projections_kernel(
    x,
    values_0,
    values_1,
    values_2,
    scales_0,
    scales_1,
    scales_2,
    bias_0,
    bias_1,
    bias_2,
    y_0,
    y_1,
    y_2,
    rows_0,
    rows_1,
    rows_2,
    TURNS_0: tl.constexpr,
    TURNS_1: tl.constexpr,
    TURNS_2: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
    STORAGE: tl.constexpr,
    BIAS_0: tl.constexpr,
    BIAS_1: tl.constexpr,
    BIAS_2: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A program's rows of three matrices, one after the other."""
    wait_for_kernel_ahead(EARLY)
    token = tl.program_id(0).to(tl.int64)
    x += token * N
    x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset = activations(x, 0, N, STEP, STORAGE)
    # A call for each matrix: of pointers that are chosen at run time the compiler would not know how they are aligned.
    few_products(
        x, values_0, scales_0, bias_0, x, y_0, x, rows_0, token, rows_0, 0.0,
        x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset,
        TURNS_0, N, ROWS, STEP, STAGES, STORAGE, "sum", BIAS_0, False, False,
    )  # fmt: skip
    few_products(
        x, values_1, scales_1, bias_1, x, y_1, x, rows_1, token, rows_1, 0.0,
        x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset,
        TURNS_1, N, ROWS, STEP, STAGES, STORAGE, "sum", BIAS_1, False, False,
    )  # fmt: skip
    few_products(
        x, values_2, scales_2, bias_2, x, y_2, x, rows_2, token, rows_2, 0.0,
        x_0, x_1, x_2, x_3, x_4, x_5, x_6, x_7, offset,
        TURNS_2, N, ROWS, STEP, STAGES, STORAGE, "sum", BIAS_2, False, False,
    )  # fmt: skip


# Queries, keys and values.
N_PROJECTIONS = 3


def projections(
    matrices: Sequence[DeviceRows], x: Tensor, results: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> None:
    """results[i][t] = matrices[i] x[t] + biases[i], of three matrices of one storage and as many columns.

    One launch: apart, the matrix of one with few rows leaves most of a device idle, and each waits for the one before.
    """
    device, n_tokens = x.device, x.shape[0]
    first = matrices[0]
    launch.require(x, "x", torch.float32, (n_tokens, first.cols), device)
    for matrix, y, bias in zip(matrices, results, biases, strict=True):
        launch.require(y, "y", torch.float32, (n_tokens, matrix.rows), device)
        launch.require_bias(bias, matrix.rows, device)
    config = launch.row_config("linear", first.storage, sum(m.rows for m in matrices), first.cols, device)
    programs = config.programs_for(max(matrix.rows for matrix in matrices))
    arguments: dict[str, Any] = {}
    for i, (matrix, y, bias) in enumerate(zip(matrices, results, biases, strict=True)):
        arguments |= {
            f"values_{i}": matrix.values,
            f"scales_{i}": matrix.scales_or_values,
            f"bias_{i}": x if bias is None else bias,
            f"y_{i}": y,
            f"rows_{i}": matrix.rows,
            f"TURNS_{i}": launch.cdiv(matrix.rows, programs * config.rows),
            f"BIAS_{i}": bias is not None,
        }
    launch.run(
        projections_kernel,
        (n_tokens, programs),
        warps=config.warps,
        stages=config.stages,
        x=x,
        N=first.cols,
        ROWS=config.rows,
        STEP=config.step,
        STAGES=config.stages,
        STORAGE=first.storage,
        **arguments,
        EARLY=starts_early(x.device),
    )
