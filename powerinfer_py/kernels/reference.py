"""Every operation in plain torch: obvious, the definition that fast versions are held against, and what runs where the
native kernels could not be compiled.

Not for speed: weights are turned into float32 when they are used. Up to `KEPT_BYTES` of them are kept, so that a small
model is dequantised once; of a larger one the rest is dequantised anew by every call, a block of rows at a time, and
memory stays bounded. Only rows that are wanted are read.

The same call gives the same bits each time. A token alone goes through products of a matrix and a vector, several at
once through products of matrices, whose order of sums is torch's: unlike those of the native kernels, results of a
token alone and in a batch, or for other numbers of torch's threads, agree to float32 rounding and not bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from powerinfer_py.gguf.quants import dequantize_rows
from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import AttentionBlock, FeedForwardBlock, FeedForwardResult, LayerCache, Predictor
from powerinfer_py.kernels.cache_rows import cache_type_of, decode_rows, encode_rows
from powerinfer_py.kernels.composition import attend, run_feed_forward, run_part
from powerinfer_py.kernels.feed_forward import predict
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix, RopeTable

# Float32 weights kept by one `ReferenceKernels`: those of a model of 268 million weights.
KEPT_BYTES = 1 << 30
# Weights dequantised at once: 1 MiB of float32 and the temporary arrays of the same size stay in the cache. Measured on
# Q4_0: 655 million weights a second this way, 529 with the whole matrix at once.
BLOCK_WEIGHTS = 1 << 18


class KeptWeights:
    """The memory that is left for float32 weights."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes

    def allocate(self, rows: int, cols: int) -> npt.NDArray[np.float32] | None:
        """An array (rows, cols) out of what is left, or None where that does not suffice."""
        if 4 * rows * cols > self._n_bytes:
            return None
        self._n_bytes -= 4 * rows * cols
        # Pages that no row is written to take no memory.
        return np.empty((rows, cols), np.float32)


