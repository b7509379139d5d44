"""The weights of a model as the shared blocks take them, and how they are found in a file by name and shape.

Nothing here reads a file: `WeightSource` is what the runtime offers (placement on devices is its business), so that the
same assembly serves loading, checking and counting bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from powerinfer_py.config import ModelConfig, Sparsity
from powerinfer_py.kernels.blocks import (
    AttentionBlock,
    FeedForwardBlock,
    FeedForwardWeights,
    LayerBlocks,
    Linear,
    Norm,
    Predictor,
)
from powerinfer_py.kernels.matrix import Matrix
from powerinfer_py.models.architecture import Architecture, NormKind

if TYPE_CHECKING:
    from torch import Tensor


class WeightSource(Protocol):
    """Tensors by name; asking for one that is missing or has another shape raises ModelError."""

    def has(self, name: str) -> bool:
        """Whether the model has a tensor of this name."""

    def rows(self, name: str) -> int:
        """First dimension of a tensor of two."""

    def matrix(self, name: str, rows: int, cols: int) -> Matrix:
        """A weight matrix (rows, cols) in the file's type, to be multiplied."""

    def table(self, name: str, rows: int, cols: int) -> Matrix:
        """The same for a matrix whose rows are looked up, few of them for a token."""

    def summed(self, name: str, rows: int, cols: int) -> Matrix:
        """The same for one whose rows are added up, many of them for a token."""

    def neurons(self, multiplied: Sequence[str], summed: str, rows: int, cols: int) -> tuple[Matrix, ...]:
        """Matrices with a neuron a row, of which a token needs few: some that are multiplied, then one as `summed`."""

    def transposed(self, name: str, rows: int, cols: int) -> Matrix:
        """The transpose of a matrix that the file holds as (cols, rows), as a table."""

    def vector(self, name: str, n: int) -> Tensor:
        """A norm weight or bias, float32 (n)."""

    def prepare_attention(self, block: AttentionBlock) -> AttentionBlock:
        """The block ready for the kernels that will run it."""

    def prepare_feed_forward(self, block: FeedForwardBlock) -> FeedForwardBlock:
        """The block ready for the kernels that will run it."""


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer. `predictor` is the file's, whether or not the FFN uses it in this mode."""

    attention: AttentionBlock
    feed_forward: FeedForwardBlock
    predictor: Predictor | None

    @property
    def n_bytes(self) -> int:
        """Bytes of its matrices as the file stores them: the most that one token reads of the layer."""
        attention, ffn = self.attention, self.feed_forward.weights
        matrices = [*(linear.matrix for linear in attention.qkv), attention.output.matrix, ffn.up, ffn.gate, ffn.down]
        if self.predictor is not None:
            matrices += [self.predictor.fc1, self.predictor.fc2]
        return sum(matrix.rows * matrix.row_bytes for matrix in matrices if matrix is not None)


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """All weights of the layers an engine runs, embedding and head where it needs them."""

    token_embd: Matrix
    position_embd: Matrix | None
    layers: tuple[LayerWeights, ...]
    output_norm: Norm
    output: Matrix

    @cached_property
    def blocks(self) -> tuple[LayerBlocks, ...]:
        """The blocks of the layers, as `Kernels.run_layers` takes them."""
        return tuple(LayerBlocks(layer.attention, layer.feed_forward) for layer in self.layers)

    def runs(self, most_bytes: int) -> Iterator[slice]:
        """The layers in runs of neighbours of at most `most_bytes`, or of one."""
        begin = n_bytes = 0
        for index, layer in enumerate(self.layers):
            n_bytes += layer.n_bytes
            if n_bytes > most_bytes and index > begin:
                yield slice(begin, index)
                begin, n_bytes = index, layer.n_bytes
        if begin < len(self.layers):
            yield slice(begin, len(self.layers))


