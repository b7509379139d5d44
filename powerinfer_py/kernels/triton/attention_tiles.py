# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Attention of a prompt's tokens, tiles of them with tiles of keys through tl.dot, the softmax kept running.

Tokens of a tile may belong to several sequences: a program goes through the slots it meets one after the other, and
only tokens of that slot see its keys. Float16 keys and values are exact in tl.dot; queries and weights are written as
two float16 (`halves`), so that products have float32's precision. Q8_0 rows have 18 significant bits and become two
halves as well, each row with a power of two of its own. Moves a sequence's keys and values once for
each tile and query head.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.attention_rows import require_attention
from powerinfer_py.kernels.triton.cache_tiles import load_cache_rows, row_start
from powerinfer_py.kernels.triton.device_rows import Allocate
from powerinfer_py.kernels.triton.halves import Halves, columns_inside, power_of_two_scale, two_halves
from powerinfer_py.kernels.triton.loops import steps
from powerinfer_py.kernels.triton.weight_rows import is_finite

# 32 x 128 float32 sums are 32 registers of each of 128 threads; of 64 tokens, beside the halves of their queries, 8 to
# 40 bytes were spilled on 8.0 and 8.9, as they were with parts of 32 columns. With 64 tokens and 8 warps Triton 3.6
# gave both warp groups of 9.0 the same rows of scores, but each half the columns of sums, and between the two layouts
# an H200 lost products of the high halves where heads had 20 and 12 columns; up to 32 tokens make no warp groups.
_TOKENS, _TILE, _PART, _WARPS, _STAGES = 32, 32, 64, 4, 3
# Halves of keys and values besides those of queries leave no room for more.
_BLOCK_TOKENS, _BLOCK_TILE, _BLOCK_PART, _BLOCK_WARPS, _BLOCK_STAGES = 32, 16, 32, 8, 2
# Weights lie in [0, 1]; times 2^14 even low halves of small ones are no subnormal float16. Values of q8_0 are brought
# to [2^14, 2^15) and their weights multiplied by the inverse, so that weights up to 2^15 times as large still fit.
_WEIGHT_SCALE = tl.constexpr(16384.0)


@triton.jit
def key_halves(rows, TYPE: tl.constexpr):
    """(high, low, inverse): float16 halves of cache rows (keys, columns), times `inverse` (keys) what the rows are.

    float16 rows are their own high half; low and inverse are then nothing but placeholders.
    """
    if TYPE == "q8_0":
        forth, back = power_of_two_scale(tl.max(tl.abs(rows), axis=1))
        high, low = two_halves(rows * forth[:, None])
    else:
        high, low, back = rows, rows, 1.0
    return high, low, back


@triton.jit
def spread_strange(
    total, v_cache, theirs, position, last, WIDTH_V: tl.constexpr, DIM_V: tl.constexpr, TYPE: tl.constexpr
):
    """`total` with NaN where a token sees a value that is not finite; a position after the other, as it is rare."""
    start = last * 0
    while start <= last:
        place = start + tl.arange(0, 1)
        values = load_cache_rows(v_cache, place, place <= last, 0, WIDTH_V, DIM_V, TYPE)
        strange = is_finite(values) == 0  # (1, columns)
        seen = theirs[:, None] & (place[None, :] <= position[:, None])  # (tokens, 1)
        total = tl.where(seen & strange, float("nan"), total)
        start += 1
    return total


