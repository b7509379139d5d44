"""Packed rows times tokens in 8 bits: the stated rounding and nothing else, on every instruction set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers_blocks import StoredRows, random_rows
from helpers_kernels import dot_bound, mask_of, same_bits, tokens
from torch import Tensor

from powerinfer_py.gguf.quants import dequantize
from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.cpu import PACKED_TYPES, NativeKernels
from powerinfer_py.kernels.matrix import Matrix

# Whole runs of 512 weights, and rests of 1 to 15 blocks of 32. K-quants have blocks of 256.
COLS = [32, 64, 96, 128, 160, 224, 480, 512, 544, 576, 1024, 4096]
K_COLS = [256, 512, 768, 4096]
N_ROWS = 37
SUPERBLOCKS = (GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K)
TYPED_COLS = [(t, n) for t in PACKED_TYPES for n in (K_COLS if t in SUPERBLOCKS else COLS)]

every_type = pytest.mark.parametrize("ggml_type", PACKED_TYPES, ids=lambda t: t.name)


def packed(kernels: NativeKernels, rows: StoredRows) -> Matrix:
    matrix = kernels.matrix("w", rows.type, *rows.values.shape, rows.data, pack=True)
    assert matrix.packed
    return matrix


def in_8_bits(x: Tensor) -> npt.NDArray[np.float64]:
    """What the kernels take x for: multiples of the largest magnitude / 127 of each block of 32."""
    blocks = x.numpy().reshape(x.shape[0], -1, 32)
    scales = (np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0))
    return (np.rint(blocks * inverse) * scales.astype(np.float64)).reshape(x.shape)


@pytest.mark.parametrize(("ggml_type", "cols"), TYPED_COLS, ids=str)
def test_products(native: NativeKernels, ggml_type: GGMLType, cols: int) -> None:
    rows = random_rows(ggml_type, N_ROWS, cols)
    matrix = packed(native, rows)
    for n_tokens in (1, 2, 3, 4, 5, 9, 70):
        x = tokens(n_tokens, cols)
        x[0, :32] = 0.0
        taken, weights = in_8_bits(x), rows.values.astype(np.float64)
        # An offset of up to 128 scales a weight is added and taken out again, which magnifies the rounding of sums.
        scale = np.abs(weights).reshape(N_ROWS, -1, 32).max(axis=2)
        magnitude = np.abs(taken) @ (np.abs(weights) + 2 * np.repeat(scale, 32, axis=1)).T
        difference = np.abs(native.linear(matrix, x).numpy() - taken @ weights.T)
        # Scales and minima of Q4_K and Q5_K, products of two numbers, are rounded to float16 when they are packed.
        rounding = 2.0**-11 * 2 * magnitude if ggml_type in (GGMLType.Q4_K, GGMLType.Q5_K) else 0.0
        assert (difference <= dot_bound(cols, magnitude) + rounding).all()


@pytest.mark.parametrize(("ggml_type", "cols"), [case for case in TYPED_COLS if case[1] in (96, 576, 768)], ids=str)
def test_a_product_is_the_same_in_any_company(native: NativeKernels, ggml_type: GGMLType, cols: int) -> None:
    matrix = packed(native, random_rows(ggml_type, N_ROWS, cols))
    x = tokens(70, cols)
    whole = native.linear(matrix, x)
    for n in (1, 2, 3, 5, 8, 9):
        parts = [native.linear(matrix, part.contiguous()) for part in x.split(n)]
        assert same_bits(torch.cat(parts), whole)
    for density in (0.0, 0.1, 0.6, 1.0):
        for n_tokens in (1, 6, 70):
            mask = mask_of(n_tokens, N_ROWS, density)
            some, count = native.linear_masked(matrix, x[:n_tokens].contiguous(), mask)
            assert same_bits(some, torch.where(mask, whole[:n_tokens], torch.zeros(())))
            assert count == int(mask.sum())


# A block of each type whose scales are powers of two, up to the quants.
HEADS = {
    GGMLType.Q4_0: (np.float16([0.5]).tobytes(), 16),
    GGMLType.Q4_1: (np.float16([0.5, 4]).tobytes(), 16),
    GGMLType.Q5_0: (np.float16([0.5]).tobytes(), 20),
    GGMLType.Q5_1: (np.float16([0.5, 4]).tobytes(), 20),
    GGMLType.Q8_0: (np.float16([0.5]).tobytes(), 32),
}


@pytest.mark.parametrize("ggml_type", [*HEADS, GGMLType.Q6_K], ids=lambda t: t.name)
@pytest.mark.parametrize("quant", [0x00, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_extreme_quants_do_not_saturate(native: NativeKernels, ggml_type: GGMLType, quant: int, sign: float) -> None:
    """All quants as large as they get (-128 of Q8_0 too) beside tokens of +-127: every product and sum is exact."""
    cols = 256 * 5
    if ggml_type is GGMLType.Q6_K:
        block = bytes([quant]) * 192 + bytes([128]) * 16 + np.float16([0.5]).tobytes()
    else:
        head, n_quants = HEADS[ggml_type]
        block = head + bytes([quant]) * n_quants
    data = np.frombuffer(block * (cols // (256 if ggml_type is GGMLType.Q6_K else 32)) * 3, np.uint8)
    weights = dequantize(data, ggml_type, 3, cols).astype(np.float64)
    matrix = native.matrix("w", ggml_type, 3, cols, data, pack=True)
    for n_tokens in (1, 5):
        x = torch.full((n_tokens, cols), 127.0 * sign)
        assert np.array_equal(native.linear(matrix, x).numpy(), x.numpy().astype(np.float64) @ weights.T)


@every_type
def test_threads_change_nothing(ggml_type: GGMLType) -> None:
    rows, x = random_rows(ggml_type, 600, 768), tokens(3, 768)
    one = NativeKernels(1)
    expected = one.linear(packed(one, rows), x)
    for threads in (2, 3, 4, 8):
        kernels = NativeKernels(threads)
        assert same_bits(kernels.linear(packed(kernels, rows), x), expected)


@every_type
def test_error_is_that_of_8_bits(native: NativeKernels, ggml_type: GGMLType) -> None:
    """Error against the exact product: that of llama.cpp's blocks, whose scales are float16 where ours are float32.

    Rounding to 8 bits is nearly all of it in both, and the finer scales are lost in chance: hence the 1 %.
    """
    rows, x = random_rows(ggml_type, 256, 4096), tokens(8, 4096)
    exact = x.numpy().astype(np.float64) @ rows.values.astype(np.float64).T
    blocks = x.numpy().reshape(8, -1, 32)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    halves = scales.astype(np.float16).astype(np.float64)
    theirs = (np.rint(blocks / scales) * halves).reshape(8, -1) @ rows.values.astype(np.float64).T
    ours = native.linear(packed(native, rows), x).numpy()
    assert ((ours - exact) ** 2).sum() <= 1.01 * ((theirs - exact) ** 2).sum()


@every_type
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_shows(native: NativeKernels, ggml_type: GGMLType, value: float) -> None:
    matrix, x = packed(native, random_rows(ggml_type, N_ROWS, 256)), tokens(2, 256)
    x[1, 40] = value
    y = native.linear(matrix, x)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


def test_tiny_and_huge_values(native: NativeKernels) -> None:
    rows = random_rows(GGMLType.Q8_0, N_ROWS, 64)
    matrix = packed(native, rows)
    for factor in (1e-42, 1e-30, 1e30):
        x = tokens(1, 64) * factor
        expected = x.numpy().astype(np.float64) @ rows.values.astype(np.float64).T
        bound = 64 * (np.abs(x.numpy()).max() / 100 + 2.0**-149 * 256) * np.abs(rows.values).max()
        assert (np.abs(native.linear(matrix, x).numpy() - expected) <= bound).all()


@pytest.mark.parametrize("ggml_type", [GGMLType.F16, GGMLType.Q4_0, GGMLType.Q6_K])
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_copied_rows_outlive_what_they_were_copied_from(native: NativeKernels, ggml_type: GGMLType, rows: int) -> None:
    """Rows of 0.6 to 3 KB, so that 300 of them are several items of work."""
    given = random_rows(ggml_type, rows, 1536)
    x, coefficients = tokens(2, 1536), tokens(2, rows)
    stored = native.matrix("stored", ggml_type, rows, 1536, given.data)
    expected, summed = native.linear(stored, x), native.accumulate_rows(stored, coefficients)[0]
    copied = native.matrix("copied", ggml_type, rows, 1536, given.data, copy=True)
    assert copied.copied and not copied.packed and not stored.copied
    given.data.flags.writeable = True
    given.data[:] = 255
    assert same_bits(native.linear(copied, x), expected)
    assert same_bits(native.accumulate_rows(copied, coefficients)[0], summed)


def test_what_packed_rows_are_refused_for(native: NativeKernels) -> None:
    matrix = packed(native, random_rows(GGMLType.Q4_0, N_ROWS, 64))
    with pytest.raises(ValueError, match="packed"):
        native.rows(matrix, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="packed"):
        native.accumulate_rows(matrix, torch.ones(1, N_ROWS))


def test_other_types_stay_as_they_are(native: NativeKernels) -> None:
    rows = random_rows(GGMLType.Q3_K, N_ROWS, 256)
    assert not native.matrix("w", rows.type, N_ROWS, 256, rows.data, pack=True).packed
