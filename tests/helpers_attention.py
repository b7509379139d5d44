"""Queries, keys and values of a forward, a cache full of NaN, and what attention over it gives in float64."""

from __future__ import annotations

import numpy as np
import torch
from helpers_kernels import ROUNDOFF
from torch import Tensor

from powerinfer_py.config import CacheType
from powerinfer_py.kernels.cache_rows import cache_layout, decode_rows
from powerinfer_py.kernels.interface import Kernels

N_CTX = 37
N_SLOTS = 3
Types = tuple[CacheType, CacheType]
HALVES: Types = (CacheType.F16, CacheType.F16)
TYPES: list[Types] = [(k, v) for k in CacheType for v in CacheType]


def unwritten(cache_type: CacheType, heads_kv: int, dim: int) -> Tensor:
    """A cache all of whose bytes are 0xff: NaN as float16 values, and as the scales of blocks."""
    dtype, n = cache_layout(cache_type, dim)
    n_bytes = n * dtype.itemsize
    return torch.full((N_SLOTS, heads_kv, N_CTX, n_bytes), 255, dtype=torch.uint8).view(dtype)


class Case:
    """Random queries, keys and values of one forward, and a cache full of NaN where nothing was stored."""

    def __init__(
        self, n_tokens: int, heads: int, heads_kv: int, dim: int, dim_v: int, types: Types = HALVES, seed: int = 0
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        self.q = torch.randn(n_tokens, heads, dim, generator=random)
        self.k = torch.randn(n_tokens, heads_kv, dim, generator=random)
        self.v = torch.randn(n_tokens, heads_kv, dim_v, generator=random)
        self.k_cache = unwritten(types[0], heads_kv, dim)
        self.v_cache = unwritten(types[1], heads_kv, dim_v)
        self.scale = dim**-0.5

    def run(self, kernels: Kernels, slots: Tensor, positions: Tensor) -> Tensor:
        return self.part(kernels, slice(None), slots, positions)

    def part(self, kernels: Kernels, which: slice, slots: Tensor, positions: Tensor) -> Tensor:
        return kernels.attention(
            self.q[which].contiguous(),
            self.k[which].contiguous(),
            self.v[which].contiguous(),
            self.k_cache,
            self.v_cache,
            slots[which].contiguous(),
            positions[which].contiguous(),
            self.scale,
        )


def expected(case: Case, slots: Tensor, positions: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The result in float64 over the rounded keys and values, and a bound on the error of each element."""
    q, dim = case.q.numpy().astype(np.float64), case.q.shape[2]
    shared = q.shape[1] // case.k.shape[1]
    y = np.zeros((*q.shape[:2], case.v.shape[2]))
    bound = np.zeros_like(y)
    for t in range(q.shape[0]):
        seen = slice(0, int(positions[t]) + 1)
        n = seen.stop
        for head in range(q.shape[1]):
            place = (int(slots[t]), head // shared, seen)
            # Exact: a byte times a float16 fits float32.
            keys = decode_rows(case.k_cache[place], dim).numpy().astype(np.float64)
            values = decode_rows(case.v_cache[place], case.v.shape[2]).numpy().astype(np.float64)
            scores = keys @ q[t, head] * case.scale
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            y[t, head] = weights @ values
            # A score off by e changes its weight by a factor e^(2e) at most (its own and the sum's); exp, the sum of n
            # weights, the division, and n products added in order follow.
            score_error = (dim / 4 + 25) * ROUNDOFF * (np.abs(keys) @ np.abs(q[t, head])).max() * case.scale
            relative = np.expm1(2 * score_error) + (2 * n + 30) * ROUNDOFF
            bound[t, head] = relative * (weights @ np.abs(values)) * 1.01
    return y.reshape(q.shape[0], -1), bound.reshape(q.shape[0], -1)
