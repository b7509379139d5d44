# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Attention of a prompt's tokens, tiles of them with tiles of keys through tl.dot, the softmax kept running.

Tokens of a tile may belong to several sequences: a program goes through the slots it meets one after the other, and
only tokens of that slot see its keys. Float16 keys and values are exact in tl.dot; queries and weights are written as
two float16 (`halves`), so that products have float32's precision. Q8_0 rows have 18 significant bits and are
multiplied in float32 by three TF32 products. Moves a sequence's keys and values once for each tile and query head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.attention_rows import require_attention
from powerinfer_py.kernels.triton.cache_tiles import load_cache_rows
from powerinfer_py.kernels.triton.halves import power_of_two_scale, two_halves

# 32 tokens x 128 float32 sums are 32 registers of 128 threads; tiles of 64 tokens took all 255 and spilled.
_TOKENS = 32
_TILE = 32
_NO_SLOT = tl.constexpr(1 << 40)
# Weights lie in [0, 1]; times 2^14 the low half of the smallest is no subnormal float16.
_WEIGHT_SCALE = tl.constexpr(16384.0)


@triton.jit
def add_weighted(total, p, seen, values, TYPE: tl.constexpr):
    """total + p (tokens, keys) times values (keys, columns); what a token does not see adds 0 to it, NaN included."""
    finite = (values - values) == 0.0
    clean = tl.where(finite, values, 0.0)
    if TYPE == "q8_0":
        total = tl.dot(p, clean.to(tl.float32), total, input_precision="tf32x3")
    else:
        high, low = two_halves(p)
        clean = clean.to(tl.float16)
        total = tl.dot(high, clean, total)
        total = tl.dot(low, clean, total)
    if tl.sum(tl.sum((finite == 0).to(tl.int32), axis=1), axis=0) > 0:
        touched = tl.dot(seen.to(tl.float16), (finite == 0).to(tl.float16))
        total = tl.where(touched > 0.0, float("nan"), total)
    return total


@triton.jit
def tiles_kernel(
    q,
    k_cache,
    v_cache,
    slots,
    positions,
    y,
    n_tokens,
    n_slots,
    n_ctx,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_V: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    K_TYPE: tl.constexpr,
    V_TYPE: tl.constexpr,
):
    """One head of TOKENS tokens."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    head = tl.program_id(1)
    inside = tokens < n_tokens
    position = tl.load(positions + tokens, mask=inside, other=-1)
    slot_of = tl.load(slots + tokens, mask=inside, other=-1)
    left = (position >= 0) & (position < n_ctx) & (slot_of >= 0) & (slot_of < n_slots)
    at = tl.arange(0, WIDTH)
    at_v = tl.arange(0, WIDTH_V)
    query = tl.load(
        q + (tokens[:, None] * HEADS + head) * DIM + at[None, :], mask=inside[:, None] & (at < DIM)[None, :], other=0.0
    )
    forth, back = power_of_two_scale(tl.max(tl.abs(query), axis=1))
    query_high, query_low = two_halves(query * forth[:, None])
    largest = tl.full((TOKENS,), float("-inf"), tl.float32)
    weight = tl.zeros((TOKENS,), tl.float32)
    total = tl.zeros((TOKENS, WIDTH_V), tl.float32)
    slot = tl.min(tl.where(left, slot_of, _NO_SLOT), axis=0)
    while slot < _NO_SLOT:
        theirs = left & (slot_of == slot)
        last = tl.max(tl.where(theirs, position, -1), axis=0)
        first_row = (slot * KV_HEADS + head // (HEADS // KV_HEADS)) * n_ctx
        start = last * 0
        while start <= last:
            place = start + tl.arange(0, TILE)
            stored = place <= last
            keys = tl.trans(load_cache_rows(k_cache, first_row + place, stored, at, DIM, K_TYPE))
            if K_TYPE == "q8_0":
                scores = tl.dot(query, keys, input_precision="tf32x3") * scale
            else:
                scores = tl.dot(query_high, keys)
                scores = tl.dot(query_low, keys, scores) * (back * scale)[:, None]
            seen = theirs[:, None] & (place[None, :] <= position[:, None])
            scores = tl.where(seen, scores, float("-inf"))
            new_largest = tl.maximum(largest, tl.max(scores, axis=1))
            # Of a token that has seen nothing yet both are minus infinity.
            base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
            shrink = tl.exp(largest - base)
            p = tl.where(seen, tl.exp(scores - base[:, None]) * _WEIGHT_SCALE, 0.0)
            values = load_cache_rows(v_cache, first_row + place, stored, at_v, DIM_V, V_TYPE)
            total = add_weighted(total * shrink[:, None], p, seen, values, V_TYPE)
            weight = weight * shrink + tl.sum(p, axis=1)
            largest = new_largest
            start += TILE
        left = left & (slot_of != slot)
        slot = tl.min(tl.where(left, slot_of, _NO_SLOT), axis=0)
    out = y + (tokens[:, None] * HEADS + head) * DIM_V + at_v[None, :]
    tl.store(out, total / weight[:, None], mask=inside[:, None] & (at_v < DIM_V)[None, :])


def attend_tiles(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    positions: Tensor,
    scale: float,
    y: Tensor,
    dim_v: int,
) -> None:
    """The same as `attention_rows.attend_rows`, for many tokens."""
    n_tokens, n_head, dim = q.shape
    n_slots, n_head_kv, n_ctx, _ = k_cache.shape
    types = require_attention(q, k_cache, v_cache, slots, positions, y, dim_v)
    launch.run(
        tiles_kernel,
        (launch.cdiv(n_tokens, _TOKENS), n_head),
        warps=4,
        stages=2,
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        slots=slots,
        positions=positions,
        y=y,
        n_tokens=n_tokens,
        n_slots=n_slots,
        n_ctx=n_ctx,
        scale=float(scale),
        HEADS=n_head,
        KV_HEADS=n_head_kv,
        DIM=dim,
        DIM_V=dim_v,
        WIDTH=max(16, launch.next_power_of_2(dim)),
        WIDTH_V=max(16, launch.next_power_of_2(dim_v)),
        TOKENS=_TOKENS,
        TILE=_TILE,
        K_TYPE=types[0],
        V_TYPE=types[1],
    )
