"""The sparse FFN on a device, from mask to sum: which kernels run for a token, a prompt, and where all are read.

The semantics are `kernels.feed_forward`'s. Nothing waits for the device: grids and memory follow from shapes alone, and
what was computed is counted in device memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from powerinfer_py.config import Activation
from powerinfer_py.kernels.blocks import FeedForwardBlock, FeedForwardWeights
from powerinfer_py.kernels.triton import launch, lists
from powerinfer_py.kernels.triton.device_rows import Allocate
from powerinfer_py.kernels.triton.down_rows import down_rows
from powerinfer_py.kernels.triton.down_tiles import down_tiles
from powerinfer_py.kernels.triton.hidden_rows import Neurons, hidden_rows
from powerinfer_py.kernels.triton.hidden_tiles import hidden_tiles
from powerinfer_py.kernels.triton.matrix_product import product
from powerinfer_py.kernels.triton.matrix_vector import linear

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
    call = _Call(neurons, weights, x, y, counts, allocate, mask, dense, residual, fired)
    if call.n_tokens <= launch.MAX_VECTOR_TOKENS:
        _few_tokens(call)
    else:
        _many_tokens(call)


@dataclass(frozen=True)
class _Call:
    """The arguments of `feed_forward`, checked; dense: every row is computed."""

    neurons: Neurons
    weights: FeedForwardWeights
    x: Tensor
    y: Tensor
    counts: Tensor
    allocate: Allocate
    mask: Tensor | None
    dense: bool
    residual: Tensor | None
    fired: Tensor | None

    @property
    def n_tokens(self) -> int:
        """Rows of x."""
        return self.x.shape[0]

    @property
    def n(self) -> int:
        """Neurons of the block that lie here."""
        return self.neurons.up.rows

    @property
    def skipping(self) -> Tensor | None:
        """The mask where neurons without it need not be read."""
        return None if self.dense else self.mask


def _few_tokens(call: _Call) -> None:
    """A list of each token's own."""
    weights, allocate, n_tokens, n = call.weights, call.allocate, call.n_tokens, call.n
    chosen: Lists | None = None
    if call.skipping is not None:
        chosen = allocate((n_tokens, n), torch.int32), allocate((n_tokens,), torch.int32)
        lists.list_active(call.skipping, *chosen)
    hidden = allocate((n_tokens, n), torch.float32)
    hidden_rows(
        call.neurons,
        call.x,
        hidden,
        call.counts,
        lists=chosen,
        mask=call.mask if call.dense else None,
        all_up=call.dense,
        fired=call.fired,
    )
    if weights.down_is_transposed:
        down_rows(
            weights.down.handle,
            hidden,
            call.y,
            call.counts,
            allocate,
            lists=chosen,
            all_rows=call.dense,
            bias=weights.down_bias,
            residual=call.residual,
        )
    else:
        linear(weights.down.handle, hidden, call.y, bias=weights.down_bias, residual=call.residual)
        call.counts[2].add_(n_tokens * n)


def _many_tokens(call: _Call) -> None:
    """One list for all tokens, each token's own mask deciding what it gets of a row."""
    weights, allocate, n_tokens, n = call.weights, call.allocate, call.n_tokens, call.n
    union: Lists | None = None
    if call.skipping is not None:
        union = allocate((n,), torch.int32), allocate((1,), torch.int32)
        lists.list_active_of_any(call.skipping, allocate((n,), torch.uint8), *union)
    # A product of a down projection the other way takes rows without gaps.
    stride = launch.aligned_columns(n) if weights.down_is_transposed else n
    hidden = allocate((n_tokens, stride), torch.float32)[:, :n]
    hidden_tiles(
        call.neurons,
        call.x,
        hidden,
        call.counts,
        allocate,
        union=union,
        mask=call.mask,
        all_rows=call.dense,
        fired=call.fired,
    )
    if weights.down_is_transposed:
        down_tiles(
            weights.down.handle,
            hidden,
            call.y,
            call.counts,
            allocate,
            union=union,
            all_rows=call.dense,
            bias=weights.down_bias,
            residual=call.residual,
        )
    else:
        product(weights.down.handle, hidden, call.y, allocate, bias=weights.down_bias, residual=call.residual)
        call.counts[2].add_(n_tokens * n)
