"""linear and linear_masked against float64, for every weight type and instruction set."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
import torch
from helpers_blocks import random_rows, smallest_cols
from helpers_kernels import TYPE_IDS, dot_bound, mask_of, matrix_of, same_bits, tokens, wide_types

from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.interface import Kernels

every_type = pytest.mark.parametrize("ggml_type", WEIGHT_TYPES, ids=TYPE_IDS)

# Rows and columns (in blocks); types without blocks also get widths that are no multiple of any vector.
SHAPES = [(1, 1), (3, 2), (13, 3), (70, 5)]
ODD_COLS = [1, 7, 17, 33, 45, 519]


def exact(values: np.ndarray, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Products and the sums of their magnitudes in float64: (T, rows) each."""
    w, x64 = values.astype(np.float64), x.numpy().astype(np.float64)
    return x64 @ w.T, np.abs(x64) @ np.abs(w).T


def shapes(ggml_type: GGMLType) -> list[tuple[int, int]]:
    block = smallest_cols(ggml_type)
    if block == 1:
        return [(5, cols) for cols in ODD_COLS] + [(13, 64), (70, 1030)]
    return [(rows, n_blocks * block) for rows, n_blocks in SHAPES]


@every_type
def test_linear_is_close_to_float64(kernels: Kernels, ggml_type: GGMLType) -> None:
    for rows, cols in shapes(ggml_type):
        stored = random_rows(ggml_type, rows, cols)
        matrix = matrix_of(kernels, stored)
        for n_tokens in (1, 2, 7, 66):
            x = tokens(n_tokens, cols)
            want, magnitude = exact(stored.values, x)
            error = np.abs(kernels.linear(matrix, x).numpy() - want)
            assert (error <= dot_bound(cols, magnitude)).all(), (rows, cols, n_tokens, error.max())


@every_type
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_masked_products_are_close_and_the_others_zero(kernels: Kernels, ggml_type: GGMLType, density: float) -> None:
    rows, cols = 53, 3 * smallest_cols(ggml_type)
    stored = random_rows(ggml_type, rows, cols)
    matrix = matrix_of(kernels, stored)
    bias = torch.linspace(-3, 3, rows)
    for n_tokens in (1, 9, 65):
        x, mask = tokens(n_tokens, cols), mask_of(n_tokens, rows, density)
        want, magnitude = exact(stored.values, x)
        y, count = kernels.linear_masked(matrix, x, mask, bias)
        wanted = mask.numpy()
        bound = dot_bound(cols, magnitude + np.abs(bias.numpy()))
        error = np.abs(y.numpy() - np.where(wanted, want + bias.numpy().astype(np.float64), 0.0))
        assert (error <= np.where(wanted, bound, 0.0)).all()
        assert count == int(mask.count_nonzero())


def test_one_wanted_row(kernels: Kernels) -> None:
    stored = random_rows(GGMLType.Q4_0, 40, 64)
    matrix, x = matrix_of(kernels, stored), tokens(2, 64)
    for row in (0, 17, 39):
        mask = torch.zeros(2, 40, dtype=torch.bool)
        mask[1, row] = True
        y, count = kernels.linear_masked(matrix, x, mask)
        assert count == 1
        assert y.count_nonzero() == 1
        assert y[1, row] != 0


@pytest.mark.parametrize("offset", [1, 2, 34])
def test_weights_may_lie_at_any_address(native: NativeKernels, offset: int) -> None:
    for ggml_type in WEIGHT_TYPES:
        cols = 2 * smallest_cols(ggml_type)
        x = tokens(3, cols)
        aligned = matrix_of(native, random_rows(ggml_type, 9, cols))
        shifted = matrix_of(native, random_rows(ggml_type, 9, cols, offset=offset))
        assert same_bits(native.linear(aligned, x), native.linear(shifted, x))
        assert same_bits(native.linear(aligned, x[:1]), native.linear(shifted, x[:1]))


@pytest.mark.parametrize("ggml_type", wide_types())
def test_rows_nobody_wants_are_not_read(native: NativeKernels, ggml_type: GGMLType) -> None:
    rows, cols = 47, 256
    clean = random_rows(ggml_type, rows, cols)
    mask = mask_of(7, rows, 0.15)
    unread = ~mask.any(dim=0).numpy()
    assert unread.any()
    poisoned = clean.data.reshape(rows, -1).copy()
    poisoned[unread] = 0xFF  # NaN as float32, float16 and as scales
    for n_tokens in (1, 7):
        some = mask[:n_tokens].contiguous()
        poisoned[~some.any(dim=0).numpy()] = 0xFF
        x = tokens(n_tokens, cols)
        y, _ = native.linear_masked(matrix_of(native, clean), x, some)
        matrix = native.matrix("w", ggml_type, rows, cols, poisoned.reshape(-1))
        z, _ = native.linear_masked(matrix, x, some)
        assert same_bits(y, z)
        poisoned = clean.data.reshape(rows, -1).copy()


