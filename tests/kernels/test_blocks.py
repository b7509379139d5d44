"""The blocks of a layer as one call: bit for bit what single operations of the same kernels compose to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_kernels import same_bits, tokens
from helpers_layer_blocks import (
    HEAD_DIM,
    N_CTX,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_HEAD_KV,
    N_SLOTS,
    attention_block,
    empty_cache,
    feed_forward_block,
    matrix,
    vector,
)

from powerinfer_py.config import Activation, CacheType, RopeConfig
from powerinfer_py.kernels.blocks import (
    LayerCache,
    Linear,
    Norm,
)
from powerinfer_py.kernels.cache_rows import cache_layout
from powerinfer_py.kernels.composition import attend, run_feed_forward
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.models.rope import rope_table

ACTIVATIONS = [(Activation.RELU, True), (Activation.DRELU, True), (Activation.FATRELU, True), (Activation.SILU, True)]
ACTIVATIONS += [(Activation.RELU, False), (Activation.RELU2, False), (Activation.RELU2, True)]
MODES = ["predictor", "exact", "dense"]
CASES = [(*case, mode) for case in ACTIVATIONS for mode in (MODES if case[0].is_sparse else ["dense"])]


@pytest.mark.parametrize("n_tokens", [1, 3, 9])
@pytest.mark.parametrize(("activation", "gated", "mode"), CASES, ids=str)
def test_feed_forward(native: NativeKernels, activation: Activation, gated: bool, mode: str, n_tokens: int) -> None:
    block = feed_forward_block(native, activation, gated, mode)
    x, residual = tokens(n_tokens, N_EMBD, 1), tokens(n_tokens, N_EMBD, 2)
    expected = run_feed_forward(native, block, x, residual, observe=True)
    actual = native.feed_forward_block(block, x, residual, observe=True)
    if activation is Activation.SILU:
        # Two exponentials, each good to 2e-7, meet float32 sums of 352 terms.
        torch.testing.assert_close(actual.y, expected.y, rtol=1e-4, atol=1e-4)
    else:
        assert same_bits(actual.y, expected.y)
    assert actual.fired is not None and expected.fired is not None
    assert torch.equal(actual.fired, expected.fired)
    assert actual.n_fired == expected.n_fired == int(actual.fired.sum())
    counts = ("gate_products", "up_products", "down_products")
    assert [getattr(actual, name) for name in counts] == [getattr(expected, name) for name in counts]
    if mode == "predictor":
        assert actual.predicted is not None and expected.predicted is not None
        assert torch.equal(actual.predicted, expected.predicted)
        assert 0 < actual.predicted.sum() < actual.predicted.numel()
        assert actual.predictor_s > 0
    else:
        assert actual.predicted is None


def test_feed_forward_with_down_as_dense_files_hold_it(native: NativeKernels) -> None:
    block = feed_forward_block(native, Activation.RELU, True, "dense", transposed=False)
    x = tokens(4, N_EMBD)
    actual, expected = native.feed_forward_block(block, x, x), run_feed_forward(native, block, x, x, observe=False)
    assert same_bits(actual.y, expected.y)
    assert actual.down_products == expected.down_products == 4 * N_FF
    with pytest.raises(ValueError, match="a neuron a row"):
        feed_forward_block(native, Activation.RELU, True, "exact", transposed=False)


def test_unasked_masks_change_nothing(native: NativeKernels) -> None:
    block = feed_forward_block(native, Activation.RELU, True, "predictor")
    x = tokens(5, N_EMBD)
    quiet = native.feed_forward_block(block, x, x)
    assert quiet.fired is None and quiet.predicted is None
    assert same_bits(quiet.y, native.feed_forward_block(block, x, x, observe=True).y)


def test_nan_reaches_the_output(native: NativeKernels) -> None:
    block = feed_forward_block(native, Activation.RELU, True, "predictor")
    x = tokens(2, N_EMBD)
    x[1, 3] = float("nan")
    y = native.feed_forward_block(block, x, torch.zeros_like(x)).y
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


@pytest.mark.parametrize("rope", ["none", "adjacent", "halves"])
@pytest.mark.parametrize("fused", [False, True])
def test_attention(native: NativeKernels, fused: bool, rope: str) -> None:
    block = attention_block(native, fused)
    table = None if rope == "none" else rope_table(RopeConfig(n_rot=16), N_CTX, halves=rope == "halves")
    caches = empty_cache(), empty_cache()
    slots, positions = torch.tensor([2, 2, 0, 2]), torch.tensor([0, 1, 0, 2])
    # A prompt of several sequences, then one token more for each of two.
    for step_slots, step_positions in ((slots, positions), (torch.tensor([0, 2]), torch.tensor([1, 3]))):
        x, residual = tokens(len(step_slots), N_EMBD, 3), tokens(len(step_slots), N_EMBD, 4)
        expected = attend(native, block, x, residual, caches[0], step_slots, step_positions, table)
        actual = native.attention_block(block, x, residual, caches[1], step_slots, step_positions, table)
        assert same_bits(actual, expected)
        assert actual.isfinite().all()
    for a, b in ((caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)):
        assert torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize("k_type", CacheType)
@pytest.mark.parametrize("v_type", CacheType)
def test_attention_over_blocks(native: NativeKernels, k_type: CacheType, v_type: CacheType) -> None:
    block = attention_block(native, fused=False, head_dim=64, head_dim_v=32)
    table = rope_table(RopeConfig(n_rot=64), N_CTX, halves=True)
    layouts = cache_layout(k_type, 64), cache_layout(v_type, 32)
    caches = [
        LayerCache(*(torch.zeros(N_SLOTS, N_HEAD_KV, N_CTX, n, dtype=dtype) for dtype, n in layouts)) for _ in range(2)
    ]
    slots, positions = torch.tensor([2, 2, 0, 2]), torch.tensor([0, 1, 0, 2])
    x, residual = tokens(4, N_EMBD, 3), tokens(4, N_EMBD, 4)
    expected = attend(native, block, x, residual, caches[0], slots, positions, table)
    actual = native.attention_block(block, x, residual, caches[1], slots, positions, table)
    assert same_bits(actual, expected)
    assert actual.isfinite().all()
    assert torch.equal(caches[0].keys, caches[1].keys)
    assert torch.equal(caches[0].values, caches[1].values)
    assert caches[0].keys[2, :, 2].count_nonzero()


def test_refusals(native: NativeKernels) -> None:
    block = attention_block(native, fused=False)
    x, zero = tokens(1, N_EMBD), torch.zeros(1, dtype=torch.int64)
    table = rope_table(RopeConfig(n_rot=16), N_CTX, halves=False)
    short = rope_table(RopeConfig(n_rot=16), N_CTX - 1, halves=False)
    with pytest.raises(IndexError, match="position 24"):
        native.attention_block(block, x, x, empty_cache(), zero, torch.tensor([N_CTX]), table)
    with pytest.raises(IndexError, match="slot 3"):
        native.attention_block(block, x, x, empty_cache(), torch.tensor([N_SLOTS]), zero, table)
    with pytest.raises(ValueError, match="23 positions"):
        native.attention_block(block, x, x, empty_cache(), zero, zero, short)
    with pytest.raises(ValueError, match="residual"):
        native.attention_block(block, x, tokens(2, N_EMBD), empty_cache(), zero, zero, table)
    with pytest.raises(ValueError, match="not"):
        native.prepare_attention(replace(block, output=Linear(matrix(native, N_EMBD, N_EMBD, 1), None)))
    with pytest.raises(ValueError, match="weight"):
        native.prepare_attention(replace(block, norm=Norm(vector(4, 1), None, 1e-5, False)))
    wide = Linear(matrix(native, 2 * N_HEAD * HEAD_DIM, N_EMBD, 20), None)
    with pytest.raises(ValueError, match="projection"):
        native.prepare_attention(replace(block, qkv=(wide, *block.qkv[1:])))
    with pytest.raises(ValueError, match="gate"):
        feed_forward_block(native, Activation.DRELU, False, "exact")


@pytest.mark.parametrize("threads", [1, 3, 4, 8])
def test_threads_change_nothing(threads: int) -> None:
    reference, kernels = NativeKernels(2), NativeKernels(threads)
    block = feed_forward_block(reference, Activation.RELU, True, "predictor")
    attention = attention_block(reference, fused=False)
    table = rope_table(RopeConfig(n_rot=16), N_CTX, halves=False)
    positions, slots = torch.arange(7), torch.zeros(7, dtype=torch.int64)
    x = tokens(7, N_EMBD)
    expected = reference.feed_forward_block(block, x, x).y
    attended = reference.attention_block(attention, x, x, empty_cache(), slots, positions, table)
    for _ in range(50):
        assert same_bits(kernels.feed_forward_block(block, x, x).y, expected)
        assert same_bits(kernels.attention_block(attention, x, x, empty_cache(), slots, positions, table), attended)
