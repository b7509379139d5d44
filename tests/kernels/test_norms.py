"""RMSNorm and LayerNorm against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_kernels import ROUNDOFF, tokens

from powerinfer_py.kernels.interface import Kernels

SIZES = [1, 3, 16, 17, 64, 100, 4097]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("n_tokens", [1, 2, 33])
def test_rms_norm_is_close_to_float64(kernels: Kernels, n: int, n_tokens: int) -> None:
    x, weight, eps = tokens(n_tokens, n) * 30, tokens(1, n, seed=2)[0], 1e-5
    x64 = x.numpy().astype(np.float64)
    want = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + eps) * weight.numpy()
    error = np.abs(kernels.rms_norm(x, weight, eps).numpy() - want)
    # The mean of squares has only positive terms: its relative error is that of n / 4 + 20 additions, halved by the
    # root; division, root and products add a few roundings.
    assert (error <= (n / 8 + 20) * ROUNDOFF * np.abs(want)).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_layer_norm_is_close_to_float64(kernels: Kernels, n: int, with_bias: bool) -> None:
    x, weight, eps = tokens(5, n) * 30 + 10, tokens(1, n, seed=2)[0], 1e-5
    bias = tokens(1, n, seed=3)[0] if with_bias else None
    x64, w64 = x.numpy().astype(np.float64), weight.numpy().astype(np.float64)
    b64 = np.zeros(n) if bias is None else bias.numpy().astype(np.float64)
    centred = x64 - x64.mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    want = centred * scale * w64 + b64
    error = np.abs(kernels.layer_norm(x, weight, bias, eps).numpy() - want)
    # The mean is off by at most (n / 4 + 20) roundings of the mean magnitude; that shifts every element, and its square
    # enters the variance (where deviations of a correct mean sum to 0).
    shift = (n / 4 + 20) * ROUNDOFF * np.abs(x64).mean(axis=1, keepdims=True) + ROUNDOFF * np.abs(x64)
    relative = (n / 8 + 20) * ROUNDOFF + (shift * scale) ** 2 + ROUNDOFF * np.abs(x64) * scale
    bound = shift * scale * np.abs(w64) + relative * np.abs(centred * scale * w64) + 2 * ROUNDOFF * np.abs(want)
    assert (error <= 1.01 * bound).all(), (error / bound).max()


def test_a_constant_token_normalises_to_the_bias(kernels: Kernels) -> None:
    x, bias = torch.full((2, 24), 3.0), torch.arange(24.0)
    assert kernels.layer_norm(x, torch.ones(24), bias, 1e-5).tolist() == [bias.tolist()] * 2


def test_nan_stays_in_its_token(kernels: Kernels) -> None:
    x = tokens(3, 40)
    x[1, 39] = float("nan")
    for y in (
        kernels.rms_norm(x, torch.ones(40), 1e-5),
        kernels.layer_norm(x, torch.ones(40), torch.zeros(40), 1e-5),
    ):
        assert torch.isnan(y[1]).all()
        assert torch.isfinite(y[[0, 2]]).all()