@pytest.mark.parametrize("n_tokens", [1, 2, 6])
def test_pages_of_rows_nobody_wants_need_not_be_readable(native: NativeKernels, n_tokens: int) -> None:
    """Rows of one page each, the unwanted ones made unreadable: touching one would end the process."""
    page, rows = mmap.PAGESIZE, 16
    memory = mmap.mmap(-1, rows * page)
    data = np.frombuffer(memory, np.uint8)
    data.view(np.float32)[:] = 1.0
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    mask = torch.zeros(n_tokens, rows, dtype=torch.bool)
    mask[-1, 3] = mask[-1, 9] = mask[0, 3] = True
    for row in set(range(rows)) - {3, 9}:
        assert protect(ctypes.c_void_p(data.ctypes.data + row * page), page, 0) == 0
    matrix = native.matrix("w", GGMLType.F32, rows, page // 4, data)
    y, count = native.linear_masked(matrix, torch.ones(n_tokens, page // 4), mask)
    total, added = native.accumulate_rows(matrix, mask.float())
    assert protect(ctypes.c_void_p(data.ctypes.data), rows * page, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert count == added == int(mask.count_nonzero())
    assert torch.equal(y, mask * float(page // 4))
    assert (total[-1] == 2.0).all()


def test_nan_and_infinity_reach_the_result(kernels: Kernels) -> None:
    for ggml_type in wide_types():
        matrix = matrix_of(kernels, random_rows(ggml_type, 6, 256))
        for value in (float("nan"), float("inf"), -float("inf")):
            for column in (0, 131, 255):
                x = tokens(5, 256)
                x[3, column] = value
                y = kernels.linear(matrix, x)
                assert not torch.isfinite(y[3]).any() or ggml_type is not GGMLType.F32
                assert torch.isfinite(y[[0, 1, 2, 4]]).all()


def test_nan_in_a_weight_reaches_its_row_alone(kernels: Kernels) -> None:
    values = np.ones((5, 35), np.float32)
    values[2, 34] = values[4, 3] = np.nan
    matrix = kernels.matrix("w", GGMLType.F32, 5, 35, values.view(np.uint8).reshape(-1))
    for n_tokens in (1, 6):
        y = kernels.linear(matrix, torch.ones(n_tokens, 35))
        assert torch.isnan(y[:, [2, 4]]).all()
        assert (y[:, [0, 1, 3]] == 35).all()


@pytest.mark.parametrize("ggml_type", [GGMLType.F32, GGMLType.F16, GGMLType.BF16])
def test_subnormal_weights_are_not_lost(kernels: Kernels, ggml_type: GGMLType) -> None:
    smallest = {GGMLType.F32: 2.0**-149, GGMLType.F16: 2.0**-24, GGMLType.BF16: 2.0**-133}[ggml_type]
    raw = np.zeros((3, 40), {GGMLType.F32: np.uint32}.get(ggml_type, np.uint16))
    raw[:, :] = 1  # the smallest subnormal number of each type
    raw[1, :] = 0
    matrix = kernels.matrix("w", ggml_type, 3, 40, raw.view(np.uint8).reshape(-1))
    for n_tokens in (1, 5):
        y = kernels.linear(matrix, torch.full((n_tokens, 40), 2.0))
        assert y.tolist() == [[80 * smallest, 0.0, 80 * smallest]] * n_tokens


def test_empty_shapes(kernels: Kernels) -> None:
    empty = np.zeros(0, np.uint8)
    assert kernels.linear(kernels.matrix("w", GGMLType.F32, 0, 8, empty), torch.ones(2, 8)).shape == (2, 0)
    assert kernels.linear(kernels.matrix("w", GGMLType.F32, 3, 0, empty), torch.ones(2, 0)).tolist() == [[0.0] * 3] * 2
    matrix = matrix_of(kernels, random_rows(GGMLType.Q8_0, 3, 32))
    assert kernels.linear(matrix, torch.ones(0, 32)).shape == (0, 3)
    y, count = kernels.linear_masked(matrix, torch.ones(0, 32), torch.ones(0, 3, dtype=torch.bool))
    assert (y.shape, count) == ((0, 3), 0)
