"""An FFN whose matrices have a neuron's rows beside each other: the bits of matrices apart, and no row read in vain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_blocks import random_rows
from helpers_kernels import TYPE_IDS, mask_of, same_bits, tokens

from powerinfer_py.config import Activation
from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType
from powerinfer_py.kernels.blocks import FeedForwardBlock, FeedForwardWeights, Norm
from powerinfer_py.kernels.composition import run_part
from powerinfer_py.kernels.cpu import PACKED_TYPES, NativeKernels
from powerinfer_py.kernels.matrix import Matrix, StoredMatrix

N_EMBD, N_FF = 512, 301
ACTIVATIONS = [(Activation.RELU, True), (Activation.DRELU, True), (Activation.FATRELU, True), (Activation.RELU2, False)]


def stored(ggml_type: GGMLType, seed: int) -> StoredMatrix:
    return StoredMatrix("w", ggml_type, N_FF, N_EMBD, random_rows(ggml_type, N_FF, N_EMBD, seed).data)


def block_of(
    kernels: NativeKernels,
    matrices: tuple[Matrix, ...],
    activation: Activation = Activation.RELU,
) -> FeedForwardBlock:
    """matrices: gate, or none, up and down."""
    weights = FeedForwardWeights(
        up=matrices[-2],
        gate=matrices[0] if len(matrices) == 3 else None,
        down=matrices[-1],
        down_is_transposed=True,
        up_bias=torch.linspace(-0.1, 0.1, N_FF),
        gate_bias=torch.linspace(0.1, -0.1, N_FF) if len(matrices) == 3 else None,
        down_bias=torch.linspace(-1, 1, N_EMBD),
    )
    norm = Norm(torch.ones(N_EMBD), None, 1e-5, False)
    return kernels.prepare_feed_forward(FeedForwardBlock(norm, weights, None, activation, 0.05, 0.0, False))


def apart(kernels: NativeKernels, matrices: list[StoredMatrix]) -> tuple[Matrix, ...]:
    return tuple(
        kernels.matrix(m.name, m.type, m.rows, m.cols, m.data, pack=m is not matrices[-1], copy=True) for m in matrices
    )


def beside(kernels: NativeKernels, matrices: list[StoredMatrix]) -> tuple[Matrix, ...]:
    made = kernels.interleaved(matrices[:-1], matrices[-1])
    assert made is not None
    return made


def require_same(kernels: NativeKernels, block: FeedForwardBlock, expected: FeedForwardBlock) -> None:
    for n_tokens in (1, 2, 6):
        h = tokens(n_tokens, N_EMBD)
        for mask in (None, *(mask_of(n_tokens, N_FF, density) for density in (0.0, 0.02, 0.3, 1.0))):
            actual = kernels.feed_forward_part(block, h, mask, observe=True)
            wanted = run_part(kernels, expected, h, mask, True, None)
            assert same_bits(actual.y, wanted.y)
            assert torch.equal(actual.fired, wanted.fired)
            for name in ("gate_products", "up_products", "down_products", "n_fired"):
                assert getattr(actual, name) == getattr(wanted, name)


@pytest.mark.parametrize(("activation", "gated"), ACTIVATIONS, ids=str)
@pytest.mark.parametrize("ggml_type", PACKED_TYPES, ids=lambda t: t.name)
def test_same_bits_as_apart(native: NativeKernels, ggml_type: GGMLType, activation: Activation, gated: bool) -> None:
    matrices = [stored(ggml_type, seed) for seed in range(3 if gated else 2)]
    expected = block_of(native, apart(native, matrices), activation)
    require_same(native, expected, expected)
    require_same(native, block_of(native, beside(native, matrices), activation), expected)


@pytest.mark.parametrize("ggml_type", WEIGHT_TYPES, ids=TYPE_IDS)
def test_down_rows_of_every_type(native: NativeKernels, ggml_type: GGMLType) -> None:
    matrices = [stored(GGMLType.Q4_0, 1), stored(GGMLType.Q6_K, 2), stored(ggml_type, 3)]
    require_same(native, block_of(native, beside(native, matrices)), block_of(native, apart(native, matrices)))


def test_up_and_down_beside_each_other_alone(native: NativeKernels) -> None:
    """As where every gate row is read."""
    matrices = [stored(GGMLType.Q4_0, seed) for seed in range(3)]
    gate, up, down = apart(native, matrices)
    some = block_of(native, (gate, *beside(native, matrices[1:])))
    require_same(native, some, block_of(native, (gate, up, down)))


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8, 16, 17])
def test_threads_change_nothing(threads: int) -> None:
    """Beyond 16 threads there are more of them than blocks of rows, and the matrices are read one after the other."""
    alone, kernels = NativeKernels(1), NativeKernels(threads)
    matrices = [stored(GGMLType.Q5_0, seed) for seed in range(3)]
    h, mask = tokens(1, N_EMBD), mask_of(1, N_FF, 0.4)
    expected = alone.feed_forward_part(block_of(alone, beside(alone, matrices)), h, mask).y
    assert same_bits(kernels.feed_forward_part(block_of(kernels, beside(kernels, matrices)), h, mask).y, expected)


def test_rows_that_are_not_needed_are_not_read(native: NativeKernels) -> None:
    matrices = [stored(GGMLType.Q8_0, seed) for seed in range(3)]
    h, mask = tokens(1, N_EMBD), mask_of(1, N_FF, 0.4)
    expected = native.feed_forward_part(block_of(native, beside(native, matrices)), h, mask, observe=True)
    assert expected.fired is not None
    unread = ~np.stack([mask.numpy()[0], expected.fired.numpy()[0], expected.fired.numpy()[0]])
    for which, rows in enumerate(unread):
        data = matrices[which].data.reshape(N_FF, -1, 34).copy()
        data[rows, :, :2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
        matrices[which] = replace(matrices[which], data=data.reshape(-1))
    poisoned = block_of(native, beside(native, matrices))
    assert same_bits(native.feed_forward_part(poisoned, h, mask).y, expected.y)
    assert native.feed_forward_part(poisoned, h, None).y.isnan().any()


def test_each_matrix_is_what_it_is_apart(native: NativeKernels) -> None:
    matrices = [stored(GGMLType.Q4_K, 1), stored(GGMLType.F16, 2)]
    x, coefficients = tokens(3, N_EMBD), tokens(3, N_FF)
    up, down = beside(native, matrices)
    for made, expected in zip((up, down), apart(native, matrices), strict=True):
        assert made.copied
        assert made.packed == expected.packed
        assert made.handle.to_bytes() == expected.handle.to_bytes()
    assert same_bits(native.linear(up, x), native.linear(apart(native, matrices)[0], x))
    del up
    assert same_bits(
        native.accumulate_rows(down, coefficients)[0],
        native.accumulate_rows(apart(native, matrices)[1], coefficients)[0],
    )


def test_what_cannot_be_packed_stays_apart(native: NativeKernels) -> None:
    assert native.interleaved([stored(GGMLType.Q4_0, 1), stored(GGMLType.F16, 2)], stored(GGMLType.Q4_0, 3)) is None


def test_refusals(native: NativeKernels) -> None:
    up, down = beside(native, [stored(GGMLType.Q4_0, 1), stored(GGMLType.Q4_0, 2)])
    (whole,) = apart(native, [stored(GGMLType.Q4_0, 3)])
    fewer = native.matrix("w", GGMLType.Q4_0, 1, 32, np.zeros(18, np.uint8))
    with pytest.raises(ValueError, match="between others"):
        native.native.copy(down.handle)
    with pytest.raises(ValueError, match="between others"):
        native.native.interleave([], [down.handle])
    with pytest.raises(ValueError, match="packed already"):
        native.native.pack(up.handle)
    with pytest.raises(ValueError, match="differ in rows"):
        native.native.interleave([], [whole.handle, fewer.handle])
