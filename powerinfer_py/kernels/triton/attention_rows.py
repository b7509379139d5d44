# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Attention of one or a few tokens over their sequences' caches, each head's context cut into chunks of `CHUNK`.

A program attends to one chunk, for one query head or (`attention_groups`) for those that share a key head; a second
kernel combines the chunks of a head. Chunks do not depend on the context's length, so the order of sums does not
either. Grids cover the whole context: chunks past a token's position leave at once. Moves keys and values up to each
position once for every key head; where Triton has no tensor cores, for every query head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.attention_groups import BLOCK_WARPS, MAX_ROWS, group_kernel
from powerinfer_py.kernels.triton.cache_tiles import load_cache_rows, require_cache, row_start
from powerinfer_py.kernels.triton.device_rows import Allocate
from powerinfer_py.kernels.triton.overlap import starts_early, wait_for_kernel_ahead

# Of 128 float16: 32 KB a program. With 32 key heads a context of 512 fills 132 multiprocessors, with 8 one of 2,048.
CHUNK = 64
# Positions read together, all of a chunk: 16 KB of float16 keys of 128. 32 at a time, of chunks of 128, took an H200
# 9.6 us for 100 positions of 32 heads instead of 5.6. Of heads that share keys, and of q8_0, fewer stay in registers;
# half as many of wider rows: of 256, q8_0 keys spilled on 9.0.
_WHOLE, _TILE = 64, 32
_FULL_WIDTH = 128
# Chunks combined at once: 8 KB of sums of 128, and 2,048 positions.
_TOGETHER = 16
# More tokens than this share tiles of keys in `attention_tiles`.
MAX_TOKENS = 16


