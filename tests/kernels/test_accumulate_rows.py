"""accumulate_rows and rows against float64, for every weight type and instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_blocks import random_rows, smallest_cols
from helpers_kernels import TYPE_IDS, mask_of, matrix_of, same_bits, sum_bound, tokens, wide_types

from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.interface import Kernels

every_type = pytest.mark.parametrize("ggml_type", WEIGHT_TYPES, ids=TYPE_IDS)


def check(kernels: Kernels, ggml_type: GGMLType, rows: int, cols: int, n_tokens: int, density: float) -> None:
    stored = random_rows(ggml_type, rows, cols)
    coefficients = tokens(n_tokens, rows) * mask_of(n_tokens, rows, density)
    bias = torch.linspace(-2, 2, cols)
    y, count = kernels.accumulate_rows(matrix_of(kernels, stored), coefficients, bias)
    c, w = coefficients.numpy().astype(np.float64), stored.values.astype(np.float64)
    error = np.abs(y.numpy() - (c @ w + bias.numpy().astype(np.float64)))
    magnitude = np.abs(c) @ np.abs(w) + np.abs(bias.numpy())
    assert (error <= sum_bound(rows, magnitude)).all(), (rows, cols, n_tokens, error.max())
    assert count == int(coefficients.count_nonzero())


@every_type
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_sums_are_close_to_float64(kernels: Kernels, ggml_type: GGMLType, density: float) -> None:
    block = smallest_cols(ggml_type)
    # 1 and 4 tokens go by chunks of rows, 5 and 18 by strips of columns.
    for n_tokens in (1, 4, 5, 18):
        check(kernels, ggml_type, 131, 3 * block, n_tokens, density)
    check(kernels, ggml_type, 1, block, 1, density)
    check(kernels, ggml_type, 1, block, 6, density)


@pytest.mark.parametrize("cols", [1, 7, 33, 257, 519])
def test_widths_that_fit_no_vector(kernels: Kernels, cols: int) -> None:
    for ggml_type in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
        for n_tokens in (1, 6):
            check(kernels, ggml_type, 70, cols, n_tokens, 0.6)


def test_one_row(kernels: Kernels) -> None:
    stored = random_rows(GGMLType.Q5_1, 30, 64)
    matrix = matrix_of(kernels, stored)
    for n_tokens in (1, 7):
        for row in (0, 29):
            coefficients = torch.zeros(n_tokens, 30)
            coefficients[-1, row] = 2.0
            y, count = kernels.accumulate_rows(matrix, coefficients)
            assert count == 1
            assert y[-1].tolist() == (2 * stored.values[row]).tolist()
            assert not y[:-1].any()


@pytest.mark.parametrize("n_tokens", [1, 6])
def test_zero_of_either_sign_is_skipped_and_nan_is_not(kernels: Kernels, n_tokens: int) -> None:
    stored = random_rows(GGMLType.F16, 12, 40)
    coefficients = torch.zeros(n_tokens, 12)
    coefficients[:, 3] = -0.0
    coefficients[0, 5] = float("nan")
    y, count = kernels.accumulate_rows(matrix_of(kernels, stored), coefficients)
    assert count == 1
    assert torch.isnan(y[0]).all()
    assert (y[1:] == 0).all()


@pytest.mark.parametrize("n_tokens", [1, 6])
def test_all_rows_reads_every_row(kernels: Kernels, n_tokens: int) -> None:
    values = np.ones((9, 16), np.float32)
    values[4] = np.nan
    matrix = kernels.matrix("w", GGMLType.F32, 9, 16, values.view(np.uint8).reshape(-1))
    coefficients = torch.ones(n_tokens, 9)
    coefficients[:, 4] = 0.0
    y, count = kernels.accumulate_rows(matrix, coefficients)
    assert count == 8 * n_tokens
    assert (y == 8).all()
    y, count = kernels.accumulate_rows(matrix, coefficients, all_rows=True)
    assert count == 9 * n_tokens
    assert torch.isnan(y).all()


@pytest.mark.parametrize("ggml_type", wide_types())
@pytest.mark.parametrize("n_tokens", [1, 4, 19])
def test_rows_without_a_coefficient_are_not_read(native: NativeKernels, ggml_type: GGMLType, n_tokens: int) -> None:
    rows, cols = 150, 256
    clean = random_rows(ggml_type, rows, cols)
    coefficients = tokens(n_tokens, rows) * mask_of(n_tokens, rows, 0.04)
    poisoned = clean.data.reshape(rows, -1).copy()
    poisoned[~coefficients.any(dim=0).numpy()] = 0xFF  # NaN as float32, float16 and as scales
    y, count = native.accumulate_rows(matrix_of(native, clean), coefficients)
    dirty = native.matrix("w", ggml_type, rows, cols, poisoned.reshape(-1))
    z, count_dirty = native.accumulate_rows(dirty, coefficients)
    assert same_bits(y, z)
    assert count == count_dirty > 0


def test_no_rows_leave_the_bias(kernels: Kernels) -> None:
    matrix = kernels.matrix("w", GGMLType.F32, 0, 5, np.zeros(0, np.uint8))
    bias = torch.arange(5.0)
    for n_tokens in (0, 1, 6):
        y, count = kernels.accumulate_rows(matrix, torch.ones(n_tokens, 0), bias)
        assert count == 0
        assert y.tolist() == [bias.tolist()] * n_tokens


@every_type
def test_rows_are_dequantised_exactly(kernels: Kernels, ggml_type: GGMLType) -> None:
    cols = 3 * smallest_cols(ggml_type)
    stored = random_rows(ggml_type, 20, cols)
    ids = torch.tensor([0, 19, 7, 7, 3])
    got = kernels.rows(matrix_of(kernels, stored), ids)
    assert same_bits(got, torch.from_numpy(stored.values)[ids])


@every_type
def test_any_bytes_are_dequantised_exactly(native: NativeKernels, ggml_type: GGMLType) -> None:
    """Every bit pattern of scales and integers, NaN and infinity included (whose sign and payload are free)."""
    block = smallest_cols(ggml_type)
    rng = np.random.default_rng(5)
    n_bytes = 64 * (block and random_rows(ggml_type, 1, block).data.size)
    data = rng.integers(0, 256, n_bytes, dtype=np.uint8)
    from powerinfer_py.gguf.quants import dequantize

    with np.errstate(all="ignore"):
        want = torch.from_numpy(dequantize(data, ggml_type, 64, block))
    got = native.rows(native.matrix("w", ggml_type, 64, block, data), torch.arange(64))
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bad", [-1, 20, 2**40])
def test_a_row_out_of_range_is_refused(kernels: Kernels, bad: int) -> None:
    matrix = matrix_of(kernels, random_rows(GGMLType.Q4_1, 20, 32))
    with pytest.raises(IndexError, match=str(bad)):
        kernels.rows(matrix, torch.tensor([0, bad]))
    assert kernels.rows(matrix, torch.zeros(0, dtype=torch.int64)).shape == (0, 32)
