"""The two blocks of a transformer layer, composed of single operations: the definition of what the native blocks do.

A block ends by adding its result to a residual stream, so that a layer is two calls; a part of a block (some of its
neurons) does not, so that parts can be added up.
"""

from __future__ import annotations

from dataclasses import replace
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
    kernels: Kernels,
    block: FeedForwardBlock,
    x: Tensor,
    residual: Tensor,
    observe: bool,
    counts: Tensor | None = None,
) -> FeedForwardResult:
    """`residual + ffn(norm(x))`, see `Kernels.feed_forward_block`."""
    started = perf_counter()
    mask = None
    if block.predictor is not None and not block.dense:
        mask = predict(kernels, block.predictor.fc1, block.predictor.fc2, x, block.sparse_threshold)
    predictor_s = perf_counter() - started
    part = run_part(kernels, block, normalise(kernels, block.norm, x), mask, observe, counts)
    return replace(part, y=residual + part.y, predictor_s=predictor_s)


def run_part(
    kernels: Kernels, block: FeedForwardBlock, h: Tensor, mask: Tensor | None, observe: bool, counts: Tensor | None
) -> FeedForwardResult:
    """The FFN of the block's rows over h alone, see `Kernels.feed_forward_part`."""
    output = feed_forward(
        kernels,
        block.weights,
        h,
        activation=block.activation,
        fatrelu_threshold=block.fatrelu_threshold,
        mask=mask,
        dense=block.dense,
    )
    numbers = (output.gate_products, output.up_products, output.down_products, int(output.fired.count_nonzero()))
    return FeedForwardResult(
        output.y,
        *reported(numbers, counts),
        predictor_s=0.0,
        predicted=mask if observe else None,
        fired=output.fired if observe else None,
    )


def reported(numbers: tuple[int, int, int, int], counts: Tensor | None) -> tuple[int, int, int, int]:
    """What a result says of gate, up and down products and fired neurons: nothing where they went into `counts`."""
    if counts is None:
        return numbers
    counts += counts.new_tensor(numbers)
    return 0, 0, 0, 0
