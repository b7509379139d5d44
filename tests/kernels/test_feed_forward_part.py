"""Parts of an FFN, and the predictor, as calls of their own: bit for bit the composition; parts add up to the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_blocks import random_rows
from helpers_kernels import TYPE_IDS, mask_of, matrix_of, same_bits, tokens
from torch import Tensor

from powerinfer_py.config import Activation
from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType, row_bytes
from powerinfer_py.kernels.blocks import FeedForwardBlock, FeedForwardWeights, Norm, Predictor
from powerinfer_py.kernels.composition import run_part
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.feed_forward import predict
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.mask_bits import pack_columns, unpack_columns
from powerinfer_py.kernels.matrix import Matrix

N_EMBD, N_FF, RANK = 256, 90, 32
ACTIVATIONS = [(Activation.RELU, True), (Activation.DRELU, True), (Activation.FATRELU, True), (Activation.SILU, True)]
ACTIVATIONS += [(Activation.RELU2, True), (Activation.RELU, False), (Activation.RELU2, False)]


def vector(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def part_of(
    kernels: Kernels,
    activation: Activation = Activation.RELU,
    gated: bool = True,
    rows: range = range(N_FF),
    *,
    ggml_type: GGMLType = GGMLType.F32,
    dense: bool = False,
    down_bias: bool = True,
    poisoned: Tensor | None = None,
) -> FeedForwardBlock:
    """A block of the rows `rows`; those of `poisoned` (N_FF; bool) are NaN."""
    n_row = row_bytes(ggml_type, N_EMBD)

    def matrix(seed: int) -> Matrix:
        whole = random_rows(ggml_type, N_FF, N_EMBD, seed)
        data = whole.data.reshape(N_FF, n_row).copy()
        if poisoned is not None:
            data.view(np.float32)[poisoned.numpy()] = np.nan
        part = data[rows.start : rows.stop].reshape(-1)
        return kernels.matrix("w", ggml_type, len(rows), N_EMBD, part)

    some = slice(rows.start, rows.stop)
    weights = FeedForwardWeights(
        up=matrix(3),
        gate=matrix(4) if gated else None,
        down=matrix(5),
        down_is_transposed=True,
        up_bias=vector(N_FF, 6)[some].clone(),
        down_bias=vector(N_EMBD, 7) if down_bias else None,
        gate_bias=vector(N_FF, 8)[some].clone() if gated else None,
    )
    # The norm is not looked at: NaN shows it.
    norm = Norm(torch.full((N_EMBD,), float("nan")), None, 1e-5, False)
    block = FeedForwardBlock(norm, weights, None, activation, 0.5, 0.0, dense or not activation.is_sparse)
    return kernels.prepare_feed_forward(block)


def same_results(kernels: Kernels, block: FeedForwardBlock, h: Tensor, mask: Tensor | None, exact: bool = True) -> None:
    actual = kernels.feed_forward_part(block, h, mask, observe=True)
    expected = run_part(kernels, block, h, mask, True, None)
    if exact:
        assert same_bits(actual.y, expected.y)
    else:
        # Two exponentials, each good to 2e-7, meet float32 sums of 90 terms.
        torch.testing.assert_close(actual.y, expected.y, rtol=1e-4, atol=1e-2)
    assert actual.fired is not None and expected.fired is not None
    assert torch.equal(actual.fired, expected.fired)
    for name in ("gate_products", "up_products", "down_products", "n_fired"):
        assert getattr(actual, name) == getattr(expected, name)
    counts = torch.full((4,), 10, dtype=torch.int64)
    silent = kernels.feed_forward_part(block, h, mask, counts=counts)
    assert same_bits(silent.y, actual.y)
    numbers = [actual.gate_products, actual.up_products, actual.down_products, actual.n_fired]
    assert counts.tolist() == [10 + number for number in numbers]
    assert [silent.gate_products, silent.up_products, silent.down_products, silent.n_fired] == [0] * 4


@pytest.mark.parametrize("n_tokens", [0, 1, 3, 9])
@pytest.mark.parametrize(("activation", "gated"), ACTIVATIONS, ids=str)
def test_it_is_the_composition(native: NativeKernels, activation: Activation, gated: bool, n_tokens: int) -> None:
    h = tokens(n_tokens, N_EMBD)
    for dense in (False, True):
        block = part_of(native, activation, gated, dense=dense)
        for mask in (None, *(mask_of(n_tokens, N_FF, density) for density in (0.0, 0.3, 1.0))):
            same_results(native, block, h, mask, activation is not Activation.SILU)


@pytest.mark.parametrize("ggml_type", WEIGHT_TYPES, ids=TYPE_IDS)
def test_every_weight_type(native: NativeKernels, ggml_type: GGMLType) -> None:
    block = part_of(native, ggml_type=ggml_type)
    for n_tokens in (1, 5):
        same_results(native, block, tokens(n_tokens, N_EMBD), mask_of(n_tokens, N_FF, 0.4))


@pytest.mark.parametrize("n_tokens", [1, 6])
@pytest.mark.parametrize("gated", [True, False])
def test_no_rows(kernels: Kernels, gated: bool, n_tokens: int) -> None:
    h, mask = tokens(n_tokens, N_EMBD), torch.zeros(n_tokens, 0, dtype=torch.bool)
    for wanted in (None, mask):
        biased = kernels.feed_forward_part(part_of(kernels, Activation.RELU, gated, range(7, 7)), h, wanted)
        assert biased.y.tolist() == [vector(N_EMBD, 7).tolist()] * n_tokens
        plain = part_of(kernels, Activation.RELU, gated, range(0), down_bias=False)
        assert not kernels.feed_forward_part(plain, h, wanted).y.any()
        assert biased.gate_products == biased.up_products == biased.down_products == biased.n_fired == 0


@pytest.mark.parametrize(("activation", "gated"), ACTIVATIONS, ids=str)
@pytest.mark.parametrize("n_hot", [0, 1, 31, N_FF])
def test_parts_add_up(kernels: Kernels, activation: Activation, gated: bool, n_hot: int) -> None:
    """The masks of the parts are views of one mask, whose rows lie apart."""
    h, mask = tokens(4, N_EMBD), mask_of(4, N_FF, 0.5)
    whole = kernels.feed_forward_part(part_of(kernels, activation, gated), h, mask)
    hot = part_of(kernels, activation, gated, range(n_hot))
    cold = part_of(kernels, activation, gated, range(n_hot, N_FF), down_bias=False)
    a = kernels.feed_forward_part(hot, h, mask[:, :n_hot])
    b = kernels.feed_forward_part(cold, h, mask[:, n_hot:])
    error = ((a.y + b.y - whole.y).double().square().mean() / whole.y.double().square().mean()).item()
    assert error < 1e-12
    assert a.n_fired + b.n_fired == whole.n_fired
    assert a.down_products + b.down_products == whole.down_products


@pytest.mark.parametrize("n_tokens", [1, 6])
@pytest.mark.parametrize("gated", [True, False])
def test_rows_out_of_the_mask_are_not_read(kernels: Kernels, gated: bool, n_tokens: int) -> None:
    h, mask = tokens(n_tokens, N_EMBD), mask_of(n_tokens, N_FF, 0.2)
    clean = kernels.feed_forward_part(part_of(kernels, Activation.RELU, gated), h, mask)
    unread = ~mask.any(dim=0)
    assert unread.any()
    dirty = part_of(kernels, Activation.RELU, gated, poisoned=unread)
    assert same_bits(kernels.feed_forward_part(dirty, h, mask).y, clean.y)
    assert kernels.feed_forward_part(dirty, h, None).y.isnan().any()


def test_nan_reaches_the_output(kernels: Kernels) -> None:
    h = tokens(2, N_EMBD)
    h[1, 3] = float("nan")
    y = kernels.feed_forward_part(part_of(kernels), h, mask_of(2, N_FF, 0.5)).y
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_change_nothing(threads: int) -> None:
    reference, kernels = NativeKernels(2), NativeKernels(threads)
    block = part_of(reference, ggml_type=GGMLType.Q4_0)
    h, mask = tokens(7, N_EMBD), mask_of(7, N_FF, 0.5)
    expected = reference.feed_forward_part(block, h, mask).y
    assert all(same_bits(kernels.feed_forward_part(block, h, mask).y, expected) for _ in range(50))


def test_what_does_not_fit_is_refused(native: NativeKernels) -> None:
    block, h = part_of(native), tokens(2, N_EMBD)
    with pytest.raises(ValueError, match="mask"):
        native.feed_forward_part(block, h, mask_of(2, N_FF - 1, 0.5))
    with pytest.raises(TypeError, match="mask"):
        native.feed_forward_part(block, h, tokens(2, N_FF))
    with pytest.raises(ValueError, match="x must"):
        native.feed_forward_part(block, h[:, :-1], None)


@pytest.mark.parametrize("n_tokens", [0, 1, 9])
@pytest.mark.parametrize("ggml_type", [GGMLType.F16, GGMLType.Q4_0])
def test_predict(kernels: Kernels, ggml_type: GGMLType, n_tokens: int) -> None:
    fc1 = matrix_of(kernels, random_rows(ggml_type, RANK, N_EMBD, 1))
    fc2 = matrix_of(kernels, random_rows(ggml_type, N_FF, RANK, 2))
    x = tokens(n_tokens, N_EMBD)
    mask = kernels.predict(Predictor(fc1, fc2), x, 0.7)
    assert mask.dtype is torch.bool and mask.shape == (n_tokens, N_FF)
    assert torch.equal(mask, predict(kernels, fc1, fc2, x, 0.7))
    if n_tokens:
        assert 0 < mask.sum() < mask.numel()
        x[0, 5] = float("nan")
        assert kernels.predict(Predictor(fc1, fc2), x, 0.7)[0].all()


def test_predict_refuses_shapes_that_do_not_fit(native: NativeKernels) -> None:
    fc1, fc2 = (matrix_of(native, random_rows(GGMLType.F16, *shape)) for shape in ((RANK, N_EMBD), (N_FF, RANK + 1)))
    with pytest.raises(ValueError, match="fc2"):
        native.predict(Predictor(fc1, fc2), tokens(1, N_EMBD), 0.0)


@pytest.mark.parametrize("begin", [0, 1, 8, 13, 90])
@pytest.mark.parametrize("n_tokens", [0, 1, 5])
def test_bits(kernels: Kernels, n_tokens: int, begin: int) -> None:
    mask = mask_of(n_tokens, N_FF, 0.5)
    bits = kernels.pack_mask(mask, begin)
    expected = np.packbits(mask.numpy()[:, begin:], axis=1, bitorder="little")
    assert bits.dtype is torch.uint8
    assert np.array_equal(bits.numpy(), expected.reshape(n_tokens, -(-(N_FF - begin) // 8)))
    assert torch.equal(unpack_columns(bits, N_FF - begin), mask[:, begin:])
    assert torch.equal(pack_columns(mask[:, begin:], 0), bits)
