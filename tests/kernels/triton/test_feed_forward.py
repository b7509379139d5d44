"""The sparse FFN of a token and of a prompt against the reference: results, what is read, what is counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_kernels import mask_of, same_bits, tokens
from helpers_triton import (
    DEVICE_IDS,
    DEVICE_TYPES,
    QUANTISED,
    Layer,
    Poison,
    nmse,
    nmse_of_sums,
    on_device,
    stored_matrix,
)
from torch import Tensor

from powerinfer_py.config import Activation
from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import FeedForwardResult, Predictor
from powerinfer_py.kernels.reference import ReferenceKernels
from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.kernels import TritonKernels

CASES = [(activation, True) for activation in Activation]
CASES += [(Activation.RELU, False), (Activation.RELU2, False), (Activation.FATRELU, False)]
SPARSE = [case for case in CASES if case[0].is_sparse]
every_case = pytest.mark.parametrize(("activation", "gated"), CASES, ids=lambda value: str(value))
sparse_case = pytest.mark.parametrize(("activation", "gated"), SPARSE, ids=lambda value: str(value))
# A token, and more than `launch.MAX_VECTOR_TOKENS`: the two ways through the kernels.
both_ways = pytest.mark.parametrize("n_tokens", [2, 9])


def largest_nmse(kernels: TritonKernels, layer: Layer, n_tokens: int) -> float:
    """Float32 sums are off by some 1e-14, those of a few tokens with fractions of blocks by 3e-11; weights rounded to
    F16 by 2^-11 of themselves, in prompts activations too."""
    if layer.ggml_type is GGMLType.F32:
        return 1e-12
    if layer.ggml_type in (GGMLType.F16, GGMLType.BF16):
        return nmse_of_sums(kernels, 1e-12) if n_tokens > launch.MAX_VECTOR_TOKENS else 1e-12
    rounded = layer.ggml_type not in QUANTISED or n_tokens > launch.MAX_VECTOR_TOKENS
    return 3e-5 if rounded else 1e-10


def run(
    kernels: TritonKernels, layer: Layer, x: Tensor, mask: Tensor | None, poisoned: dict[str, np.ndarray] | None = None
) -> FeedForwardResult:
    got = kernels.feed_forward_part(
        layer.block(kernels, poisoned),
        on_device(kernels, x),
        on_device(kernels, mask),
        observe=True,  # type: ignore[arg-type]
    )
    assert got.fired is not None
    return replace(got, y=got.y.cpu(), fired=got.fired.cpu())


def require_equal(got: FeedForwardResult, want: FeedForwardResult, largest: float) -> None:
    assert got.fired is not None
    assert want.fired is not None
    assert torch.equal(got.fired, want.fired)
    assert nmse(got.y, want.y) <= largest
    # No single result is off by more than five times what all may be off by on average.
    assert float((got.y - want.y).abs().max()) ** 2 <= 25 * largest * float(want.y.square().mean())
    numbers = [(one.gate_products, one.up_products, one.down_products, one.n_fired) for one in (got, want)]
    assert numbers[0] == numbers[1]


@every_case
@both_ways
def test_every_activation(
    triton_kernels: TritonKernels, reference: ReferenceKernels, activation: Activation, gated: bool, n_tokens: int
) -> None:
    layer = Layer(GGMLType.F32, activation=activation, gated=gated)
    x, mask = tokens(n_tokens, layer.n_embd), mask_of(n_tokens, layer.n_ff, 0.4)
    want = reference.feed_forward_part(layer.block(reference), x, mask, observe=True)
    require_equal(run(triton_kernels, layer, x, mask), want, largest_nmse(triton_kernels, layer, n_tokens))


@pytest.mark.parametrize("ggml_type", DEVICE_TYPES, ids=DEVICE_IDS)
@both_ways
@pytest.mark.parametrize("density", [None, 0.0, 0.3, 1.0])
def test_every_storage_and_density(
    triton_kernels: TritonKernels,
    reference: ReferenceKernels,
    ggml_type: GGMLType,
    n_tokens: int,
    density: float | None,
) -> None:
    layer = Layer(ggml_type, n_embd=256 if ggml_type is GGMLType.Q4_K else 96, biases=density == 0.3)
    x = tokens(n_tokens, layer.n_embd)
    mask = None if density is None else mask_of(n_tokens, layer.n_ff, density)
    want = reference.feed_forward_part(layer.block(reference), x, mask, observe=True)
    require_equal(run(triton_kernels, layer, x, mask), want, largest_nmse(triton_kernels, layer, n_tokens))


def test_tiles_of_a_device(
    triton_kernels: TritonKernels, reference: ReferenceKernels, device_config: launch.RowConfig
) -> None:
    layer = Layer(GGMLType.Q4_0, n_ff=5 * device_config.rows + 1, activation=Activation.DRELU)
    x, mask = tokens(2, layer.n_embd), mask_of(2, layer.n_ff, 0.5)
    want = reference.feed_forward_part(layer.block(reference), x, mask, observe=True)
    require_equal(run(triton_kernels, layer, x, mask), want, largest_nmse(triton_kernels, layer, 2))


@pytest.mark.parametrize("ggml_type", [GGMLType.F32, GGMLType.F16, GGMLType.Q4_0], ids=str)
@pytest.mark.parametrize("parts", [1, 3, 16])
@pytest.mark.parametrize("density", [None, 0.0, 0.2])
def test_parts_of_sums_are_added_in_one_order(
    triton_kernels: TritonKernels,
    reference: ReferenceKernels,
    monkeypatch: pytest.MonkeyPatch,
    ggml_type: GGMLType,
    parts: int,
    density: float | None,
) -> None:
    """As many as there are steps, fewer and more, over lists with and without entries."""
    monkeypatch.setattr(launch, "tile_config", lambda *_: launch.TileConfig(16, 64, 32, 4, 2, parts))
    layer = Layer(ggml_type, n_ff=203, n_embd=160)
    x, mask = tokens(19, layer.n_embd), None if density is None else mask_of(19, layer.n_ff, density)
    want = reference.feed_forward_part(layer.block(reference), x, mask, observe=True)
    got = run(triton_kernels, layer, x, mask)
    require_equal(got, want, largest_nmse(triton_kernels, layer, len(x)))
    assert same_bits(run(triton_kernels, layer, x, mask).y, got.y)


@both_ways
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("activation", [Activation.SILU, Activation.RELU])
def test_dense(
    triton_kernels: TritonKernels, reference: ReferenceKernels, activation: Activation, transposed: bool, n_tokens: int
) -> None:
    layer = Layer(GGMLType.F16, activation=activation, dense=True, transposed=transposed)
    x, mask = tokens(n_tokens, layer.n_embd), mask_of(n_tokens, layer.n_ff, 0.4)
    for some in (None, mask):
        want = reference.feed_forward_part(layer.block(reference), x, some, observe=True)
        require_equal(run(triton_kernels, layer, x, some), want, largest_nmse(triton_kernels, layer, n_tokens))


@sparse_case
@both_ways
def test_rows_of_silent_neurons_change_nothing(
    triton_kernels: TritonKernels, activation: Activation, gated: bool, n_tokens: int
) -> None:
    layer = Layer(GGMLType.Q4_0 if gated else GGMLType.F16, activation=activation, gated=gated)
    x, mask = tokens(n_tokens, layer.n_embd), mask_of(n_tokens, layer.n_ff, 0.1)
    clean = run(triton_kernels, layer, x, mask)
    assert clean.fired is not None
    dropped = ~mask.any(dim=0).numpy()
    first_fired = clean.fired
    if activation is Activation.DRELU:
        relu = run(triton_kernels, replace(layer, activation=Activation.RELU), x, mask)
        assert relu.fired is not None
        first_fired = relu.fired
    first_silent, silent = (~fired.any(dim=0).numpy() for fired in (first_fired, clean.fired))
    assert dropped.any()
    assert silent.sum() > dropped.sum()
    poisoned = {"gate": dropped, "up": first_silent if gated else dropped, "down": silent}
    dirty = run(triton_kernels, layer, x, mask, poisoned)
    assert dirty.fired is not None
    assert torch.equal(dirty.fired, clean.fired)
    assert same_bits(dirty.y, clean.y)


@both_ways
@pytest.mark.parametrize("ggml_type", [GGMLType.F32, GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_0], ids=str)
def test_nan_in_a_row_reaches_the_tokens_that_use_it_alone(
    triton_kernels: TritonKernels, n_tokens: int, ggml_type: GGMLType
) -> None:
    layer = Layer(ggml_type)
    x, mask = tokens(n_tokens, layer.n_embd), mask_of(n_tokens, layer.n_ff, 0.5)
    clean = run(triton_kernels, layer, x, mask)
    assert clean.fired is not None
    # A neuron that some tokens use and others do not.
    uses = clean.fired.float().mean(dim=0)
    neuron = int(((uses > 0) & (uses < 1)).nonzero()[0])
    bad = np.arange(layer.n_ff) == neuron
    dirty = run(triton_kernels, layer, x, mask, {"down": bad})
    users = clean.fired[:, neuron]
    assert torch.isnan(dirty.y[users]).all()
    assert same_bits(dirty.y[~users], clean.y[~users])


@every_case
@both_ways
def test_nan_is_not_swallowed(
    triton_kernels: TritonKernels, activation: Activation, gated: bool, n_tokens: int
) -> None:
    layer = Layer(GGMLType.F16, activation=activation, gated=gated)
    x = tokens(n_tokens, layer.n_embd)
    x[1, 7] = float("nan")
    got = run(triton_kernels, layer, x, None)
    assert got.fired is not None
    assert torch.isnan(got.y[1]).all()
    assert torch.isfinite(got.y[0]).all()
    assert got.fired[1].all()


def test_counts_are_added_on_the_device(triton_kernels: TritonKernels) -> None:
    layer, counts = Layer(GGMLType.F16), on_device(triton_kernels, torch.tensor([10, 20, 30, 40]))
    assert counts is not None
    for n_tokens in (3, 9):
        x, mask = tokens(n_tokens, layer.n_embd), mask_of(n_tokens, layer.n_ff, 0.3)
        want = run(triton_kernels, layer, x, mask)
        before = counts.tolist()
        got = triton_kernels.feed_forward_part(
            layer.block(triton_kernels),
            *(on_device(triton_kernels, one) for one in (x, mask)),
            counts=counts,  # type: ignore[arg-type]
        )
        numbers = [want.gate_products, want.up_products, want.down_products, want.n_fired]
        assert counts.tolist() == [a + b for a, b in zip(before, numbers, strict=True)]
        assert got.gate_products == got.n_fired == 0


def test_a_neuron_exactly_at_the_threshold(triton_kernels: TritonKernels, reference: ReferenceKernels) -> None:
    """relu needs more than 0, FATReLU at least t."""
    x = torch.ones(1, 1)
    for activation, values in ((Activation.RELU, [0.0, -0.0, 1e-38]), (Activation.FATRELU, [0.8, 0.79999, 0.0])):
        layer = Layer(GGMLType.F32, n_ff=3, n_embd=1, activation=activation, gated=False, biases=False)
        fired = []
        for kernels in (triton_kernels, reference):
            block = layer.block(kernels)
            up = kernels.matrix("w", GGMLType.F32, 3, 1, np.array(values, np.float32).view(np.uint8))
            block = replace(block, weights=replace(block.weights, up=up), fatrelu_threshold=float(np.float32(0.8)))
            result = kernels.feed_forward_part(block, on_device(kernels, x), None, observe=True)  # type: ignore[arg-type]
            assert result.fired is not None
            fired.append(result.fired.tolist())
        assert fired[0] == fired[1] == [[activation is Activation.FATRELU, False, activation is Activation.RELU]]


@both_ways
def test_a_block_without_rows_gives_its_bias(triton_kernels: TritonKernels, n_tokens: int) -> None:
    layer = Layer(GGMLType.F16, n_ff=0)
    got = run(triton_kernels, layer, tokens(n_tokens, layer.n_embd), torch.zeros(n_tokens, 0, dtype=torch.bool))
    assert torch.equal(got.y, torch.linspace(-1, 1, layer.n_embd).expand(n_tokens, -1))
    assert got.gate_products == got.down_products == 0


@pytest.mark.parametrize("ggml_type", [GGMLType.F32, GGMLType.F16, GGMLType.Q4_0], ids=str)
@both_ways
def test_predictions(
    triton_kernels: TritonKernels, reference: ReferenceKernels, ggml_type: GGMLType, n_tokens: int
) -> None:
    x = tokens(n_tokens, 96)
    x[1, 3] = float("nan")
    masks = []
    for kernels in (triton_kernels, reference):
        predictor = Predictor(
            stored_matrix(kernels, ggml_type, 32, 96, 1), stored_matrix(kernels, ggml_type, 70, 32, 2)
        )
        masks.append(kernels.predict(predictor, on_device(kernels, x), 5.0).cpu())  # type: ignore[arg-type]
    assert 0 < int(masks[1][0].count_nonzero()) < 70
    assert masks[0][1].all()
    # Scores of magnitude 50: in a prompt of quantised weights one within 0.1 of the threshold may fall either side.
    assert int((masks[0] != masks[1]).count_nonzero()) <= (2 if ggml_type is GGMLType.Q4_0 and n_tokens == 9 else 0)


def test_refused_calls(triton_kernels: TritonKernels) -> None:
    x = on_device(triton_kernels, tokens(2, 96))
    assert x is not None
    with pytest.raises(ValueError, match="a neuron a row"):
        triton_kernels.feed_forward_part(Layer(GGMLType.F16, transposed=False).block(triton_kernels), x, None)
    drelu = Layer(GGMLType.F16, gated=False, activation=Activation.DRELU)
    with pytest.raises(ValueError, match="dReLU needs a gate"):
        triton_kernels.feed_forward_part(drelu.block(triton_kernels), x, None)
    mask = Poison(str(triton_kernels.device))((2, 69), torch.bool)
    with pytest.raises(ValueError, match="mask"):
        triton_kernels.feed_forward_part(Layer(GGMLType.F16).block(triton_kernels), x, mask)
