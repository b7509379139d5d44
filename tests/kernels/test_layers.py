"""All layers as one native call: bit for bit what the calls of their blocks come to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_kernels import same_bits, tokens
from helpers_layer_blocks import (
    HEAD_DIM,
    N_CTX,
    N_EMBD,
    N_SLOTS,
    attention_block,
    empty_cache,
    feed_forward_block,
)
from torch import Tensor

from powerinfer_py.config import Activation, RopeConfig
from powerinfer_py.kernels.blocks import LayerBlocks, LayerCache
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import RopeTable
from powerinfer_py.models.rope import rope_table

N_LAYERS = 3


@pytest.fixture
def layers(native: NativeKernels) -> list[LayerBlocks]:
    kinds = [(Activation.RELU, True, "predictor"), (Activation.RELU2, False, "exact"), (Activation.RELU, True, "dense")]
    return [
        LayerBlocks(attention_block(native, fused=i == 1), feed_forward_block(native, *kind))
        for i, kind in enumerate(kinds)
    ]


def caches() -> list[LayerCache]:
    return [empty_cache() for _ in range(N_LAYERS)]


def places(n_tokens: int) -> tuple[Tensor, Tensor]:
    """Slots and positions of sequences of unequal length."""
    return torch.arange(n_tokens) % N_SLOTS, torch.arange(n_tokens) // N_SLOTS


@pytest.mark.parametrize("n_tokens", [1, 2, 7])
@pytest.mark.parametrize("rope", [None, rope_table(RopeConfig(n_rot=16), N_CTX, halves=True)], ids=["none", "rope"])
@pytest.mark.parametrize("parallel", [False, True])
def test_one_call_is_the_calls_of_the_blocks(
    native: NativeKernels, layers: list[LayerBlocks], parallel: bool, rope: RopeTable | None, n_tokens: int
) -> None:
    x, once, apart = tokens(n_tokens, N_EMBD), caches(), caches()
    untouched = x.clone()
    actual = native.run_layers(layers, x, once, *places(n_tokens), rope, parallel=parallel)
    expected = Kernels.run_layers(native, layers, x, apart, *places(n_tokens), rope, parallel=parallel)
    assert same_bits(actual.y, expected.y)
    assert same_bits(x, untouched)
    assert np.array_equal(actual.counts, expected.counts)
    assert actual.counts.min(axis=0).tolist()[1:] > [0, 0, 0]
    assert actual.predictor_s > 0
    for one, other in zip(once, apart, strict=True):
        assert same_bits(one.keys, other.keys) and same_bits(one.values, other.values)


def test_later_steps_find_what_earlier_ones_stored(native: NativeKernels, layers: list[LayerBlocks]) -> None:
    once, apart = caches(), caches()
    slots = torch.zeros(1, dtype=torch.int64)
    for position in range(4):
        at = torch.tensor([position])
        x = tokens(1, N_EMBD, position)
        actual = native.run_layers(layers, x, once, slots, at, None, parallel=False)
        assert same_bits(actual.y, Kernels.run_layers(native, layers, x, apart, slots, at, None, parallel=False).y)


def test_no_layers_are_the_identity(native: NativeKernels) -> None:
    x = tokens(2, N_EMBD)
    result = native.run_layers([], x, [], *places(2), None, parallel=False)
    assert same_bits(result.y, x) and result.counts.shape == (0, 4)


def test_what_does_not_fit_is_refused(native: NativeKernels, layers: list[LayerBlocks]) -> None:
    x, slots, positions = tokens(1, N_EMBD), *places(1)

    def run(given: list[LayerBlocks], at: list[LayerCache], position: Tensor, table: RopeTable | None = None) -> None:
        native.run_layers(given, x, at, slots, position, table, parallel=False)

    with pytest.raises(ValueError, match="3 layers have 2 caches"):
        run(layers, caches()[:2], positions)
    with pytest.raises(ValueError, match="keys must have shape"):
        keys = torch.zeros(N_SLOTS, 1, N_CTX, HEAD_DIM, dtype=torch.float16)
        run(layers, [*caches()[:2], replace(empty_cache(), keys=keys)], positions)
    with pytest.raises(IndexError, match="position"):
        run(layers, caches(), torch.tensor([N_CTX]))
    with pytest.raises(ValueError, match="RoPE table"):
        run(layers, caches(), positions, rope_table(RopeConfig(n_rot=16), N_CTX - 1, halves=False))
    with pytest.raises(ValueError, match="a layer has no block"):
        unprepared = LayerBlocks(replace(layers[0].attention, handle=None), layers[0].feed_forward)
        run([unprepared, *layers[1:]], caches(), positions)


@pytest.mark.parametrize("threads", [1, 3, 4, 8])
def test_threads_change_nothing(native: NativeKernels, layers: list[LayerBlocks], threads: int) -> None:
    kernels = NativeKernels(threads, isa=native.isa)
    x = tokens(7, N_EMBD)
    expected = native.run_layers(layers, x, caches(), *places(7), None, parallel=False).y
    for _ in range(20):
        assert same_bits(kernels.run_layers(layers, x, caches(), *places(7), None, parallel=False).y, expected)
