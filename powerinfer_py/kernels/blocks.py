"""The two blocks of a transformer layer, composed of single operations: the definition of what the native blocks do.

A block holds its weights and everything that does not change from token to token, prepared at load. It ends by adding
its result to a residual stream, so that a layer is two calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from powerinfer_py.config import Activation
from powerinfer_py.kernels.feed_forward import FeedForwardWeights, feed_forward, predict
from powerinfer_py.kernels.interface import Kernels, Matrix, RopeTable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm, or LayerNorm where the mean is subtracted: weight (n_embd), bias (n_embd) or None."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    subtract_mean: bool

    def __call__(self, kernels: Kernels, x: Tensor) -> Tensor:
        """Normalised x (T, n_embd)."""
        if self.subtract_mean:
            return kernels.layer_norm(x, self.weight, self.bias, self.eps)
        return kernels.rms_norm(x, self.weight, self.eps)


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
class LayerCache:
    """Keys and values of one layer: (n_slots, n_head_kv, n_ctx, head_dim or head_dim_v), float16."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class AttentionBlock:
    """Norm, attention and output projection. `qkv` is one fused projection or three, in the order q, k, v.

    handle: what the kernels that prepared the block need (`Kernels.prepare_attention`).
    """

    norm: Norm
    qkv: tuple[Linear, ...]
    output: Linear
    n_head: int
    n_head_kv: int
    head_dim: int
    head_dim_v: int
    handle: Any = None

    @property
    def scale(self) -> float:
        """What scores are multiplied by before the softmax."""
        return 1.0 / math.sqrt(self.head_dim)


@dataclass(frozen=True, eq=False)
class FeedForwardBlock:
    """Predictor, norm and FFN. Without a predictor every neuron's first row is computed; `dense` computes all rows."""

    norm: Norm
    weights: FeedForwardWeights
    predictor: Predictor | None
    activation: Activation
    fatrelu_threshold: float
    sparse_threshold: float
    dense: bool
    handle: Any = None


@dataclass(frozen=True, eq=False)
class FeedForwardResult:
    """y: (T, n_embd), the residual included. predicted, fired: (T, n_ff) bool where they were asked for.

    Products are (token, row) pairs, counted where they were computed. predictor_s: seconds in the predictor.
    """

    y: Tensor
    gate_products: int
    up_products: int
    down_products: int
    n_fired: int
    predictor_s: float
    predicted: Tensor | None = None
    fired: Tensor | None = None


def attend(
    kernels: Kernels,
    block: AttentionBlock,
    x: Tensor,
    residual: Tensor,
    cache: LayerCache,
    slots: Tensor,
    positions: Tensor,
    rope: RopeTable | None,
) -> Tensor:
    """`residual + attention(norm(x))`, see `Kernels.attention_block`."""
    n_tokens = x.shape[0]
    h = block.norm(kernels, x)
    outputs = [kernels.linear(linear.matrix, h, linear.bias) for linear in block.qkv]
    if len(outputs) == 1:
        n_q, n_k = block.n_head * block.head_dim, block.n_head_kv * block.head_dim
        outputs = [part.contiguous() for part in outputs[0].tensor_split((n_q, n_q + n_k), dim=1)]
    q = outputs[0].view(n_tokens, block.n_head, block.head_dim)
    k = outputs[1].view(n_tokens, block.n_head_kv, block.head_dim)
    v = outputs[2].view(n_tokens, block.n_head_kv, block.head_dim_v)
    if rope is not None:
        q, k = kernels.rope(q, positions, rope), kernels.rope(k, positions, rope)
    mixed = kernels.attention(q, k, v, cache.keys, cache.values, slots, positions, block.scale)
    return residual + kernels.linear(block.output.matrix, mixed, block.output.bias)


def run_feed_forward(
    kernels: Kernels, block: FeedForwardBlock, x: Tensor, residual: Tensor, observe: bool
) -> FeedForwardResult:
    """`residual + ffn(norm(x))`, see `Kernels.feed_forward_block`."""
    started = perf_counter()
    mask = None
    if block.predictor is not None and not block.dense:
        mask = predict(kernels, block.predictor.fc1, block.predictor.fc2, x, block.sparse_threshold)
    predictor_s = perf_counter() - started
    output = feed_forward(
        kernels,
        block.weights,
        block.norm(kernels, x),
        activation=block.activation,
        fatrelu_threshold=block.fatrelu_threshold,
        mask=mask,
        dense=block.dense,
    )
    return FeedForwardResult(
        y=residual + output.y,
        gate_products=output.gate_products,
        up_products=output.up_products,
        down_products=output.down_products,
        n_fired=int(output.fired.count_nonzero()),
        predictor_s=predictor_s,
        predicted=mask if observe else None,
        fired=output.fired if observe else None,
    )
