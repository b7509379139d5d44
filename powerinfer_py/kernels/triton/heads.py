# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""RoPE of queries and keys, and the writing of keys and values into the cache: one launch, one program a head.

Slots and positions are read from device memory. A place outside the cache is not written; nothing here can raise, so
whoever chooses places checks them. Product and sum of a rotation are rounded apart, as the reference does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.matrix import RopeTable
from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.cache_tiles import require_cache, store_cache_blocks
from powerinfer_py.kernels.triton.overlap import starts_early, wait_for_kernel_ahead


@triton.jit
def rotated(x, at, cos, sin, DIM: tl.constexpr, PAIRS: tl.constexpr, LAYOUT: tl.constexpr):
    """Values `at` of a head, the first 2 * PAIRS of them rotated. cos, sin: of the position."""
    value = tl.load(x + at, mask=at < DIM, other=0.0)
    if LAYOUT != "none":
        turns = at < 2 * PAIRS
        if LAYOUT == "halves":
            first = at < PAIRS
            partner = tl.where(first, at + PAIRS, at - PAIRS)
            pair = tl.where(first, at, at - PAIRS)
        else:
            first = at % 2 == 0
            partner = tl.where(first, at + 1, at - 1)
            pair = at // 2
        other = tl.load(x + partner, mask=turns, other=0.0)
        c = tl.load(cos + pair, mask=turns, other=0.0)
        s = tl.load(sin + pair, mask=turns, other=0.0)
        turned = tl.where(first, value * c - other * s, other * s + value * c)
        value = tl.where(turns, turned, value)
    return value