class ReferenceWeights:
    """What `Matrix.handle` holds here: the stored rows, and as float32 those used so far where `kept` had room."""

    def __init__(
        self, ggml_type: GGMLType, rows: int, cols: int, data: npt.NDArray[np.uint8], kept: KeptWeights
    ) -> None:
        self._type = ggml_type
        self._shape = (rows, cols)
        self._data = data
        self._step = max(1, BLOCK_WEIGHTS // max(cols, 1))
        self._is_kept = np.zeros(rows, dtype=np.bool_)
        self._room = kept

    @cached_property
    def _kept(self) -> npt.NDArray[np.float32] | None:
        return self._room.allocate(*self._shape)

    def some(self, ids: Tensor) -> Tensor:
        """Rows `ids` (n) alone: (n, cols) float32."""
        if self._kept is None:
            return torch.from_numpy(self._dequantised(ids.numpy()))
        self._keep(self._kept, ids.numpy())
        return torch.from_numpy(self._kept)[ids]

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, as consecutive ranges with their float32 values; one range where they are kept."""
        rows = self._shape[0]
        if self._kept is not None:
            self._keep(self._kept, np.arange(rows))
            yield slice(0, rows), torch.from_numpy(self._kept)
            return
        for begin in range(0, rows, self._step):
            part = slice(begin, min(begin + self._step, rows))
            yield part, torch.from_numpy(self._dequantised(np.arange(part.start, part.stop)))

    def _keep(self, kept: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]) -> None:
        new = np.unique(ids[~self._is_kept[ids]])
        for begin in range(0, new.size, self._step):
            part = new[begin : begin + self._step]
            kept[part] = self._dequantised(part)
        self._is_kept[new] = True

    def _dequantised(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return dequantize_rows(self._data, self._type, *self._shape, ids)


class ReferenceKernels(Kernels):
    """The operations of `Kernels` in torch. It owns no threads; torch uses its own.

    notice: a line for the user where nobody asked for these kernels, else None.
    """

    name = "torch"

    def __init__(self, notice: str | None = None) -> None:
        self.notice = notice
        self._kept = KeptWeights(KEPT_BYTES)

    def matrix(
        self,
        name: str,
        ggml_type: GGMLType,
        rows: int,
        cols: int,
        data: npt.NDArray[np.uint8],
        *,
        pack: bool = False,  # noqa: ARG002  the order of the file is the only one here
        copy: bool = False,  # noqa: ARG002  torch reads a file's pages as they are
    ) -> Matrix:
        return Matrix(name, ggml_type, rows, cols, data, ReferenceWeights(ggml_type, rows, cols, data, self._kept))

    def linear(self, matrix: Matrix, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = torch.empty(x.shape[0], matrix.rows)
        for part, rows in matrix.handle.blocks():
            y[:, part] = torch.mv(rows, x[0]) if x.shape[0] == 1 else x @ rows.T
        return y if bias is None else y + bias

    def linear_masked(self, matrix: Matrix, x: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[Tensor, int]:
        y = torch.zeros(x.shape[0], matrix.rows)
        union, rows = _rows_of_any(matrix, mask)
        count = 0
        for t in range(x.shape[0]):
            at = mask[t, union].nonzero().flatten()
            wanted = union[at]
            products = torch.mv(rows[at], x[t])
            y[t, wanted] = products if bias is None else products + bias[wanted]
            count += products.numel()
        return y, count

    def accumulate_rows(
        self, matrix: Matrix, coefficients: Tensor, bias: Tensor | None = None, *, all_rows: bool = False
    ) -> tuple[Tensor, int]:
        y = torch.zeros(coefficients.shape[0], matrix.cols)
        if all_rows:
            for part, rows in matrix.handle.blocks():
                y += coefficients[:, part] @ rows
            return (y if bias is None else y + bias), coefficients.numel()
        union, rows = _rows_of_any(matrix, coefficients != 0)
        count = 0
        for t in range(coefficients.shape[0]):
            # Its own rows alone: 0 times another token's row is NaN where the row is not finite.
            at = coefficients[t, union].nonzero().flatten()
            y[t] = torch.mv(rows[at].T, coefficients[t, union[at]])
            count += at.numel()
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
        n_tokens, n_head, head_dim = q.shape
        n_head_kv = k.shape[1]
        k_cache[slots, :, positions] = encode_rows(k, cache_type_of(k_cache))
        v_cache[slots, :, positions] = encode_rows(v, cache_type_of(v_cache))
        shared = n_head // n_head_kv
        grouped = q.reshape(n_tokens, n_head_kv, shared, head_dim)
        y = torch.empty(n_tokens, n_head_kv, shared, v.shape[2])
        for t in range(n_tokens):
            # Positions that it does not see are left out, not masked: 0 times a NaN there would reach the token.
            seen = slice(0, int(positions[t]) + 1)
            keys = decode_rows(k_cache[slots[t], :, seen], head_dim)
            values = decode_rows(v_cache[slots[t], :, seen], v.shape[2])
            scores = torch.bmm(grouped[t], keys.transpose(1, 2)) * scale  # (n_head_kv, shared, n)
            y[t] = torch.bmm(torch.softmax(scores, dim=-1), values)
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
        self,
        block: FeedForwardBlock,
        x: Tensor,
        residual: Tensor,
        *,
        observe: bool = False,
        counts: Tensor | None = None,
    ) -> FeedForwardResult:
        return run_feed_forward(self, block, x, residual, observe, counts)

    def predict(self, predictor: Predictor, x: Tensor, threshold: float) -> Tensor:
        return predict(self, predictor.fc1, predictor.fc2, x, threshold)

    def feed_forward_part(
        self,
        block: FeedForwardBlock,
        h: Tensor,
        mask: Tensor | None,
        *,
        observe: bool = False,
        counts: Tensor | None = None,
    ) -> FeedForwardResult:
        return run_part(self, block, h, mask, observe, counts)


def _rows_of_any(matrix: Matrix, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (n) and values (n, cols) of the rows that any token wants; mask: (T, rows)."""
    union = mask.any(dim=0).nonzero().flatten()
    return union, matrix.handle.some(union)


def _require_indices(ids: Tensor, end: int, name: str) -> None:
    outside = ids[(ids < 0) | (ids >= end)]
    if outside.numel():
        raise IndexError(f"{name} {int(outside[0])} is not in [0, {end})")
