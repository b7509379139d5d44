"""The blocks of a layer as the native side holds them: addresses, sizes, and matrices of its own."""

from __future__ import annotations

from powerinfer_py import _native
from powerinfer_py.config import Activation
from powerinfer_py.kernels.blocks import AttentionBlock, FeedForwardBlock
from powerinfer_py.kernels.tensor_checks import norm_addresses, optional_address

# The order of `enum class Activation` in csrc/jobs.hpp.
_ACTIVATION_IDS = {
    Activation.RELU: 0,
    Activation.RELU2: 1,
    Activation.FATRELU: 2,
    Activation.DRELU: 3,
    Activation.SILU: 4,
}


def attention_handle(block: AttentionBlock) -> _native.AttentionBlock:
    """For `AttentionBlock.handle`. The block's tensors must outlive it."""
    return _native.AttentionBlock(
        norm_addresses(block.norm, block.output.matrix.rows),
        [linear.matrix.handle for linear in block.qkv],
        [optional_address(linear.bias, linear.matrix.rows) for linear in block.qkv],
        block.output.matrix.handle,
        optional_address(block.output.bias, block.output.matrix.rows),
        (block.n_head, block.n_head_kv, block.head_dim, block.head_dim_v),
        block.scale,
    )


def feed_forward_handle(block: FeedForwardBlock) -> _native.FeedForwardBlock:
    """For `FeedForwardBlock.handle`. The block's tensors must outlive it."""
    weights, predictor = block.weights, block.predictor
    return _native.FeedForwardBlock(
        norm_addresses(block.norm, weights.up.cols),
        None if weights.gate is None else weights.gate.handle,
        optional_address(weights.gate_bias, weights.up.rows),
        weights.up.handle,
        optional_address(weights.up_bias, weights.up.rows),
        weights.down.handle,
        optional_address(weights.down_bias, weights.up.cols),
        weights.down_is_transposed,
        None if predictor is None else predictor.fc1.handle,
        None if predictor is None else predictor.fc2.handle,
        _ACTIVATION_IDS[block.activation],
        block.fatrelu_threshold,
        block.sparse_threshold,
        block.dense or not block.activation.is_sparse,
    )