@triton.jit
def store_head(
    x,
    cache,
    row,
    cos,
    sin,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    LAYOUT: tl.constexpr,
    TYPE: tl.constexpr,
):
    """One head into one row of the cache. WIDTH: a power of two, at least DIM and for q8_0 32."""
    if TYPE == "q8_0":
        block = tl.arange(0, WIDTH // 32)
        at = block[:, None] * 32 + tl.arange(0, 32)[None, :]
        value = rotated(x, at, cos, sin, DIM, PAIRS, LAYOUT)
        store_cache_blocks(cache, row, value, block, block < DIM // 32, DIM)
    else:
        at = tl.arange(0, WIDTH)
        value = rotated(x, at, cos, sin, DIM, PAIRS, LAYOUT)
        tl.store(cache + row * DIM + at, value.to(tl.float16), mask=at < DIM)


@triton.jit
def heads_kernel(
    q,
    k,
    v,
    q_out,
    k_cache,
    v_cache,
    cos,
    sin,
    slots,
    positions,
    n_slots,
    n_ctx,
    n_positions,
    q_stride,
    k_stride,
    v_stride,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_V: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    PAIRS: tl.constexpr,
    LAYOUT: tl.constexpr,
    K_TYPE: tl.constexpr,
    V_TYPE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Head program_id(1) of a token: first the query heads, then those of keys, then those of values."""
    wait_for_kernel_ahead(EARLY)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(positions + token)
    in_table = (position >= 0) & (position < n_positions)
    turn = tl.where(in_table, position, 0) * PAIRS
    if head < Q_HEADS:
        at = tl.arange(0, WIDTH)
        value = rotated(q + token * q_stride + head * DIM, at, cos + turn, sin + turn, DIM, PAIRS, LAYOUT)
        tl.store(q_out + (token * Q_HEADS + head) * DIM + at, value, mask=at < DIM)
    else:
        slot = tl.load(slots + token)
        if (slot >= 0) & (slot < n_slots) & (position >= 0) & (position < n_ctx):
            if head < Q_HEADS + KV_HEADS:
                head_kv = head - Q_HEADS
                row = (slot * KV_HEADS + head_kv) * n_ctx + position
                x = k + token * k_stride + head_kv * DIM
                store_head(x, k_cache, row, cos + turn, sin + turn, DIM, WIDTH, PAIRS, LAYOUT, K_TYPE)
            else:
                head_kv = head - Q_HEADS - KV_HEADS
                row = (slot * KV_HEADS + head_kv) * n_ctx + position
                x = v + token * v_stride + head_kv * DIM_V
                store_head(x, v_cache, row, cos, sin, DIM_V, WIDTH_V, 0, "none", V_TYPE)


@dataclass(frozen=True, eq=False)
class NewKeys:
    """k: (T, n_head_kv, head_dim), v: (T, n_head_kv, head_dim_v), float32, tokens may lie apart; where they go.

    keys, values: a layer's cache. slots: int64 (T).
    """

    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor
    slots: Tensor


def place_heads(
    positions: Tensor,
    *,
    q: Tensor | None,
    q_out: Tensor | None,
    new: NewKeys | None,
    rope: RopeTable | None,
) -> None:
    """q_out = rope(q), where there is q: (T, n_head, head_dim), tokens may lie apart; rope(k) and v into the cache."""
    device, n_tokens = positions.device, positions.shape[0]
    launch.require(positions, "positions", torch.int64, (n_tokens,), device)
    n_q, dim = (0, 0) if q is None else (q.shape[1], q.shape[2])
    if q is not None and q_out is not None:
        _require_heads(q, "q", (n_tokens, n_q, dim), device)
        launch.require(q_out, "q_out", torch.float32, (n_tokens, n_q, dim), device)
    n_kv, dim_v, types = 0, 1, ("f16", "f16")
    if new is not None:
        n_kv, dim = new.k.shape[1:]
        dim_v = new.v.shape[2]
        _require_heads(new.k, "k", (n_tokens, n_kv, dim), device)
        _require_heads(new.v, "v", (n_tokens, n_kv, dim_v), device)
        launch.require(new.slots, "slots", torch.int64, (n_tokens,), device)
        types = (
            str(require_cache(new.keys, "k_cache", n_kv, dim, device)),
            str(require_cache(new.values, "v_cache", n_kv, dim_v, device)),
        )
    if rope is not None:
        launch.require(rope.cos, "cos", torch.float32, (rope.cos.shape[0], rope.n_rot // 2), device)
        launch.require(rope.sin, "sin", torch.float32, (rope.cos.shape[0], rope.n_rot // 2), device)
    spare = positions
    launch.run(
        heads_kernel,
        (n_tokens, n_q + 2 * n_kv),
        warps=1,
        fusion=False,
        q=spare if q is None else q,
        k=spare if new is None else new.k,
        v=spare if new is None else new.v,
        q_out=spare if q_out is None else q_out,
        k_cache=spare if new is None else new.keys,
        v_cache=spare if new is None else new.values,
        cos=spare if rope is None else rope.cos,
        sin=spare if rope is None else rope.sin,
        slots=spare if new is None else new.slots,
        positions=positions,
        n_slots=0 if new is None else new.keys.shape[0],
        n_ctx=0 if new is None else new.keys.shape[2],
        n_positions=0 if rope is None else rope.cos.shape[0],
        q_stride=0 if q is None else q.stride(0),
        k_stride=0 if new is None else new.k.stride(0),
        v_stride=0 if new is None else new.v.stride(0),
        Q_HEADS=n_q,
        KV_HEADS=n_kv,
        DIM=dim,
        DIM_V=dim_v,
        WIDTH=max(32, launch.next_power_of_2(dim)),
        WIDTH_V=max(32, launch.next_power_of_2(dim_v)),
        PAIRS=0 if rope is None else rope.n_rot // 2,
        LAYOUT="none" if rope is None else "halves" if rope.halves else "adjacent",
        K_TYPE=types[0],
        V_TYPE=types[1],
        EARLY=starts_early(device),
    )


def _require_heads(x: Tensor, name: str, shape: tuple[int, int, int], device: torch.device) -> None:
    launch.require_strided(x, name, torch.float32, shape, device)
    if x.numel() and shape[1] > 1 and x.stride(1) != shape[2]:
        raise ValueError(f"{name} must have the heads of a token side by side")
