"""The sparse FFN: every activation against the formula in float64, what it reads, what it counts, what it reports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_blocks import random_rows
from helpers_kernels import mask_of, same_bits, tokens
from torch import Tensor

from powerinfer_py.config import Activation
from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import FeedForwardWeights
from powerinfer_py.kernels.feed_forward import FeedForwardOutput, feed_forward, predict
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix

N_EMBD, N_FF = 40, 150
THRESHOLD = 0.8

GATED = [Activation.RELU, Activation.FATRELU, Activation.DRELU, Activation.SILU, Activation.RELU2]
PLAIN = [Activation.RELU, Activation.RELU2, Activation.FATRELU, Activation.SILU]
CASES = [(activation, True) for activation in GATED] + [(activation, False) for activation in PLAIN]
SPARSE = [case for case in CASES if case[0].is_sparse]

every_case = pytest.mark.parametrize(("activation", "gated"), CASES, ids=lambda value: str(value))
sparse_case = pytest.mark.parametrize(("activation", "gated"), SPARSE, ids=lambda value: str(value))


class Layer:
    """Float32 weights of one FFN as arrays, and as matrices of some kernels."""

    def __init__(self, gated: bool, biases: bool = True) -> None:
        self.gate = random_rows(GGMLType.F32, N_FF, N_EMBD, seed=1).values / 6 if gated else None
        self.up = random_rows(GGMLType.F32, N_FF, N_EMBD, seed=2).values / 6
        self.down = random_rows(GGMLType.F32, N_FF, N_EMBD, seed=3).values
        self.up_bias = torch.linspace(-0.5, 0.5, N_FF) if biases else None
        self.down_bias = torch.linspace(-1, 1, N_EMBD) if biases else None

    def weights(self, kernels: Kernels, transposed: bool = True) -> FeedForwardWeights:
        down = self.down if transposed else np.ascontiguousarray(self.down.T)
        gate = None if self.gate is None else matrix(kernels, self.gate)
        return FeedForwardWeights(
            matrix(kernels, self.up), gate, matrix(kernels, down), transposed, self.up_bias, self.down_bias
        )

    def expected(self, x: Tensor, activation: Activation, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Output and fired neurons in float64."""
        x64 = x.numpy().astype(np.float64)
        up = x64 @ self.up.T.astype(np.float64) + (0 if self.up_bias is None else self.up_bias.numpy())
        first = up if self.gate is None else x64 @ self.gate.T.astype(np.float64)
        fired = np.ones(first.shape, bool) if mask is None else mask.numpy().copy()
        if activation is Activation.FATRELU:
            fired &= first >= THRESHOLD
        elif activation is not Activation.SILU:
            fired &= first > 0
        if activation is Activation.DRELU:
            fired &= up > 0
        value = {Activation.SILU: first / (1 + np.exp(-first)), Activation.RELU2: first**2}.get(activation, first)
        hidden = np.where(fired, value * (1 if self.gate is None else up), 0)
        y = hidden @ self.down.astype(np.float64)
        return y + (0 if self.down_bias is None else self.down_bias.numpy()), fired


def matrix(kernels: Kernels, values: np.ndarray) -> Matrix:
    return kernels.matrix("w", GGMLType.F32, *values.shape, values.reshape(-1).view(np.uint8))


def run(
    kernels: Kernels,
    weights: FeedForwardWeights,
    x: Tensor,
    activation: Activation,
    mask: Tensor | None = None,
    dense: bool = False,
) -> FeedForwardOutput:
    return feed_forward(kernels, weights, x, activation=activation, fatrelu_threshold=THRESHOLD, mask=mask, dense=dense)


@every_case
@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("density", [None, 0.0, 0.3, 1.0])
def test_it_is_the_formula(
    kernels: Kernels, activation: Activation, gated: bool, n_tokens: int, density: float | None
) -> None:
    layer, x = Layer(gated), tokens(n_tokens, N_EMBD)
    mask = None if density is None else mask_of(n_tokens, N_FF, density)
    got = run(kernels, layer.weights(kernels), x, activation, mask)
    y, fired = layer.expected(x, activation, mask)
    assert (got.fired.numpy() == fired).all()
    # Sums of 150 terms of magnitude about 1 (up to 10), each off by some 40 roundings.
    assert np.abs(got.y.numpy() - y).max() <= 150 * 10 * 50 * 2.0**-24


@sparse_case
def test_only_what_is_needed_is_counted(kernels: Kernels, activation: Activation, gated: bool) -> None:
    layer, x, mask = Layer(gated), tokens(9, N_EMBD), mask_of(9, N_FF, 0.4)
    got = run(kernels, layer.weights(kernels), x, activation, mask)
    n_masked, n_fired = int(mask.count_nonzero()), int(got.fired.count_nonzero())
    assert 0 < n_fired < n_masked
    if gated:
        gate_fired = run(kernels, layer.weights(kernels), x, replace_drelu(activation), mask).fired
        assert got.gate_products == n_masked
        assert got.up_products == int(gate_fired.count_nonzero())
    else:
        assert (got.gate_products, got.up_products) == (0, n_masked)
    assert got.down_products == n_fired


def replace_drelu(activation: Activation) -> Activation:
    """The activation whose neurons are those whose gate fired."""
    return Activation.RELU if activation is Activation.DRELU else activation


