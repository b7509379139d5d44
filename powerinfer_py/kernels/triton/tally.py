# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Adds what programs counted into one tensor of four numbers: gate, up and down products, fired neurons.

One program adds everything up, in order, so that nothing waits for the device and no atomics are needed. Programs that
had no neurons wrote nothing, and their numbers are not looked at.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch


@triton.jit(
    do_not_specialize=[
        "n_groups",
        "n_programs",
        "n_down_groups",
        "n_chunks",
        "n",
        "list_step",
        "program_rows",
        "chunk_rows",
        "all_downs",
    ]
)
def tally_kernel(
    counted,
    downs,
    list_counts,
    counts,
    n_groups,
    n_programs,
    n_down_groups,
    n_chunks,
    n,
    list_step,
    program_rows,
    chunk_rows,
    all_downs,
    GATED: tl.constexpr,
    LISTED: tl.constexpr,
    STEP: tl.constexpr,
):
    """counts (4) += sums over groups (a token, or a tile of tokens) of what their programs counted."""
    offsets = tl.arange(0, STEP)
    firsts = tl.zeros((STEP,), tl.int64)
    ups = tl.zeros((STEP,), tl.int64)
    fired = tl.zeros((STEP,), tl.int64)
    down = tl.zeros((STEP,), tl.int64)
    group = n_groups * 0
    while group < n_groups:
        end = n
        if LISTED:
            end = tl.load(list_counts + group * list_step)
        start = group * 0
        while start * program_rows < end:
            at = start + offsets
            live = at * program_rows < end
            place = counted + (group.to(tl.int64) * n_programs + at) * 3
            firsts += tl.load(place, mask=live, other=0).to(tl.int64)
            ups += tl.load(place + 1, mask=live, other=0).to(tl.int64)
            fired += tl.load(place + 2, mask=live, other=0).to(tl.int64)
            start += STEP
        group += 1
    group = n_groups * 0
    while group < n_down_groups:
        end = n
        if LISTED:
            end = tl.load(list_counts + group * list_step)
        start = group * 0
        while start * chunk_rows < end:
            at = start + offsets
            live = (at * chunk_rows < end) & (at < n_chunks)
            down += tl.load(downs + group.to(tl.int64) * n_chunks + at, mask=live, other=0).to(tl.int64)
            start += STEP
        group += 1
    n_first = tl.sum(firsts, axis=0)
    if GATED:
        tl.store(counts, tl.load(counts) + n_first)
        tl.store(counts + 1, tl.load(counts + 1) + tl.sum(ups, axis=0))
    else:
        tl.store(counts + 1, tl.load(counts + 1) + n_first)
    tl.store(counts + 2, tl.load(counts + 2) + tl.sum(down, axis=0) + all_downs)
    tl.store(counts + 3, tl.load(counts + 3) + tl.sum(fired, axis=0))


def tally(
    counted: Tensor,
    downs: Tensor | None,
    counts: Tensor,
    *,
    list_counts: Tensor | None,
    n: int,
    program_rows: int,
    chunk_rows: int,
    all_downs: int,
    gated: bool,
) -> None:
    """counted: int32 (groups, programs, 3); downs: int32 (other groups, chunks), or None for `all_downs` products.

    counts: int64 (4), added to. list_counts: int32 (groups) or one for all, None for n everywhere. program_rows,
    chunk_rows: list entries of a program and of a chunk.
    """
    n_groups, n_programs, _ = counted.shape
    launch.require(counts, "counts", torch.int64, (4,), counted.device)
    launch.run(
        tally_kernel,
        (1,),
        warps=4,
        counted=counted,
        downs=counted if downs is None else downs,
        list_counts=counted if list_counts is None else list_counts,
        counts=counts,
        n_groups=n_groups,
        n_programs=n_programs,
        n_down_groups=0 if downs is None else downs.shape[0],
        n_chunks=0 if downs is None else downs.shape[1],
        n=n,
        list_step=0 if list_counts is None or list_counts.shape[0] == 1 else 1,
        program_rows=program_rows,
        chunk_rows=chunk_rows,
        all_downs=all_downs,
        GATED=gated,
        LISTED=list_counts is not None,
        STEP=1024,
    )
