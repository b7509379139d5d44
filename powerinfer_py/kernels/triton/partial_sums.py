# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Sums of prompts that were cut into parts, added: where tiles of results alone would leave multiprocessors idle.

Parts follow from shapes and from the length of a list in device memory; they are added in order, without atomics, so
that a sum has one order. How many there may be is `placement.sizes.most_parts`, which the ledger knows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.matrix_vector import finish

# Columns of a program: 8 for each of 128 threads.
_COLUMNS = 1024
# Parts that are read together, so that one does not wait for memory after the other; still added in order.
_TOGETHER = 4


@triton.jit
def part_length(end, parts, STEP: tl.constexpr):
    """Entries of a part of `end` entries: a multiple of STEP, for the last parts perhaps more than there are."""
    return ((end + (STEP - 1)) // STEP + parts - 1) // parts * STEP


@triton.jit(do_not_specialize=["n_tokens", "n", "parts"])
def add_parts_kernel(
    partial,
    count,
    bias,
    residual,
    y,
    n_tokens,
    n,
    parts,
    outputs,
    threshold,
    STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOGETHER: tl.constexpr,
    LISTED: tl.constexpr,
    OUTPUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """y = residual + (parts that have entries, in order, + bias), for COLUMNS columns of a token."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < outputs
    end = tl.load(count) if LISTED else n
    length = part_length(end, parts, STEP)
    total = tl.zeros((COLUMNS,), tl.float32)
    part = parts * 0
    while part * length < end:
        for i in tl.static_range(TOGETHER):
            there = inside & ((part + i) * length < end)
            place = ((part + i).to(tl.int64) * n_tokens + token) * outputs + columns
            total += tl.load(partial + place, mask=there, other=0.0)
        part += TOGETHER
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        total = tl.load(residual + token * outputs + columns, mask=inside, other=0.0) + total
    tl.store(y + token * outputs + columns, finish(total, OUTPUT, threshold), mask=inside)


def add_parts(
    partial: Tensor,
    y: Tensor,
    *,
    n: int,
    step: int,
    count: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    output: str = "sum",
    threshold: float = 0.0,
) -> None:
    """`y = residual + (sum over parts + bias)`, as `matrix_vector.linear` finishes it.

    partial: float32 (parts, T, outputs), written for parts that have entries. n: how many entries were cut into parts
    by `part_length` with `step`; count: int32 (1) in their place.
    """
    parts, n_tokens, outputs = partial.shape
    launch.require(y, "y", torch.uint8 if output == "mask" else torch.float32, (n_tokens, outputs), partial.device)
    launch.run(
        add_parts_kernel,
        (n_tokens, launch.cdiv(outputs, _COLUMNS)),
        warps=4,
        partial=partial,
        count=partial if count is None else count,
        bias=partial if bias is None else bias,
        residual=partial if residual is None else residual,
        y=y,
        n_tokens=n_tokens,
        n=n,
        parts=parts,
        outputs=outputs,
        threshold=float(threshold),
        STEP=step,
        COLUMNS=_COLUMNS,
        TOGETHER=_TOGETHER,
        LISTED=count is not None,
        OUTPUT=output,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
    )
