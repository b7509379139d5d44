"""The sparse FFN on a device, from mask to sum: which kernels run for a token, a prompt, and where all are read.

The semantics are `kernels.feed_forward`'s. Nothing waits for the device: grids and memory follow from shapes alone, and
what was computed is counted in device memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from powerinfer_py.config import Activation
from powerinfer_py.kernels.blocks import FeedForwardBlock, FeedForwardWeights
from powerinfer_py.kernels.triton import launch, lists
from powerinfer_py.kernels.triton.device_rows import Allocate
from powerinfer_py.kernels.triton.down_rows import CHUNK, down_rows, n_chunks
from powerinfer_py.kernels.triton.down_tiles import down_config, down_tiles
from powerinfer_py.kernels.triton.hidden_rows import Neurons, hidden_rows, row_config_of
from powerinfer_py.kernels.triton.hidden_tiles import hidden_tiles, tile_config_of
from powerinfer_py.kernels.triton.matrix_product import product
from powerinfer_py.kernels.triton.matrix_vector import linear
from powerinfer_py.kernels.triton.tally import tally

Lists = tuple[Tensor, Tensor]


def feed_forward(
    block: FeedForwardBlock,
    x: Tensor,
    y: Tensor,
    counts: Tensor,
    allocate: Allocate,
    *,
    mask: Tensor | None,
    residual: Tensor | None = None,
    fired: Tensor | None = None,
) -> None:
    """`y = residual + ffn(x)` of the block's rows alone; x, y and residual: (T, n_embd), x normed already.

    mask: bool (T, rows), or None for all neurons. fired: bool (T, rows), False where it is not written.
    counts: int64 (4), to which gate, up and down products and fired neurons are added.
    Raises ValueError for dReLU without a gate, and for a down projection whose rows are not neurons in a sparse call.
    """
    weights = block.weights
    dense = block.dense or not block.activation.is_sparse
    if not (dense or weights.down_is_transposed):
        raise ValueError("skipping neurons needs the down projection with a neuron a row")
    if weights.gate is None and block.activation is Activation.DRELU:
        raise ValueError("dReLU needs a gate")
    neurons = Neurons(
        None if weights.gate is None else weights.gate.handle,
        weights.up.handle,
        weights.gate_bias,
        weights.up_bias,
        block.activation,
        block.fatrelu_threshold,
    )
    if mask is not None:
        lists.require_mask(mask, (x.shape[0], weights.up.rows), x.device)
    if x.shape[0] <= launch.MAX_VECTOR_TOKENS:
        _few_tokens(neurons, weights, x, y, counts, allocate, mask, dense, residual, fired)
    else:
        _many_tokens(neurons, weights, x, y, counts, allocate, mask, dense, residual, fired)


def _few_tokens(
    neurons: Neurons,
    weights: FeedForwardWeights,
    x: Tensor,
    y: Tensor,
    counts: Tensor,
    allocate: Allocate,
    mask: Tensor | None,
    dense: bool,
    residual: Tensor | None,
    fired: Tensor | None,
) -> None:
    """A list of each token's own."""
    n_tokens, n = x.shape[0], neurons.up.rows
    chosen: Lists | None = None
    if mask is not None and not dense:
        chosen = allocate((n_tokens, n), torch.int32), allocate((n_tokens,), torch.int32)
        lists.list_active(mask, *chosen)
    config = row_config_of(neurons, x.device)
    counted = allocate((n_tokens, launch.cdiv(n, config.rows), 3), torch.int32)
    hidden = allocate((n_tokens, n), torch.float32)
    hidden_rows(
        neurons,
        x,
        hidden,
        counted,
        lists=chosen,
        mask=mask if dense else None,
        all_up=dense,
        fired=fired,
    )
    downs = None
    if weights.down_is_transposed:
        downs = allocate((n_tokens, n_chunks(n)), torch.int32)
        down_rows(
            weights.down.handle,
            hidden,
            y,
            downs,
            allocate,
            lists=chosen,
            all_rows=dense,
            bias=weights.down_bias,
            residual=residual,
        )
    else:
        linear(weights.down.handle, hidden, y, bias=weights.down_bias, residual=residual)
    tally(
        counted,
        downs,
        counts,
        list_counts=None if chosen is None else chosen[1],
        n=n,
        program_rows=config.rows,
        chunk_rows=CHUNK,
        all_downs=0 if weights.down_is_transposed else n_tokens * n,
        gated=neurons.gate is not None,
    )


def _many_tokens(
    neurons: Neurons,
    weights: FeedForwardWeights,
    x: Tensor,
    y: Tensor,
    counts: Tensor,
    allocate: Allocate,
    mask: Tensor | None,
    dense: bool,
    residual: Tensor | None,
    fired: Tensor | None,
) -> None:
    """One list for all tokens, each token's own mask deciding what it gets of a row."""
    n_tokens, n = x.shape[0], neurons.up.rows
    union: Lists | None = None
    if mask is not None and not dense:
        union = allocate((n,), torch.int32), allocate((1,), torch.int32)
        lists.list_active_of_any(mask, allocate((n,), torch.uint8), *union)
    config = tile_config_of(neurons, n_tokens, x.device)
    n_tiles = launch.cdiv(n_tokens, config.tokens)
    counted = allocate((n_tiles, launch.cdiv(n, config.rows), 3), torch.int32)
    # A product of a down projection the other way takes rows without gaps.
    stride = launch.aligned_columns(n) if weights.down_is_transposed else n
    hidden = allocate((n_tokens, stride), torch.float32)[:, :n]
    hidden_tiles(neurons, x, hidden, counted, allocate, union=union, mask=mask, all_rows=dense, fired=fired)
    downs = None
    if weights.down_is_transposed:
        down_tile = down_config(weights.down.handle, n_tokens, x.device)
        downs = allocate((launch.cdiv(n_tokens, down_tile.tokens), 1), torch.int32)
        down_tiles(
            weights.down.handle,
            hidden,
            y,
            downs.view(-1),
            allocate,
            union=union,
            all_rows=dense,
            bias=weights.down_bias,
            residual=residual,
        )
    else:
        product(weights.down.handle, hidden, y, allocate, bias=weights.down_bias, residual=residual)
    tally(
        counted,
        downs,
        counts,
        list_counts=None if union is None else union[1],
        n=n,
        program_rows=config.rows,
        chunk_rows=max(n, 1),
        all_downs=0 if weights.down_is_transposed else n_tokens * n,
        gated=neurons.gate is not None,
    )