@dataclass(frozen=True, eq=False)
class Assembly:
    """Finds every tensor of a graph in `source`, for one sparsity mode (resolved: never AUTO).

    Where a mode skips neurons and the file holds down projections the other way (dense GGUF), they are transposed.
    Every method raises ModelError for a tensor that is missing or has the wrong shape.
    """

    architecture: Architecture
    config: ModelConfig
    source: WeightSource
    sparsity: Sparsity

    def model(self, layers: range) -> ModelWeights:
        """Embedding, head and the layers of the range."""
        token_embd, position_embd = self.embedding()
        blocks = tuple(self.layer(i) for i in layers)
        return ModelWeights(token_embd, position_embd, blocks, *self.head())

    def embedding(self) -> tuple[Matrix, Matrix | None]:
        """Rows of tokens, and of positions where they are learned."""
        config, source = self.config, self.source
        position_rows = config.n_ctx_train + self.architecture.position_offset
        return (
            source.table("token_embd.weight", config.n_vocab, config.n_embd),
            None if self.architecture.uses_rope else source.table("position_embd.weight", position_rows, config.n_embd),
        )

    def head(self) -> tuple[Norm, Matrix]:
        """The last norm and the output matrix."""
        config, source = self.config, self.source
        # A head that is tied to the embedding is the same tensor, multiplied instead of looked up.
        name = "output.weight" if source.has("output.weight") else "token_embd.weight"
        return self._norm("output_norm"), source.matrix(name, config.n_vocab, config.n_embd)

    def feed_forward(self, index: int) -> FeedForwardBlock:
        """A layer's FFN alone, without its predictor and not prepared: for a source that gives some of its neurons."""
        prefix = f"blk.{index}."
        return self._feed_forward(prefix, self._norm(prefix + self._ffn_norm_name), None)

    def layer(self, index: int) -> LayerWeights:
        """One layer, its blocks prepared."""
        prefix = f"blk.{index}."
        first_norm = self._norm(prefix + "attn_norm")
        if self.architecture.parallel:
            ffn_norm = first_norm
            two_norms = self.source.has(prefix + "attn_norm_2.weight")
            attention_norm = self._norm(prefix + "attn_norm_2") if two_norms else first_norm
        else:
            ffn_norm = self._norm(prefix + self._ffn_norm_name)
            attention_norm = first_norm
        predictor = self._predictor(prefix) if self.config.has_predictors else None
        return LayerWeights(
            attention=self.source.prepare_attention(self._attention(prefix, attention_norm)),
            feed_forward=self.source.prepare_feed_forward(self._feed_forward(prefix, ffn_norm, predictor)),
            predictor=predictor,
        )

    @property
    def _ffn_norm_name(self) -> str:
        return "attn_norm" if self.architecture.parallel else "ffn_norm"

    def _attention(self, prefix: str, norm: Norm) -> AttentionBlock:
        config = self.config
        return AttentionBlock(
            norm=norm,
            qkv=tuple(self._qkv(prefix)),
            output=self._linear(prefix + "attn_output", config.n_embd, config.n_head * config.head_dim_v),
            n_head=config.n_head,
            n_head_kv=config.n_head_kv,
            head_dim=config.head_dim,
            head_dim_v=config.head_dim_v,
        )

    def _qkv(self, prefix: str) -> Iterator[Linear]:
        """One fused projection where the file has it, else three; outputs in the order queries, keys, values."""
        config = self.config
        q = config.n_head * config.head_dim
        k = config.n_head_kv * config.head_dim
        v = config.n_head_kv * config.head_dim_v
        fused = self.source.has(prefix + "attn_qkv.weight")
        shapes = {"attn_qkv": q + k + v} if fused else {"attn_q": q, "attn_k": k, "attn_v": v}
        for name, rows in shapes.items():
            yield self._linear(prefix + name, rows, config.n_embd)

    def _feed_forward(self, prefix: str, norm: Norm, predictor: Predictor | None) -> FeedForwardBlock:
        config = self.config
        return FeedForwardBlock(
            norm=norm,
            weights=self._feed_forward_weights(prefix),
            predictor=predictor if self.sparsity is Sparsity.PREDICTOR else None,
            activation=config.activation,
            fatrelu_threshold=config.fatrelu_threshold,
            sparse_threshold=config.sparse_threshold,
            dense=self.sparsity is Sparsity.DENSE,
        )

    def _feed_forward_weights(self, prefix: str) -> FeedForwardWeights:
        source, n_ff, n_embd = self.source, self.config.n_ff, self.config.n_embd
        gated = self.architecture.gated
        has_rows = source.has(prefix + "ffn_down_t.weight")
        transposes = not has_rows and self.sparsity is not Sparsity.DENSE
        # The matrix whose every row is read, if one is, has rows side by side.
        few = self._few_rows(gated) if has_rows else ()
        names = [prefix + name + ".weight" for name in few]
        matrices: dict[str, Matrix] = {}
        if few:
            made = source.neurons(names, prefix + "ffn_down_t.weight", n_ff, n_embd)
            matrices = dict(zip((*few, "ffn_down_t"), made, strict=True))
            down = matrices["ffn_down_t"]
        elif has_rows:
            down = source.summed(prefix + "ffn_down_t.weight", n_ff, n_embd)
        elif transposes:
            down = source.transposed(prefix + "ffn_down.weight", n_ff, n_embd)
        else:
            down = source.matrix(prefix + "ffn_down.weight", n_embd, n_ff)
        for name in ("ffn_gate", "ffn_up") if gated else ("ffn_up",):
            if name not in matrices:
                matrices[name] = source.matrix(f"{prefix}{name}.weight", n_ff, n_embd)
        return FeedForwardWeights(
            up=matrices["ffn_up"],
            gate=matrices.get("ffn_gate"),
            down=down,
            down_is_transposed=has_rows or transposes,
            up_bias=self._bias(prefix + "ffn_up", n_ff),
            gate_bias=self._bias(prefix + "ffn_gate", n_ff) if gated else None,
            down_bias=self._bias(prefix + ("ffn_down_t" if has_rows else "ffn_down"), n_embd),
        )

    def _few_rows(self, gated: bool) -> tuple[str, ...]:
        """The matrices to be multiplied of which a token needs few rows."""
        if self.sparsity is Sparsity.PREDICTOR:
            return ("ffn_gate", "ffn_up") if gated else ("ffn_up",)
        return ("ffn_up",) if gated and self.sparsity is Sparsity.EXACT else ()

    def _predictor(self, prefix: str) -> Predictor:
        rank = self.source.rows(prefix + "fc1.weight")
        return Predictor(
            fc1=self.source.matrix(prefix + "fc1.weight", rank, self.config.n_embd),
            fc2=self.source.matrix(prefix + "fc2.weight", self.config.n_ff, rank),
        )

    def _norm(self, name: str) -> Norm:
        n_embd = self.config.n_embd
        is_layer_norm = self.architecture.norm is NormKind.LAYER
        bias = self.source.vector(name + ".bias", n_embd) if is_layer_norm else None
        weight = self.source.vector(name + ".weight", n_embd)
        return Norm(weight, bias, self.config.norm_eps, subtract_mean=is_layer_norm)

    def _linear(self, name: str, rows: int, cols: int) -> Linear:
        return Linear(self.source.matrix(name + ".weight", rows, cols), self._bias(name, rows))

    def _bias(self, name: str, n: int) -> Tensor | None:
        return self.source.vector(name + ".bias", n) if self.source.has(name + ".bias") else None
