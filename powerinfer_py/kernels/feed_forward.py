"""The sparse FFN, composed of the operations of `Kernels`: the one place that decides which rows are needed.

A neuron that is masked out, or that did not fire, contributes exactly 0 and its remaining rows are not read. NaN counts
as firing everywhere (conditions are written as negations), so that it reaches the output instead of vanishing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from powerinfer_py.config import Activation
from powerinfer_py.kernels.blocks import FeedForwardWeights
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class FeedForwardOutput:
    """y: (T, n_embd). fired: (T, n_ff) bool. The products are (token, neuron) pairs whose row was really computed."""

    y: Tensor
    fired: Tensor
    gate_products: int
    up_products: int
    down_products: int


def feed_forward(
    kernels: Kernels,
    weights: FeedForwardWeights,
    x: Tensor,
    *,
    activation: Activation,
    fatrelu_threshold: float,
    mask: Tensor | None,
    dense: bool,
) -> FeedForwardOutput:
    """The FFN of x (T, n_embd).

    mask: (T, n_ff) bool, the neurons to compute, or None for all. dense: every row of gate, up and down is read,
    whatever the mask and the activation say (SILU always does); the result differs only by the order of sums.
    Raises ValueError for dReLU without a gate, and for a down projection whose rows are not neurons in a sparse call.
    """
    dense = dense or not activation.is_sparse
    if not (dense or weights.down_is_transposed):
        raise ValueError("skipping neurons needs the down projection with a neuron a row")
    if weights.gate is None:
        if activation is Activation.DRELU:
            raise ValueError("dReLU needs a gate")
        first, n_first = _products(kernels, weights.up, x, weights.up_bias, None if dense else mask)
        fired = _fired(first, activation, fatrelu_threshold, mask)
        hidden = _activate(first, fired, activation)
        n_gate, n_up = 0, n_first
    else:
        first, n_gate = _products(kernels, weights.gate, x, weights.gate_bias, None if dense else mask)
        fired = _fired(first, activation, fatrelu_threshold, mask)
        up, n_up = _products(kernels, weights.up, x, weights.up_bias, None if dense else fired)
        if activation is Activation.DRELU:
            fired = (up <= 0).logical_not_().logical_and_(fired)
        hidden = _activate(first, fired, activation).mul_(up).masked_fill_(fired.logical_not(), 0.0)
    y, n_down = _down(kernels, weights, hidden, dense)
    return FeedForwardOutput(y, fired, n_gate, n_up, n_down)


def predict(kernels: Kernels, fc1: Matrix, fc2: Matrix, x: Tensor, threshold: float) -> Tensor:
    """Neurons that the predictor takes as active: `fc2 @ relu(fc1 @ x) >= threshold`, NaN included; (T, n_ff) bool.

    x: (T, n_embd); fc1: (rank, n_embd); fc2: (n_ff, rank).
    """
    scores = kernels.linear(fc2, kernels.linear(fc1, x).relu_())
    return (scores < threshold).logical_not_()


def _products(
    kernels: Kernels, matrix: Matrix, x: Tensor, bias: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, int]:
    if mask is None:
        return kernels.linear(matrix, x, bias), x.shape[0] * matrix.rows
    return kernels.linear_masked(matrix, x, mask, bias)


def _fired(first: Tensor, activation: Activation, fatrelu_threshold: float, mask: Tensor | None) -> Tensor:
    if activation is Activation.FATRELU:
        fired = (first < fatrelu_threshold).logical_not_()
    elif activation.is_sparse:
        fired = (first <= 0).logical_not_()
    else:
        fired = first.new_ones(first.shape).bool()
    return fired if mask is None else fired.logical_and_(mask)


def _activate(first: Tensor, fired: Tensor, activation: Activation) -> Tensor:
    """The activation of `first`, 0 where the neuron did not fire."""
    if activation is Activation.SILU:
        value = first / (1.0 + (-first).exp())
    elif activation is Activation.RELU2:
        value = first.square()
    else:
        value = first.clone()
    return value.masked_fill_(fired.logical_not(), 0.0)


def _down(kernels: Kernels, weights: FeedForwardWeights, hidden: Tensor, dense: bool) -> tuple[Tensor, int]:
    if weights.down_is_transposed:
        return kernels.accumulate_rows(weights.down, hidden, weights.down_bias, all_rows=dense)
    return kernels.linear(weights.down, hidden, weights.down_bias), hidden.numel()
