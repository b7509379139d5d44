# ruff: noqa: D102  every operation is described once, in kernels/interface.py
"""The operations of `kernels.interface` on one device, each a few launches of Triton kernels.

Tensors live on that device; memory for results and for what lies between comes from `allocate`, so that an executor can
hand out a block it has reserved, at the same addresses in every step. Nothing waits for the device, except where a
caller asks for numbers instead of giving a tensor to count in. Ids, slots and positions in device memory cannot be
checked without waiting: a place outside the cache is not written and gives NaN; on CPU tensors (Triton's interpreter)
they raise as elsewhere.

Launches a layer, for one token, with a predictor and all neurons here: attention 6 (norm, projections, heads, chunks,
their combination, output with the residual), 8 where projections have several storages; FFN 7 (two for the predictor,
norm, list, hidden, down, its combination with the residual); 13 in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import (
    AttentionBlock,
    FeedForwardBlock,
    FeedForwardResult,
    LayerCache,
    Linear,
    Norm,
    Predictor,
)
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix, RopeTable
from powerinfer_py.kernels.triton import launch, lists
from powerinfer_py.kernels.triton.attention_rows import MAX_TOKENS, attend_rows
from powerinfer_py.kernels.triton.attention_tiles import attend_tiles
from powerinfer_py.kernels.triton.device_rows import Allocate, DeviceRows, fill, placed, row_parts, upload
from powerinfer_py.kernels.triton.down_rows import down_rows
from powerinfer_py.kernels.triton.feed_forward import feed_forward
from powerinfer_py.kernels.triton.halves import Halves
from powerinfer_py.kernels.triton.heads import NewKeys, place_heads
from powerinfer_py.kernels.triton.lookup import lookup
from powerinfer_py.kernels.triton.matrix_product import product
from powerinfer_py.kernels.triton.matrix_vector import N_PROJECTIONS, linear, projections
from powerinfer_py.kernels.triton.norms import norm

_NO_DATA = np.zeros(0, np.uint8)


class TritonKernels(Kernels):
    """The operations of `Kernels` on `device`.

    allocate: gives memory for results, for intermediate values and, one call a matrix, for what `matrix` makes, aligned
    to 16 bytes; None: whatever torch gives.
    """

    name = "triton"

    def __init__(self, device: torch.device, allocate: Allocate | None = None) -> None:
        self.device = device
        self._allocate = allocate or self._new

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def matrix(
        self,
        name: str,
        ggml_type: GGMLType,
        rows: int,
        cols: int,
        data: npt.NDArray[np.uint8],
        *,
        pack: bool = False,  # noqa: ARG002  there is one order of rows on a device
        copy: bool = False,  # noqa: ARG002  and everything there is a copy
    ) -> Matrix:
        """As in the interface, but copied to the device: `data` is not looked at again."""
        return Matrix(name, ggml_type, rows, cols, data, upload(ggml_type, rows, cols, data, self._allocate))

    def row_parts(self, ggml_type: GGMLType, cols: int) -> tuple[int, ...]:
        """As in the interface: quants and scales apart."""
        return row_parts(ggml_type, cols)

    def fill_rows(
        self,
        ggml_type: GGMLType,
        cols: int,
        data: npt.NDArray[np.uint8],
        ids: npt.NDArray[np.int64] | None,
        place: npt.NDArray[np.uint8],
        host: Kernels,
    ) -> float:
        """As in the interface. Returns the largest magnitude of a finite weight where `DeviceRows` has to fit it."""
        return fill(ggml_type, cols, data, ids, place, host)

    def filled_matrix(
        self, name: str, ggml_type: GGMLType, rows: int, cols: int, place: Tensor, known: float
    ) -> Matrix:
        """As in the interface; its `data` is empty."""
        return Matrix(name, ggml_type, rows, cols, _NO_DATA, placed(ggml_type, rows, cols, place, known))

    def linear(self, matrix: Matrix, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._linear(matrix, x, bias=bias)

    def _linear(
        self,
        matrix: Matrix,
        x: Tensor,
        *,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        halves: Halves | None = None,
        output: str = "sum",
        threshold: float = 0.0,
    ) -> Tensor:
        handle: DeviceRows = matrix.handle
        y = self._allocate((x.shape[0], matrix.rows), torch.uint8 if output == "mask" else torch.float32)
        if x.shape[0] <= launch.MAX_VECTOR_TOKENS:
            linear(handle, x, y, bias=bias, residual=residual, output=output, threshold=threshold)
        else:
            product(
                handle,
                x,
                y,
                self._allocate,
                halves=halves,
                bias=bias,
                residual=residual,
                output=output,
                threshold=threshold,
            )
        return y

    def _projections(self, parts: Sequence[Linear], x: Tensor, halves: Halves | None) -> list[Tensor]:
        """Several products with one input, of one or a few tokens in one launch."""
        handles: list[DeviceRows] = [part.matrix.handle for part in parts]
        alike = len({(handle.storage, handle.cols) for handle in handles}) == 1
        if len(parts) != N_PROJECTIONS or not alike or x.shape[0] > launch.MAX_VECTOR_TOKENS:
            return [self._linear(part.matrix, x, bias=part.bias, halves=halves) for part in parts]
        results = [self._allocate((x.shape[0], handle.rows), torch.float32) for handle in handles]
        projections(handles, x, results, [part.bias for part in parts])
        return results

    def linear_masked(self, matrix: Matrix, x: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[Tensor, int]:
        n_tokens = x.shape[0]
        lists.require_mask(mask, (n_tokens, matrix.rows), self.device)
        y = self._allocate((n_tokens, matrix.rows), torch.float32).zero_()
        ids, counts = self._lists(mask)
        linear(matrix.handle, x, y, bias=bias, lists=(ids, counts))
        return y, int(counts.sum())

    def accumulate_rows(
        self, matrix: Matrix, coefficients: Tensor, bias: Tensor | None = None, *, all_rows: bool = False
    ) -> tuple[Tensor, int]:
        n_tokens = coefficients.shape[0]
        launch.require(coefficients, "coefficients", torch.float32, (n_tokens, matrix.rows), self.device)
        y = self._allocate((n_tokens, matrix.cols), torch.float32)
        counts = self._allocate((4,), torch.int64).zero_()
        chosen = None if all_rows else self._lists(coefficients)
        down_rows(
            matrix.handle,
            coefficients,
            y,
            counts,
            self._allocate,
            lists=chosen,
            gathered=True,
            all_rows=all_rows,
            bias=bias,
        )
        return y, coefficients.numel() if chosen is None else int(chosen[1].sum())

    def _lists(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        ids = self._allocate(tuple(mask.shape), torch.int32)
        counts = self._allocate((mask.shape[0],), torch.int32)
        lists.list_active(mask, ids, counts)
        return ids, counts

    def rows(self, matrix: Matrix, ids: Tensor) -> Tensor:
        self._require_indices(ids, matrix.rows, "row")
        y = self._allocate((ids.shape[0], matrix.cols), torch.float32)
        lookup(matrix.handle, ids, y)
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y = self._allocate(tuple(x.shape), torch.float32)
        norm(x, weight, None, eps, y, subtract_mean=False)
        return y

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        y = self._allocate(tuple(x.shape), torch.float32)
        norm(x, weight, bias, eps, y, subtract_mean=True)
        return y

    def _normalise(self, norm: Norm, x: Tensor) -> Tensor:
        if norm.subtract_mean:
            return self.layer_norm(x, norm.weight, norm.bias, norm.eps)
        return self.rms_norm(x, norm.weight, norm.eps)

    def rope(self, x: Tensor, positions: Tensor, table: RopeTable) -> Tensor:
        self._require_indices(positions, table.cos.shape[0], "position")
        y = self._allocate(tuple(x.shape), torch.float32)
        place_heads(positions, q=x, q_out=y, new=None, rope=table)
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
        self._require_indices(slots, k_cache.shape[0], "slot")
        self._require_indices(positions, k_cache.shape[2], "position")
        place_heads(positions, q=None, q_out=None, new=NewKeys(k, v, k_cache, v_cache, slots), rope=None)
        return self._attend(q, k_cache, v_cache, slots, positions, scale, v.shape[2])

    def _attend(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, positions: Tensor, scale: float, dim_v: int
    ) -> Tensor:
        y = self._allocate((q.shape[0], q.shape[1] * dim_v), torch.float32)
        attend = attend_rows if q.shape[0] <= MAX_TOKENS else attend_tiles
        attend(q, k_cache, v_cache, slots, positions, scale, y, self._allocate, dim_v)
        return y

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
        self._require_indices(slots, cache.keys.shape[0], "slot")
        self._require_indices(positions, cache.keys.shape[2], "position")
        n_tokens = x.shape[0]
        h = self._normalise(block.norm, x)
        shares = n_tokens > launch.MAX_VECTOR_TOKENS and block.qkv[0].matrix.handle.storage != "f32"
        halves = Halves(h, self._allocate) if shares else None
        parts = self._projections(block.qkv, h, halves)
        if len(parts) == 1:
            n_q, n_k = block.n_head * block.head_dim, block.n_head_kv * block.head_dim
            parts = list(parts[0].tensor_split((n_q, n_q + n_k), dim=1))
        q = _heads(parts[0], block.n_head, block.head_dim)
        k = _heads(parts[1], block.n_head_kv, block.head_dim)
        v = _heads(parts[2], block.n_head_kv, block.head_dim_v)
        turned = self._allocate((n_tokens, block.n_head, block.head_dim), torch.float32)
        new = NewKeys(k, v, cache.keys, cache.values, slots)
        place_heads(positions, q=q, q_out=turned, new=new, rope=rope)
        mixed = self._attend(turned, cache.keys, cache.values, slots, positions, block.scale, block.head_dim_v)
        return self._linear(block.output.matrix, mixed, bias=block.output.bias, residual=residual)

    def predict(self, predictor: Predictor, x: Tensor, threshold: float) -> Tensor:
        inner = self._linear(predictor.fc1, x, output="relu")
        return self._linear(predictor.fc2, inner, output="mask", threshold=threshold).view(torch.bool)

    def feed_forward_block(
        self,
        block: FeedForwardBlock,
        x: Tensor,
        residual: Tensor,
        *,
        observe: bool = False,
        counts: Tensor | None = None,
    ) -> FeedForwardResult:
        mask = None
        if block.predictor is not None and not block.dense:
            mask = self.predict(block.predictor, x, block.sparse_threshold)
        return self._feed_forward(block, self._normalise(block.norm, x), mask, residual, observe, counts)

    def feed_forward_part(
        self,
        block: FeedForwardBlock,
        h: Tensor,
        mask: Tensor | None,
        *,
        observe: bool = False,
        counts: Tensor | None = None,
    ) -> FeedForwardResult:
        return self._feed_forward(block, h, mask, None, observe, counts)

    def add_feed_forward_part(
        self,
        block: FeedForwardBlock,
        h: Tensor,
        mask: Tensor | None,
        residual: Tensor,
        out: Tensor,
        *,
        observe: bool = False,
        counts: Tensor | None = None,
    ) -> FeedForwardResult:
        return self._feed_forward(block, h, mask, residual, observe, counts, out)

    def _feed_forward(
        self,
        block: FeedForwardBlock,
        h: Tensor,
        mask: Tensor | None,
        residual: Tensor | None,
        observe: bool,
        counts: Tensor | None,
        out: Tensor | None = None,
    ) -> FeedForwardResult:
        n_tokens, n = h.shape[0], block.weights.up.rows
        y = self._allocate((n_tokens, block.weights.up.cols), torch.float32) if out is None else out
        fired = self._allocate((n_tokens, n), torch.bool).zero_() if observe else None
        total = self._allocate((4,), torch.int64).zero_() if counts is None else counts
        feed_forward(block, h, y, total, self._allocate, mask=mask, residual=residual, fired=fired)
        n_gate, n_up, n_down, n_fired = total.tolist() if counts is None else (0, 0, 0, 0)
        # Seconds in the predictor are unknown: nothing here waits for it.
        return FeedForwardResult(y, n_gate, n_up, n_down, n_fired, 0.0, mask if observe else None, fired)

    def pack_mask(self, mask: Tensor, begin: int) -> Tensor:
        part = mask[:, begin:]
        bits = self._allocate((mask.shape[0], launch.cdiv(part.shape[1], 8)), torch.uint8)
        lists.pack_bits(part, bits)
        return bits

    def _require_indices(self, ids: Tensor, end: int, name: str) -> None:
        """Raises IndexError for an index outside [0, end), where looking at it does not mean waiting for a device."""
        if ids.device.type != "cpu" or not ids.numel():
            return
        outside = ids[(ids < 0) | (ids >= end)]
        if outside.numel():
            raise IndexError(f"{name} {int(outside[0])} is not in [0, {end})")


def _heads(x: Tensor, n_head: int, dim: int) -> Tensor:
    """x (T, n_head * dim), whose rows may lie apart, as (T, n_head, dim) over the same memory."""
    return x.as_strided((x.shape[0], n_head, dim), (x.stride(0), dim, 1))
