# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""`attention_rows.chunk_kernel` for the query heads that share a key head: a program for the whole group.

The group's queries are the rows of a tile for tl.dot, which has 16 rows at least: products made in vain cost tensor
cores nothing that memory would not wait for. Queries and weights are two float16 each (`halves`), so that products have
float32's precision. Quants of q8_0 keys are exact in float16, and the scales of blocks multiply sums of 32 products;
values become two halves. Moves keys and values up to each position once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from powerinfer_py.kernels.triton.cache_tiles import load_cache_blocks, load_cache_rows, row_start
from powerinfer_py.kernels.triton.halves import power_of_two_scale, two_halves
from powerinfer_py.kernels.triton.overlap import wait_for_kernel_ahead

# Weights lie in [0, 1]: times 2^14 even low halves of small ones are no subnormal float16.
_WEIGHT_SCALE = tl.constexpr(16384.0)
# Query heads of a program: more of them (Falcon-7B has 71 for one key head) are several programs'.
MAX_ROWS = 32
# Of q8_0 rows wider than 128: with 4 warps they spilled on 9.0; narrower ones spilled with 8 on 8.0 and 8.9.
BLOCK_WARPS = 8


@triton.jit
def load_queries(q, of_group, mine, column, COLUMNS: tl.constexpr, DIM: tl.constexpr):
    """COLUMNS columns of the queries `of_group` (rows) that are `mine`, float32 (rows, COLUMNS). q: of the group."""
    at = column + tl.arange(0, COLUMNS)
    return tl.load(q + of_group[:, None] * DIM + at[None, :], mask=mine[:, None] & (at < DIM)[None, :], other=0.0)


@triton.jit
def block_scores(q, of_group, mine, forth, k_cache, place, seen, DIM: tl.constexpr, TILE: tl.constexpr):
    """Products (queries, positions) of a group's queries and q8_0 keys, a block of 32 columns after the other."""
    scores = tl.zeros((forth.shape[0], TILE), tl.float32)
    for column in tl.static_range(0, DIM, 32):
        # From the L1 cache again for every tile: all blocks at once would not stay in registers.
        query_high, query_low = two_halves(load_queries(q, of_group, mine, column, 32, DIM) * forth[:, None])
        quants, d = load_cache_blocks(k_cache, place, seen, column, 32, DIM)
        key = tl.trans(tl.reshape(quants, (TILE, 32)).to(tl.float16))
        part = tl.dot(query_high, key)
        part = tl.dot(query_low, key, part)
        scores += part * tl.reshape(d, (TILE,))[None, :]
    return scores


@triton.jit
def group_kernel(
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
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    K_TYPE: tl.constexpr,
    V_TYPE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """sums[t, head, chunk, :], maxima: as of `chunk_kernel`, for ROWS or fewer heads of one key head."""
    wait_for_kernel_ahead(EARLY)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    PROGRAMS: tl.constexpr = (GROUP + ROWS - 1) // ROWS
    token = tl.program_id(0).to(tl.int64)
    head_kv = tl.program_id(1) // PROGRAMS
    chunk = tl.program_id(2)
    position = tl.load(positions + token).to(tl.int32)
    slot = tl.load(slots + token)
    if (chunk * CHUNK > position) | (position >= n_ctx) | (slot < 0) | (slot >= n_slots):
        return
    of_group = tl.program_id(1) % PROGRAMS * ROWS + tl.arange(0, ROWS)
    mine = of_group < GROUP
    # From here places are counted in int32: a group's are small, and the loop keeps them in fewer registers.
    first_head = token * HEADS + head_kv * GROUP
    q += first_head * DIM
    query = load_queries(q, of_group, mine, 0, WIDTH, DIM)
    forth, back = power_of_two_scale(tl.max(tl.abs(query), axis=1))
    query_high, query_low = two_halves(query * forth[:, None])
    back = back * scale
    first_row = (slot * KV_HEADS + head_kv) * n_ctx
    k_cache = row_start(k_cache, first_row, DIM, K_TYPE)
    v_cache = row_start(v_cache, first_row, DIM_V, V_TYPE)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, WIDTH_V), tl.float32)
    for start in tl.range(0, CHUNK, TILE, num_stages=STAGES):
        place = chunk * CHUNK + start + tl.arange(0, TILE)
        seen = place <= position
        if K_TYPE == "q8_0":
            scores = block_scores(q, of_group, mine, forth, k_cache, place, seen, DIM, TILE)
        else:
            key = tl.trans(load_cache_rows(k_cache, place, seen, 0, WIDTH, DIM, K_TYPE))
            scores = tl.dot(query_high, key)
            scores = tl.dot(query_low, key, scores)
        scores = tl.where(seen[None, :], scores * back[:, None], float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        shrink = tl.exp(largest - new_largest)
        p = tl.where(seen[None, :], tl.exp(scores - new_largest[:, None]), 0.0)
        weight = weight * shrink + tl.sum(p, axis=1)
        largest = new_largest
        total = total * shrink[:, None]
        p_high, p_low = two_halves(p * _WEIGHT_SCALE)
        # Rows that are not seen are not read: their values are 0.
        values = load_cache_rows(v_cache, place, seen, 0, WIDTH_V, DIM_V, V_TYPE)
        if V_TYPE == "q8_0":
            to_halves, from_halves = power_of_two_scale(tl.max(tl.max(tl.abs(values), axis=1), axis=0))
            value, value_low = two_halves(values * to_halves)
            part = tl.dot(p_high, value)
            part = tl.dot(p_low, value, part)
            part = tl.dot(p_high, value_low, part)
            total += part * from_halves
        else:
            total = tl.dot(p_high, values, total)
            total = tl.dot(p_low, values, total)
    at_v = tl.arange(0, WIDTH_V)
    first_out = first_head * n_chunks + chunk
    sums += first_out * DIM_V
    maxima += first_out * 2
    out = of_group * n_chunks
    kept = mine[:, None] & (at_v < DIM_V)[None, :]
    tl.store(sums + out[:, None] * DIM_V + at_v[None, :], total * (1.0 / _WEIGHT_SCALE), mask=kept)
    tl.store(maxima + out * 2, largest, mask=mine)
    tl.store(maxima + out * 2 + 1, weight, mask=mine)
