"""What an implementation of the kernels must offer. `reference` defines every operation, `cpu` is the fast one.

Tensors are torch tensors where the kernels compute (CPU memory, or a device's), float32 and contiguous unless stated
otherwise. T is the number of tokens of a forward, which may belong to several sequences. On the CPU every result row
depends on its own token alone, bit for bit: a token gives the same result alone, inside a prompt, or in a batch, and
for any number of threads. `reference`, which serves where nothing could be compiled, promises that to rounding only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from powerinfer_py.gguf.types import GGMLType, row_bytes
from powerinfer_py.kernels.blocks import (
    AttentionBlock,
    FeedForwardBlock,
    FeedForwardResult,
    LayerBlocks,
    LayerCache,
    LayersResult,
    Predictor,
)
from powerinfer_py.kernels.halved_rows import halve_rows
from powerinfer_py.kernels.mask_bits import pack_columns
from powerinfer_py.kernels.matrix import Matrix, RopeTable, StoredMatrix
from powerinfer_py.kernels.parted_blocks import part_blocks
from powerinfer_py.placement.device_bytes import device_type

if TYPE_CHECKING:
    from torch import Tensor


class Kernels(ABC):
    """One implementation of the operations, with the threads it owns."""

    name: str

    @abstractmethod
    def matrix(
        self,
        name: str,
        ggml_type: GGMLType,
        rows: int,
        cols: int,
        data: npt.NDArray[np.uint8],
        *,
        pack: bool = False,
        copy: bool = False,
    ) -> Matrix:
        """Prepares a weight matrix. `data` (uint8, rows * row_bytes) must stay alive and unchanged.

        copy: its rows may be copied into memory that is faster to read than a file's pages; `Matrix.copied` says
        whether they were. pack: the matrix is only ever multiplied (`linear`, `linear_masked`), so that their order may
        be one that is faster to multiply; `Matrix.packed` says whether it is. Otherwise nothing is copied.
        """

    def interleaves(self, types: Sequence[GGMLType]) -> bool:  # noqa: ARG002
        """Whether `interleaved` does anything with multiplied matrices of these types."""
        return False

    def interleaved(
        self,
        multiplied: Sequence[StoredMatrix],  # noqa: ARG002  these kernels keep matrices apart
        summed: StoredMatrix,  # noqa: ARG002
    ) -> tuple[Matrix, ...] | None:
        """The matrices of an FFN's neurons, copied so that the rows of a neuron lie beside each other, which suits
        tokens that need few of the neurons: those that are only ever multiplied, packed, then one whose rows are added
        up. They take the bytes of copies that lie apart (`copied_bytes`). None where these kernels do no such thing.
        """
        return None

    def copied_bytes(
        self,
        ggml_type: GGMLType,  # noqa: ARG002  these kernels read every matrix where it lies
        rows: int,  # noqa: ARG002
        cols: int,  # noqa: ARG002
        *,
        pack: bool = False,  # noqa: ARG002
        copy: bool = False,  # noqa: ARG002
    ) -> int:
        """Bytes of host memory that `matrix`, asked the same, takes for its copy; 0 where it makes none."""
        return 0

    def row_parts(self, ggml_type: GGMLType, cols: int) -> tuple[int, ...]:
        """Bytes of a row in each part of a matrix of these kernels: the first part of all rows, behind it the next."""
        return (row_bytes(device_type(ggml_type), cols),)

    def fill_rows(
        self,
        ggml_type: GGMLType,
        cols: int,
        data: npt.NDArray[np.uint8],
        ids: npt.NDArray[np.int64] | None,
        place: npt.NDArray[np.uint8],
        host: Kernels,
    ) -> float:
        """Writes rows `ids` (None: all) of `data` (rows, row_bytes) into `place`, host memory, as these kernels hold
        them (`row_parts`, in `device_type`); what `filled_matrix` has to know of the values.

        host: kernels of the CPU, whose threads do it. Raises UnsupportedError as `fill_halves`.
        """
        if device_type(ggml_type) is ggml_type:
            host.fill_blocks(data, ids, 0, place)
        else:
            host.fill_halves(ggml_type, cols, data, ids, place)
        return 0.0

    def fill_halves(
        self,
        ggml_type: GGMLType,
        cols: int,
        data: npt.NDArray[np.uint8],
        ids: npt.NDArray[np.int64] | None,
        place: npt.NDArray[np.uint8],
    ) -> None:
        """Writes rows `ids` (None: all) of `data` (rows, row_bytes) into `place` as float16, 2 bytes a weight.

        Raises UnsupportedError for a weight that is too large for it.
        """
        halve_rows(ggml_type, cols, data, ids, place)

    def fill_blocks(
        self,
        data: npt.NDArray[np.uint8],
        ids: npt.NDArray[np.int64] | None,
        quant_bytes: int,
        place: npt.NDArray[np.uint8],
    ) -> float:
        """Writes rows `ids` (None: all) of `data` (rows, row_bytes) into `place`, as many bytes: the quants of all
        rows, and behind them their scales.

        quant_bytes: 16 or 32 in each block, behind its float16 scale; 0: rows are copied whole. Returns the largest
        magnitude of a finite scale, 0 where there are none.
        """
        return part_blocks(data, ids, quant_bytes, place)

    def filled_matrix(
        self,
        name: str,
        ggml_type: GGMLType,
        rows: int,
        cols: int,
        place: Tensor,
        known: float,  # noqa: ARG002
    ) -> Matrix:
        """The matrix whose bytes `fill_rows` wrote, in `place` (uint8, where the kernels compute); they may still be on
        their way there. ggml_type: as these kernels hold it. known: the largest of what `fill_rows` returned for its
        rows."""
        return self.matrix(name, ggml_type, rows, cols, place.numpy())

    @abstractmethod
    def linear(self, matrix: Matrix, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`y[t, r] = dot(row r, x[t]) + bias[r]`: x (T, cols) -> (T, rows)."""

    @abstractmethod
    def linear_masked(self, matrix: Matrix, x: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[Tensor, int]:
        """As `linear`, only where mask (T, rows; bool) is set; exactly 0 elsewhere (no bias there either).

        A row whose column of the mask is empty is not read. Second result: the number of (token, row) products that
        were really computed, counted where they are computed.
        """

    @abstractmethod
    def accumulate_rows(
        self, matrix: Matrix, coefficients: Tensor, bias: Tensor | None = None, *, all_rows: bool = False
    ) -> tuple[Tensor, int]:
        """`y[t] = sum over r of coefficients[t, r] * row r + bias`: coefficients (T, rows) -> (T, cols).

        Rows whose coefficient is exactly 0 (either sign; NaN is not 0) are neither read nor added unless `all_rows`.
        The order of the sum is fixed by the coefficients of that token alone. Second result: (token, row) pairs added.
        """

    @abstractmethod
    def rows(self, matrix: Matrix, ids: Tensor) -> Tensor:
        """Rows `ids` (n; int64) as float32 (n, cols): embedding lookup. Raises IndexError for an id out of range."""

    @abstractmethod
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension: x (T, n), weight (n)."""

    @abstractmethod
    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """`(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension: x (T, n), weight and bias (n)."""

    @abstractmethod
    def rope(self, x: Tensor, positions: Tensor, table: RopeTable) -> Tensor:
        """Rotates the first `table.n_rot` dimensions of each head: x (T, n_head, head_dim), positions (T; int64)."""

    @abstractmethod
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
        """Stores the new keys and values, then attends causally: `softmax(scale * q k^T) v`.

        q: (T, n_head, head_dim); k: (T, n_head_kv, head_dim); v: (T, n_head_kv, head_dim_v).
        k_cache: (n_slots, n_head_kv, n_ctx, head_dim), v_cache: (..., head_dim_v), float16 rounded to nearest even; or
        either one uint8 with rows of Q8_0 blocks instead of values (`cache_rows.encode_rows`). Written in place.
        slots, positions: (T; int64), where token t is stored; it attends to positions 0 .. positions[t] of its slot.
        All T tokens are stored before any of them attends; keys and values are always read back from the cache, so that
        prefill and decode see the same rounding. Query head h uses key head h // (n_head / n_head_kv).
        Returns (T, n_head * head_dim_v).
        """

    def prepare_attention(self, block: AttentionBlock) -> AttentionBlock:
        """The block with the handle that these kernels want; it works only with them from then on."""
        return block

    def prepare_feed_forward(self, block: FeedForwardBlock) -> FeedForwardBlock:
        """The block with the handle that these kernels want; it works only with them from then on."""
        return block

    @abstractmethod
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
        """`residual + attention(norm(x))`: x and residual (T, n_embd), slots and positions (T; int64).

        Bit-equal to `composition.attend` over the same kernels.
        """

    @abstractmethod
    def feed_forward_block(
        self,
        block: FeedForwardBlock,
        x: Tensor,
        residual: Tensor,
        *,
        observe: bool = False,
        counts: Tensor | None = None,
    ) -> FeedForwardResult:
        """`residual + ffn(norm(x))`: x and residual (T, n_embd); the predictor sees x itself.

        observe: hand out which neurons were predicted and fired. counts: int64 (4), to which gate, up and down products
        and fired neurons are added; the result's own numbers are then 0, and nobody waits for a device to have counted.
        Bit-equal to `composition.run_feed_forward` over these kernels but for SiLU, whose exponential may differ in the
        last place.
        """

    def run_layers(
        self,
        layers: Sequence[LayerBlocks],
        x: Tensor,
        caches: Sequence[LayerCache],
        slots: Tensor,
        positions: Tensor,
        rope: RopeTable | None,
        *,
        parallel: bool,
    ) -> LayersResult:
        """All layers over the residual stream x (T, n_embd), one after the other; a cache each.

        parallel: the FFN and its predictor see the layer's input, as attention does, not what attention made of it.
        Bit-equal to the calls of the single blocks that stand here.
        """
        counts = np.zeros((len(layers), 4), np.int64)
        predictor_s = 0.0
        for i, (layer, cache) in enumerate(zip(layers, caches, strict=True)):
            attended = self.attention_block(layer.attention, x, x, cache, slots, positions, rope)
            result = self.feed_forward_block(layer.feed_forward, x if parallel else attended, attended)
            counts[i] = (result.gate_products, result.up_products, result.down_products, result.n_fired)
            predictor_s += result.predictor_s
            x = result.y
        return LayersResult(x, counts, predictor_s)

    @abstractmethod
    def predict(self, predictor: Predictor, x: Tensor, threshold: float) -> Tensor:
        """`fc2 @ relu(fc1 @ x) >= threshold`, NaN included: x (T, n_embd) -> (T, n_ff) bool.

        Bit-equal to `feed_forward.predict` over these kernels.
        """

    @abstractmethod
    def feed_forward_part(
        self,
        block: FeedForwardBlock,
        h: Tensor,
        mask: Tensor | None,
        *,
        observe: bool = False,
        counts: Tensor | None = None,
    ) -> FeedForwardResult:
        """The FFN of the block's rows alone over h (T, n_embd), normed already: no predictor, no norm, no residual.

        mask: (T, rows; bool), the neurons to compute, or None for all; its rows may lie apart, as in a part of a wider
        mask. A block may have no rows: the result is then its down bias, or zeros. observe, counts: as in
        `feed_forward_block`, with the mask as what was predicted. Bit-equal to `composition.run_part` over these
        kernels but for SiLU.
        """

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
        """out = residual + `feed_forward_part`; residual, out: (T, n_embd). The result's y is `out`."""
        result = self.feed_forward_part(block, h, mask, observe=observe, counts=counts)
        return replace(result, y=out.copy_(residual).add_(result.y))

    def pack_mask(self, mask: Tensor, begin: int) -> Tensor:
        """Columns `begin` and on of mask (T, n; bool) as bits: uint8 (T, ceil((n - begin) / 8)).

        Column begin + j is bit j % 8 of byte j // 8; bits beyond the last column are 0.
        """
        return pack_columns(mask, begin)
