"""The two blocks of a transformer layer, composed of single operations: the definition of what the native blocks do.

A block ends by adding its result to a residual stream, so that a layer is two calls.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from powerinfer_py.kernels.blocks import AttentionBlock, FeedForwardBlock, FeedForwardResult, LayerCache, Norm
from powerinfer_py.kernels.feed_forward import feed_forward, predict
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import RopeTable

if TYPE_CHECKING:
    from torch import Tensor


def normalise(kernels: Kernels, norm: Norm, x: Tensor) -> Tensor:
    """RMSNorm or LayerNorm of x (T, n_embd)."""
    if norm.subtract_mean:
        return kernels.layer_norm(x, norm.weight, norm.bias, norm.eps)
    return kernels.rms_norm(x, norm.weight, norm.eps)


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
    h = normalise(kernels, block.norm, x)
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
        normalise(kernels, block.norm, x),
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