@triton.jit
def chunk_kernel(
    q,
    k_cache,
    v_cache,
    slots,
    positions,
    sums,
    maxima,
    n_slots,
    n_ctx,
    n_chunks,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_V: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    K_TYPE: tl.constexpr,
    V_TYPE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """sums[t, head, chunk, :]: values times exp(score - maximum); maxima: that maximum and the sum of exp."""
    wait_for_kernel_ahead(EARLY)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    chunk = tl.program_id(2)
    position = tl.load(positions + token).to(tl.int32)
    slot = tl.load(slots + token)
    if (chunk * CHUNK > position) | (position >= n_ctx) | (slot < 0) | (slot >= n_slots):
        return
    at = tl.arange(0, WIDTH)
    at_v = tl.arange(0, WIDTH_V)
    query = tl.load(q + (token * HEADS + head) * DIM + at, mask=at < DIM, other=0.0)
    first_row = (slot * KV_HEADS + head // (HEADS // KV_HEADS)) * n_ctx
    k_cache = row_start(k_cache, first_row, DIM, K_TYPE)
    v_cache = row_start(v_cache, first_row, DIM_V, V_TYPE)
    largest = float("-inf")
    weight = 0.0
    total = tl.zeros((WIDTH_V,), tl.float32)
    for start in tl.range(0, CHUNK, TILE, num_stages=STAGES):
        place = chunk * CHUNK + start + tl.arange(0, TILE)
        seen = place <= position
        keys = load_cache_rows(k_cache, place, seen, 0, WIDTH, DIM, K_TYPE).to(tl.float32)
        scores = tl.where(seen, tl.sum(keys * query[None, :], axis=1) * scale, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=0))
        shrink = tl.exp(largest - new_largest)
        p = tl.where(seen, tl.exp(scores - new_largest), 0.0)
        # Rows that are not seen are not read: their values are 0.
        values = load_cache_rows(v_cache, place, seen, 0, WIDTH_V, DIM_V, V_TYPE).to(tl.float32)
        total = total * shrink + tl.sum(p[:, None] * values, axis=0)
        weight = weight * shrink + tl.sum(p, axis=0)
        largest = new_largest
    out = (token * HEADS + head) * n_chunks + chunk
    tl.store(sums + out * DIM_V + at_v, total, mask=at_v < DIM_V)
    tl.store(maxima + out * 2, largest)
    tl.store(maxima + out * 2 + 1, weight)


@triton.jit
def combine_chunks_kernel(
    sums,
    maxima,
    slots,
    positions,
    y,
    n_slots,
    n_ctx,
    n_chunks,
    HEADS: tl.constexpr,
    DIM_V: tl.constexpr,
    WIDTH_V: tl.constexpr,
    CHUNK: tl.constexpr,
    TOGETHER: tl.constexpr,
    EARLY: tl.constexpr,
):
    """y of one head: its chunks, TOGETHER at once, so that one after the other does not wait for memory."""
    wait_for_kernel_ahead(EARLY)
    token = tl.program_id(0).to(tl.int64)
    head = token * HEADS + tl.program_id(1)
    position = tl.load(positions + token)
    slot = tl.load(slots + token)
    end = tl.where((position < n_ctx) & (slot >= 0) & (slot < n_slots), position, -1)
    at = tl.arange(0, WIDTH_V)
    largest = float("-inf")
    weight = 0.0
    total = tl.zeros((WIDTH_V,), tl.float32)
    start = 0
    while start * CHUNK <= end:
        chunk = start + tl.arange(0, TOGETHER)
        there = chunk * CHUNK <= end
        out = head * n_chunks + chunk
        theirs = tl.load(maxima + out * 2, mask=there, other=float("-inf"))
        weights = tl.load(maxima + out * 2 + 1, mask=there, other=0.0)
        part = tl.load(
            sums + out[:, None] * DIM_V + at[None, :], mask=there[:, None] & (at < DIM_V)[None, :], other=0.0
        )
        new_largest = tl.maximum(largest, tl.max(theirs, axis=0))
        shrink = tl.exp(largest - new_largest)
        factor = tl.exp(theirs - new_largest)
        total = total * shrink + tl.sum(part * factor[:, None], axis=0)
        weight = weight * shrink + tl.sum(weights * factor, axis=0)
        largest = new_largest
        start += TOGETHER
    tl.store(y + head * DIM_V + at, total / weight, mask=at < DIM_V)


def attend_rows(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    positions: Tensor,
    scale: float,
    y: Tensor,
    allocate: Allocate,
    dim_v: int,
) -> None:
    """`softmax(scale * q k^T) v` over positions 0 .. positions[t] of the cache: q (T, n_head, head_dim) float32.

    y: float32 (T, n_head * dim_v), NaN for a token whose place is outside the cache.
    """
    n_tokens, n_head, dim = q.shape
    n_slots, n_head_kv, n_ctx, _ = k_cache.shape
    k_type, v_type = require_attention(q, k_cache, v_cache, slots, positions, y, dim_v)
    n_chunks = max(1, launch.cdiv(n_ctx, CHUNK))
    width, width_v = (max(16, launch.next_power_of_2(n)) for n in (dim, dim_v))
    shared: dict[str, Any] = {
        "sums": allocate((n_tokens, n_head, n_chunks, dim_v), torch.float32),
        "maxima": allocate((n_tokens, n_head, n_chunks, 2), torch.float32),
        "slots": slots,
        "positions": positions,
        "n_slots": n_slots,
        "n_ctx": n_ctx,
        "n_chunks": n_chunks,
        "HEADS": n_head,
        "DIM_V": dim_v,
        "WIDTH_V": width_v,
        "CHUNK": CHUNK,
        "EARLY": starts_early(q.device),
    }
    kernel, n_programs, group = chunk_kernel, n_head, n_head // n_head_kv
    tile, warps = _tile(q.device, max(width, width_v), group == 1 and "q8_0" not in (k_type, v_type)), 4
    rows: dict[str, Any] = {}
    if group > 1 and launch.has_tensor_cores(q.device):
        rows["ROWS"] = min(MAX_ROWS, max(16, launch.next_power_of_2(group)))
        kernel, n_programs = group_kernel, n_head_kv * launch.cdiv(group, rows["ROWS"])
        if "q8_0" in (k_type, v_type) and max(width, width_v) > _FULL_WIDTH:
            warps = BLOCK_WARPS
    launch.run(
        kernel,
        (n_tokens, n_programs, n_chunks),
        warps=warps,
        stages=2,
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        scale=float(scale),
        KV_HEADS=n_head_kv,
        DIM=dim,
        WIDTH=width,
        TILE=tile,
        STAGES=2,
        K_TYPE=k_type,
        V_TYPE=v_type,
        **shared,
        **rows,
    )
    launch.run(combine_chunks_kernel, (n_tokens, n_head), warps=4, y=y, TOGETHER=_TOGETHER, **shared)


def _tile(device: torch.device, width: int, whole: bool) -> int:
    """Positions read together of rows so wide; whole: as many as registers hold."""
    if device.type == "cpu":
        # Triton's interpreter takes as long for a tile, whatever its size.
        return CHUNK
    tile = min(CHUNK, _WHOLE if whole else _TILE)
    return tile if width <= _FULL_WIDTH else tile // 2


def require_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, positions: Tensor, y: Tensor, dim_v: int
) -> tuple[str, str]:
    """Names of the caches' types. Raises TypeError or ValueError for tensors that do not fit each other."""
    n_tokens, n_head, dim = q.shape
    n_head_kv = k_cache.shape[1]
    launch.require(q, "q", torch.float32, (n_tokens, n_head, dim), q.device)
    launch.require(slots, "slots", torch.int64, (n_tokens,), q.device)
    launch.require(positions, "positions", torch.int64, (n_tokens,), q.device)
    launch.require(y, "y", torch.float32, (n_tokens, n_head * dim_v), q.device)
    if n_head % n_head_kv:
        raise ValueError(f"{n_head} query heads cannot share {n_head_kv} key heads")
    if v_cache.shape[:3] != k_cache.shape[:3]:
        raise ValueError(f"caches of {tuple(k_cache.shape)} keys and {tuple(v_cache.shape)} values")
    return (
        str(require_cache(k_cache, "k_cache", n_head_kv, dim, q.device)),
        str(require_cache(v_cache, "v_cache", n_head_kv, dim_v, q.device)),
    )