@every_case
def test_dense_reads_everything_and_agrees(kernels: Kernels, activation: Activation, gated: bool) -> None:
    layer, x, mask = Layer(gated), tokens(5, N_EMBD), mask_of(5, N_FF, 0.4)
    sparse = run(kernels, layer.weights(kernels), x, activation, mask)
    for transposed in (True, False):
        dense = run(kernels, layer.weights(kernels, transposed), x, activation, mask, dense=True)
        assert torch.equal(dense.fired, sparse.fired)
        assert torch.allclose(dense.y, sparse.y, rtol=0, atol=1e-3 * float(sparse.y.abs().max()))
        everything = 5 * N_FF
        assert (dense.gate_products, dense.up_products) == (everything if gated else 0, everything)
        assert dense.down_products == everything


@sparse_case
@pytest.mark.parametrize("n_tokens", [1, 6])
def test_rows_of_silent_neurons_are_not_read(
    kernels: Kernels, activation: Activation, gated: bool, n_tokens: int
) -> None:
    layer, x, mask = Layer(gated), tokens(n_tokens, N_EMBD), mask_of(n_tokens, N_FF, 0.2)
    clean = run(kernels, layer.weights(kernels), x, activation, mask)
    dropped = ~mask.any(dim=0).numpy()
    silent = ~clean.fired.any(dim=0).numpy()
    gate_silent = dropped
    if gated:
        gate_fired = run(kernels, layer.weights(kernels), x, replace_drelu(activation), mask).fired
        gate_silent = ~gate_fired.any(dim=0).numpy()
        layer.gate = np.where(dropped[:, None], np.nan, layer.gate).astype(np.float32)
    layer.up = np.where(gate_silent[:, None], np.nan, layer.up).astype(np.float32)
    layer.down = np.where(silent[:, None], np.nan, layer.down).astype(np.float32)
    dirty = run(kernels, layer.weights(kernels), x, activation, mask)
    assert dropped.any()
    assert silent.sum() > dropped.sum()
    assert same_bits(clean.y, dirty.y)
    assert torch.equal(clean.fired, dirty.fired)


@every_case
def test_nan_is_not_swallowed(kernels: Kernels, activation: Activation, gated: bool) -> None:
    layer, x = Layer(gated), tokens(3, N_EMBD)
    x[1, 7] = float("nan")
    got = run(kernels, layer.weights(kernels), x, activation)
    assert torch.isnan(got.y[1]).all()
    assert torch.isfinite(got.y[[0, 2]]).all()
    assert got.fired[1].all()


def test_a_neuron_exactly_at_the_threshold(kernels: Kernels) -> None:
    """relu needs more than 0, FATReLU at least t."""
    x = torch.ones(1, 1)
    for activation, values, fired in (
        (Activation.RELU, [0.0, -0.0, 1e-45], [False, False, True]),
        (Activation.FATRELU, [THRESHOLD, 0.79999, 0.0], [True, False, False]),
    ):
        up = matrix(kernels, np.array(values, np.float32).reshape(3, 1))
        down = matrix(kernels, np.ones((3, 1), np.float32))
        got = feed_forward(
            kernels,
            FeedForwardWeights(up, None, down, True, None, None),
            x,
            activation=activation,
            fatrelu_threshold=float(np.float32(THRESHOLD)),
            mask=None,
            dense=False,
        )
        assert got.fired.tolist() == [fired]


def test_a_fatrelu_threshold_of_zero_or_less_keeps_masked_neurons_silent(kernels: Kernels) -> None:
    layer, x, mask = Layer(True), tokens(4, N_EMBD), mask_of(4, N_FF, 0.5)
    got = feed_forward(
        kernels,
        layer.weights(kernels),
        x,
        activation=Activation.FATRELU,
        fatrelu_threshold=-1.0,
        mask=mask,
        dense=False,
    )
    assert not (got.fired & ~mask).any()
    assert got.up_products == int(got.fired.count_nonzero())


def test_a_gate_may_have_a_bias(kernels: Kernels) -> None:
    layer, x = Layer(True), tokens(2, N_EMBD)
    weights = replace(layer.weights(kernels), gate_bias=torch.full((N_FF,), -100.0))
    got = run(kernels, weights, x, Activation.RELU)
    assert not got.fired.any()
    assert layer.down_bias is not None
    assert got.y.tolist() == [layer.down_bias.tolist()] * 2


def test_what_cannot_be_computed_is_refused(kernels: Kernels) -> None:
    x = tokens(1, N_EMBD)
    with pytest.raises(ValueError, match="gate"):
        run(kernels, Layer(False).weights(kernels), x, Activation.DRELU)
    with pytest.raises(ValueError, match="neuron a row"):
        run(kernels, Layer(True).weights(kernels, transposed=False), x, Activation.RELU)


def test_predict_takes_the_threshold_itself_and_nan_as_active(kernels: Kernels) -> None:
    fc1 = matrix(kernels, np.array([[1.0], [-1.0]], np.float32))
    fc2 = matrix(kernels, np.array([[0.5, 0], [0.49, 0], [0, 5], [-1, 0]], np.float32))
    assert predict(kernels, fc1, fc2, torch.tensor([[1.0]]), 0.5).tolist() == [[True, False, False, False]]
    assert predict(kernels, fc1, fc2, torch.tensor([[1.0]]), 0.0).tolist() == [[True, True, True, False]]
    assert predict(kernels, fc1, fc2, torch.tensor([[float("nan")]]), 0.5).tolist() == [[True] * 4]
