"""The weights of a model as the shared blocks take them, and how they are found in a file by name and shape.

Nothing here reads a file: `WeightSource` is what the runtime offers (placement on devices is its business), so that the
same assembly serves loading, checking and counting bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from powerinfer_py.config import ModelConfig
from powerinfer_py.kernels.feed_forward import FeedForwardWeights
from powerinfer_py.kernels.interface import Matrix
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
        """A weight matrix in the file's type, shape (rows, cols)."""

    def transposed(self, name: str, rows: int, cols: int) -> Matrix:
        """The transpose of a matrix that the file holds as (cols, rows)."""

    def vector(self, name: str, n: int) -> Tensor:
        """A norm weight or bias, float32 (n)."""


@dataclass(frozen=True, eq=False)
class NormWeights:
    """Scale and, for a LayerNorm, shift, each (n_embd)."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Linear:
    """A matrix (n_out, n_in) and its bias (n_out)."""

    matrix: Matrix
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Predictor:
    """`fc2 @ relu(fc1 @ x)`: fc1 (rank, n_embd), fc2 (n_ff, rank)."""

    fc1: Matrix
    fc2: Matrix


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer. `qkv` holds one fused projection or three, whose outputs in order are queries, keys and values."""

    attention_norm: NormWeights
    qkv: tuple[Linear, ...]
    attention_output: Linear
    ffn_norm: NormWeights
    ffn: FeedForwardWeights
    predictor: Predictor | None


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """All weights of the layers an engine runs, embedding and head where it needs them."""

    token_embd: Matrix
    position_embd: Matrix | None
    layers: tuple[LayerWeights, ...]
    output_norm: NormWeights
    output: Matrix


def assemble(
    architecture: Architecture, config: ModelConfig, source: WeightSource, layers: range, *, neurons_as_rows: bool
) -> ModelWeights:
    """Finds every tensor of the graph in `source`. Raises ModelError for one missing or of the wrong shape.

    layers: which layers to assemble. neurons_as_rows: the down projection is needed with a neuron a row; where the file
    holds it the other way (dense GGUF) it is transposed.
    """
    embedding = source.matrix("token_embd.weight", config.n_vocab, config.n_embd)
    head = source.matrix("output.weight", config.n_vocab, config.n_embd) if source.has("output.weight") else embedding
    position_rows = config.n_ctx_train + architecture.position_offset
    return ModelWeights(
        token_embd=embedding,
        position_embd=None
        if architecture.uses_rope
        else source.matrix("position_embd.weight", position_rows, config.n_embd),
        layers=tuple(_layer(architecture, config, source, i, neurons_as_rows) for i in layers),
        output_norm=_norm(architecture, config, source, "output_norm"),
        output=head,
    )


def _layer(
    architecture: Architecture, config: ModelConfig, source: WeightSource, index: int, neurons_as_rows: bool
) -> LayerWeights:
    prefix = f"blk.{index}."
    heads = config.n_head * config.head_dim_v
    first_norm = _norm(architecture, config, source, prefix + "attn_norm")
    if architecture.parallel:
        ffn_norm = first_norm
        two_norms = source.has(prefix + "attn_norm_2.weight")
        attention_norm = _norm(architecture, config, source, prefix + "attn_norm_2") if two_norms else first_norm
    else:
        attention_norm = first_norm
        ffn_norm = _norm(architecture, config, source, prefix + "ffn_norm")
    return LayerWeights(
        attention_norm=attention_norm,
        qkv=tuple(_qkv(config, source, prefix)),
        attention_output=_linear(source, prefix + "attn_output", config.n_embd, heads),
        ffn_norm=ffn_norm,
        ffn=_feed_forward(architecture, config, source, prefix, neurons_as_rows),
        predictor=_predictor(config, source, prefix) if config.has_predictors else None,
    )


def _qkv(config: ModelConfig, source: WeightSource, prefix: str) -> Iterator[Linear]:
    """One fused projection where the file has it, else three; outputs in the order queries, keys, values."""
    q = config.n_head * config.head_dim
    k = config.n_head_kv * config.head_dim
    v = config.n_head_kv * config.head_dim_v
    fused = source.has(prefix + "attn_qkv.weight")
    shapes = {"attn_qkv": q + k + v} if fused else {"attn_q": q, "attn_k": k, "attn_v": v}
    for name, rows in shapes.items():
        yield _linear(source, prefix + name, rows, config.n_embd)


def _feed_forward(
    architecture: Architecture, config: ModelConfig, source: WeightSource, prefix: str, neurons_as_rows: bool
) -> FeedForwardWeights:
    n_ff, n_embd = config.n_ff, config.n_embd
    has_rows = source.has(prefix + "ffn_down_t.weight")
    if has_rows:
        down = source.matrix(prefix + "ffn_down_t.weight", n_ff, n_embd)
    elif neurons_as_rows:
        down = source.transposed(prefix + "ffn_down.weight", n_ff, n_embd)
    else:
        down = source.matrix(prefix + "ffn_down.weight", n_embd, n_ff)
    return FeedForwardWeights(
        up=source.matrix(prefix + "ffn_up.weight", n_ff, n_embd),
        gate=source.matrix(prefix + "ffn_gate.weight", n_ff, n_embd) if architecture.gated else None,
        down=down,
        down_is_transposed=has_rows or neurons_as_rows,
        up_bias=_bias(source, prefix + "ffn_up", n_ff),
        gate_bias=_bias(source, prefix + "ffn_gate", n_ff) if architecture.gated else None,
        down_bias=_bias(source, prefix + ("ffn_down_t" if has_rows else "ffn_down"), n_embd),
    )


def _predictor(config: ModelConfig, source: WeightSource, prefix: str) -> Predictor:
    rank = source.rows(prefix + "fc1.weight")
    return Predictor(
        fc1=source.matrix(prefix + "fc1.weight", rank, config.n_embd),
        fc2=source.matrix(prefix + "fc2.weight", config.n_ff, rank),
    )


def _norm(architecture: Architecture, config: ModelConfig, source: WeightSource, name: str) -> NormWeights:
    bias = source.vector(name + ".bias", config.n_embd) if architecture.norm is NormKind.LAYER else None
    return NormWeights(source.vector(name + ".weight", config.n_embd), bias)


def _linear(source: WeightSource, name: str, rows: int, cols: int) -> Linear:
    return Linear(source.matrix(name + ".weight", rows, cols), _bias(source, name, rows))


def _bias(source: WeightSource, name: str, n: int) -> Tensor | None:
    return source.vector(name + ".bias", n) if source.has(name + ".bias") else None