@triton.jit(do_not_specialize=["n_tokens"])
def tiles_kernel(
    high,
    low,
    inverse,
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
    PART: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    K_TYPE: tl.constexpr,
    V_TYPE: tl.constexpr,
):
    """One head of TOKENS tokens, whose queries are `halves.Halves`."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head = tl.program_id(1)
    inside = tokens < n_tokens
    position = tl.load(positions + tokens, mask=inside, other=-1).to(tl.int32)
    slot_of = tl.load(slots + tokens, mask=inside, other=-1).to(tl.int32)
    placed = (position >= 0) & (position < n_ctx) & (slot_of >= 0) & (slot_of < n_slots)
    at_v = tl.arange(0, WIDTH_V)
    at_query = tokens.to(tl.int64) * (HEADS * DIM) + head * DIM
    back = tl.load(inverse + tokens, mask=inside, other=0.0) * scale
    largest = tl.full((TOKENS,), float("-inf"), tl.float32)
    weight = tl.zeros((TOKENS,), tl.float32)
    total = tl.zeros((TOKENS, WIDTH_V), tl.float32)
    first_slot = tl.min(tl.where(placed, slot_of, n_slots), axis=0)
    last_slot = tl.max(tl.where(placed, slot_of, -1), axis=0)
    # No `while`: Triton 3.2 compiles no product in one for 9.0, and no version pipelines its loads.
    for slot in steps(first_slot, last_slot + 1, 1):
        theirs = placed & (slot_of == slot)
        # Of a slot between two others that has no tokens here -1, and nothing is read.
        last = tl.max(tl.where(theirs, position, -1), axis=0)
        first_row = ((first_slot * 0 + slot).to(tl.int64) * KV_HEADS + head // (HEADS // KV_HEADS)) * n_ctx
        keys_of = row_start(k_cache, first_row, DIM, K_TYPE)
        values_of = row_start(v_cache, first_row, DIM_V, V_TYPE)
        n_strange = tl.zeros((TILE,), tl.int32)
        for start in steps(0, last + 1, TILE):
            place = start + tl.arange(0, TILE)
            stored = place <= last
            scores = tl.zeros((TOKENS, TILE), tl.float32)
            for column in tl.static_range(0, WIDTH, PART):
                at = column + tl.arange(0, PART)
                asked = columns_inside(inside, at, DIM, WIDTH)
                query_high = tl.load(high + at_query[:, None] + at[None, :], mask=asked, other=0.0)
                query_low = tl.load(low + at_query[:, None] + at[None, :], mask=asked, other=0.0)
                key, key_low, key_back = key_halves(
                    load_cache_rows(keys_of, place, stored, column, PART, DIM, K_TYPE), K_TYPE
                )
                if K_TYPE == "q8_0":
                    part = tl.dot(query_high, tl.trans(key))
                    part = tl.dot(query_low, tl.trans(key), part)
                    scores += tl.dot(query_high, tl.trans(key_low), part) * key_back[None, :]
                else:
                    scores = tl.dot(query_high, tl.trans(key), scores)
                    scores = tl.dot(query_low, tl.trans(key), scores)
            seen = theirs[:, None] & (place[None, :] <= position[:, None])
            scores = tl.where(seen, scores * back[:, None], float("-inf"))
            new_largest = tl.maximum(largest, tl.max(scores, axis=1))
            # Of a token that has seen nothing yet both are minus infinity.
            base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
            shrink = tl.exp(largest - base)
            p = tl.where(seen, tl.exp(scores - base[:, None]), 0.0)
            weight = weight * shrink + tl.sum(p, axis=1)
            largest = new_largest
            values = load_cache_rows(values_of, place, stored, 0, WIDTH_V, DIM_V, V_TYPE)
            # What a token does not see adds 0 to it, which 0 times NaN is not.
            finite = is_finite(values)
            n_strange += tl.sum((finite == 0).to(tl.int32), axis=1)
            value, value_low, value_back = key_halves(tl.where(finite, values, 0.0), V_TYPE)
            if V_TYPE == "q8_0":  # noqa: SIM108  an expression would have both its sides compiled
                p = p * (value_back * _WEIGHT_SCALE)[None, :]
            else:
                p = p * _WEIGHT_SCALE
            p_high, p_low = two_halves(p)
            total = tl.dot(p_high, value, total * shrink[:, None])
            total = tl.dot(p_low, value, total)
            if V_TYPE == "q8_0":
                total = tl.dot(p_high, value_low, total)
        if tl.sum(n_strange, axis=0) > 0:
            total = spread_strange(total, values_of, theirs, position, last, WIDTH_V, DIM_V, V_TYPE)
    out = y + (tokens.to(tl.int64) * (HEADS * DIM_V) + head * DIM_V)[:, None] + at_v[None, :]
    result = total / (weight * _WEIGHT_SCALE)[:, None]
    tl.store(out, result, mask=inside[:, None] & (at_v < DIM_V)[None, :])


def attend_tiles(
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
    """The same as `attention_rows.attend_rows`, for many tokens."""
    n_tokens, n_head, dim = q.shape
    n_slots, n_head_kv, n_ctx, _ = k_cache.shape
    types = require_attention(q, k_cache, v_cache, slots, positions, y, dim_v)
    halves = Halves(q.view(n_tokens, n_head * dim), allocate)
    tokens, tile, part, warps, stages = _TOKENS, _TILE, _PART, _WARPS, _STAGES
    if max(dim, dim_v) > 128:
        # With three, rows of 256 columns take 100 KB of shared memory; 8.6 and 8.9 have 99.
        stages = 2
    if "q8_0" in types:
        tokens, tile, part, warps, stages = _BLOCK_TOKENS, _BLOCK_TILE, _BLOCK_PART, _BLOCK_WARPS, _BLOCK_STAGES
    launch.run(
        tiles_kernel,
        (launch.cdiv(n_tokens, tokens), n_head),
        warps=warps,
        stages=stages,
        high=halves.high,
        low=halves.low,
        inverse=halves.inverse,
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
        PART=min(part, max(16, launch.next_power_of_2(dim))),
        TOKENS=tokens,
        TILE=tile,
        K_TYPE=types[0],
        V_TYPE=types[1],
    )
