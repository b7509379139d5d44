"""Every operation in plain torch: slow, obvious, the definition that fast versions are held against.

Not for speed: weights are kept as float32 once used, tokens are taken one at a time. Each token's result comes from
operations on that token alone, so it does not depend on the batch it is in.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from powerinfer_py.gguf.quants import dequantize, dequantize_rows
from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import (
    AttentionBlock,
    FeedForwardBlock,
    FeedForwardResult,
    LayerCache,
    attend,
    run_feed_forward,
)
from powerinfer_py.kernels.interface import Kernels, Matrix, RopeTable


class ReferenceWeights:
    """What `Matrix.handle` holds here: the stored rows, and all of them as float32 once they are asked for."""

    def __init__(self, ggml_type: GGMLType, rows: int, cols: int, data: npt.NDArray[np.uint8]) -> None:
        self._type = ggml_type
        self._shape = (rows, cols)
        self._data = data

    @cached_property
    def values(self) -> Tensor:
        """(rows, cols) float32."""
        return torch.from_numpy(dequantize(self._data, self._type, *self._shape))

    def some(self, ids: Tensor) -> Tensor:
        """Rows `ids` (n) alone: (n, cols) float32."""
        return torch.from_numpy(dequantize_rows(self._data, self._type, *self._shape, ids.numpy()))


class ReferenceKernels(Kernels):
    """The operations of `Kernels` in torch. It owns no threads; torch uses its own."""

    name = "torch"

    def matrix(self, name: str, ggml_type: GGMLType, rows: int, cols: int, data: npt.NDArray[np.uint8]) -> Matrix:
        return Matrix(name, ggml_type, rows, cols, data, ReferenceWeights(ggml_type, rows, cols, data))

    def linear(self, matrix: Matrix, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = torch.zeros(x.shape[0], matrix.rows)
        for t in range(x.shape[0]):
            y[t] = matrix.handle.values @ x[t]
        return y if bias is None else y + bias

    def linear_masked(self, matrix: Matrix, x: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[Tensor, int]:
        y = torch.zeros(x.shape[0], matrix.rows)
        count = 0
        for t in range(x.shape[0]):
            wanted = mask[t].nonzero().flatten()
            products = matrix.handle.values[wanted] @ x[t]
            y[t, wanted] = products if bias is None else products + bias[wanted]
            count += products.numel()
        return y, count

    def accumulate_rows(
        self, matrix: Matrix, coefficients: Tensor, bias: Tensor | None = None, *, all_rows: bool = False
    ) -> tuple[Tensor, int]:
        y = torch.zeros(coefficients.shape[0], matrix.cols)
        count = 0
        for t in range(coefficients.shape[0]):
            added = torch.arange(matrix.rows) if all_rows else coefficients[t].nonzero().flatten()
            rows = matrix.handle.values[added]
            y[t] = coefficients[t, added] @ rows
            count += rows.shape[0]
        return (y if bias is None else y + bias), count

    def rows(self, matrix: Matrix, ids: Tensor) -> Tensor:
        _require_indices(ids, matrix.rows, "row")
        values: Tensor = matrix.handle.some(ids)
        return values

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        y = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + eps) * weight
        return y if bias is None else y + bias

    def rope(self, x: Tensor, positions: Tensor, table: RopeTable) -> Tensor:
        _require_indices(positions, table.cos.shape[0], "position")
        half = table.n_rot // 2
        cos, sin = table.cos[positions][:, None, :], table.sin[positions][:, None, :]  # (T, 1, half)
        first = slice(0, half) if table.halves else slice(0, table.n_rot, 2)
        second = slice(half, table.n_rot) if table.halves else slice(1, table.n_rot, 2)
        y = x.clone()
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., first] * sin + x[..., second] * cos
        return y

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slots: Tensor,
        positions: Tensor,
        scale: float,
    ) -> Tensor:
        _require_indices(slots, k_cache.shape[0], "slot")
        _require_indices(positions, k_cache.shape[2], "position")
        n_tokens, n_head, _ = q.shape
        shared = n_head // k.shape[1]
        for t in range(n_tokens):
            k_cache[slots[t], :, positions[t]] = k[t].half()
            v_cache[slots[t], :, positions[t]] = v[t].half()
        y = torch.zeros(n_tokens, n_head, v.shape[2])
        for t in range(n_tokens):
            seen = slice(0, int(positions[t]) + 1)
            keys = k_cache[slots[t], :, seen].float().repeat_interleave(shared, dim=0)  # (n_head, n, head_dim)
            values = v_cache[slots[t], :, seen].float().repeat_interleave(shared, dim=0)  # (n_head, n, head_dim_v)
            scores = torch.einsum("hd,hnd->hn", q[t], keys) * scale
            y[t] = torch.einsum("hn,hnd->hd", torch.softmax(scores, dim=-1), values)
        return y.reshape(n_tokens, math.prod(y.shape[1:]))

    def attention_block(
        self,
        block: AttentionBlock,
        x: Tensor,
        residual: Tensor,
        cache: LayerCache,
        slots: Tensor,
        positions: Tensor,
        rope: RopeTable | None,
    ) -> Tensor:
        return attend(self, block, x, residual, cache, slots, positions, rope)

    def feed_forward_block(
        self, block: FeedForwardBlock, x: Tensor, residual: Tensor, *, observe: bool = False
    ) -> FeedForwardResult:
        return run_feed_forward(self, block, x, residual, observe)


def _require_indices(ids: Tensor, end: int, name: str) -> None:
    outside = ids[(ids < 0) | (ids >= end)]
    if outside.numel():
        raise IndexError(f"{name} {int(outside[0])} is not in [0, {end})")
