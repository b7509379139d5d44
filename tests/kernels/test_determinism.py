"""One token's result has the same bits for any number of threads and in any batch."""

from __future__ import annotations

import pytest
import torch
from helpers_blocks import random_rows, smallest_cols
from helpers_kernels import TYPE_IDS, mask_of, matrix_of, same_bits, tokens

from powerinfer_py import _native
from powerinfer_py.config import CacheType
from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType
from powerinfer_py.kernels.cache_rows import cache_layout
from powerinfer_py.kernels.cpu import NativeKernels

ROWS, COLS = 203, 768

every_type = pytest.mark.parametrize("ggml_type", WEIGHT_TYPES, ids=TYPE_IDS)


@pytest.fixture(scope="module", params=_native.available_isas())
def pools(request: pytest.FixtureRequest) -> list[NativeKernels]:
    return [NativeKernels(threads, request.param) for threads in (1, 2, 3, 4, 8)]


@every_type
@pytest.mark.parametrize("n_tokens", [1, 7, 66])
def test_any_number_of_threads(pools: list[NativeKernels], ggml_type: GGMLType, n_tokens: int) -> None:
    matrix = matrix_of(pools[0], random_rows(ggml_type, ROWS, COLS))
    x, mask = tokens(n_tokens, COLS), mask_of(n_tokens, ROWS, 0.4)
    coefficients = tokens(n_tokens, ROWS, seed=1) * mask
    results = [
        (
            kernels.linear(matrix, x),
            kernels.linear_masked(matrix, x, mask)[0],
            kernels.accumulate_rows(matrix, coefficients)[0],
        )
        for kernels in pools
    ]
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], result, strict=True))


@every_type
def test_any_batch(native: NativeKernels, ggml_type: GGMLType) -> None:
    matrix = matrix_of(native, random_rows(ggml_type, ROWS, COLS))
    x, mask = tokens(64, COLS), mask_of(64, ROWS, 0.4)
    coefficients = tokens(64, ROWS, seed=1) * mask
    y = native.linear(matrix, x)
    masked, _ = native.linear_masked(matrix, x, mask)
    summed, _ = native.accumulate_rows(matrix, coefficients)
    assert same_bits(masked[mask], y[mask])
    for t, part in ((5, slice(5, 6)), (5, slice(2, 9)), (63, slice(61, 64)), (0, slice(0, 2))):
        at = t - part.start
        assert same_bits(native.linear(matrix, x[part])[at], y[t])
        assert same_bits(native.linear_masked(matrix, x[part], mask[part])[0][at], masked[t])
        assert same_bits(native.accumulate_rows(matrix, coefficients[part])[0][at], summed[t])


@every_type
def test_every_number_of_tokens(native: NativeKernels, ggml_type: GGMLType) -> None:
    """Tokens in stripes have the bits of single ones: any number left over, a stripe in part, few wanted and most."""
    block = smallest_cols(ggml_type)
    cols = 333 if block == 1 else 3 * block
    matrix = matrix_of(native, random_rows(ggml_type, ROWS, cols))
    for n_tokens, density in ((13, 0.05), (31, 0.4), (46, 0.6), (32, 0.97), (78, 0.1)):
        x, mask = tokens(n_tokens, cols), mask_of(n_tokens, ROWS, density)
        y = native.linear(matrix, x)
        assert same_bits(y, torch.cat([native.linear(matrix, x[t : t + 1]) for t in range(n_tokens)]))
        masked, count = native.linear_masked(matrix, x, mask)
        assert same_bits(masked, torch.where(mask, y, 0.0))
        assert count == int(mask.count_nonzero())


@every_type
def test_sums_of_every_number_of_tokens(native: NativeKernels, ggml_type: GGMLType) -> None:
    block = smallest_cols(ggml_type)
    cols = 333 if block == 1 else 3 * block
    matrix = matrix_of(native, random_rows(ggml_type, 16 * 67, cols))
    for n_tokens, density in ((5, 0.0), (7, 0.1), (8, 1.0), (66, 0.6)):
        coefficients = tokens(n_tokens, matrix.rows) * mask_of(n_tokens, matrix.rows, density)
        coefficients[2:5] = tokens(3, matrix.rows)
        summed, count = native.accumulate_rows(matrix, coefficients)
        singles = [native.accumulate_rows(matrix, coefficients[t : t + 1])[0] for t in range(n_tokens)]
        assert same_bits(summed, torch.cat(singles))
        assert same_bits(summed, native.accumulate_rows(matrix, coefficients, all_rows=True)[0])
        assert count == int(coefficients.count_nonzero())


def test_widths_that_fit_no_vector(native: NativeKernels) -> None:
    for ggml_type in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
        for cols in (5, 37, 45, 61, 513, 1053):
            matrix = matrix_of(native, random_rows(ggml_type, 70, cols))
            x, coefficients = tokens(9, cols), tokens(9, 70)
            y = native.linear(matrix, x)
            summed, _ = native.accumulate_rows(matrix, coefficients)
            for t in (0, 8):
                assert same_bits(native.linear(matrix, x[t : t + 1])[0], y[t])
                assert same_bits(native.accumulate_rows(matrix, coefficients[t : t + 1])[0][0], summed[t])


def test_every_row_of_all_rows_equals_the_sparse_sum_where_nothing_is_zero(native: NativeKernels) -> None:
    matrix = matrix_of(native, random_rows(GGMLType.Q4_1, ROWS, COLS))
    coefficients = tokens(6, ROWS).abs() + 0.1
    for part in (slice(0, 1), slice(0, 6)):
        sparse, _ = native.accumulate_rows(matrix, coefficients[part])
        dense, _ = native.accumulate_rows(matrix, coefficients[part], all_rows=True)
        assert same_bits(sparse, dense)


@pytest.mark.parametrize("k_type", CacheType)
@pytest.mark.parametrize("v_type", CacheType)
def test_attention_over_blocks_for_any_number_of_threads(
    pools: list[NativeKernels], k_type: CacheType, v_type: CacheType
) -> None:
    q, k = tokens(70, 768).view(70, 12, 64), tokens(70, 192, seed=4).view(70, 3, 64)
    slots, positions = torch.zeros(70, dtype=torch.int64), torch.arange(70)
    results, caches = [], []
    for kernels in pools:
        keys, values = (
            torch.zeros(1, 3, 70, n, dtype=dtype) for dtype, n in (cache_layout(k_type, 64), cache_layout(v_type, 64))
        )
        results.append(kernels.attention(q, k, k * 0.5, keys, values, slots, positions, 0.1))
        caches.append((keys, values))
    for result, (keys, values) in zip(results[1:], caches[1:], strict=True):
        assert same_bits(results[0], result)
        assert torch.equal(caches[0][0], keys)
        assert torch.equal(caches[0][1], values)


def test_norms_attention_and_rope_for_any_number_of_threads(pools: list[NativeKernels]) -> None:
    from powerinfer_py.kernels.matrix import RopeTable

    x, weight = tokens(40, 1040), tokens(1, 1040)[0]
    q, k = tokens(40, 1040).view(40, 13, 80), tokens(40, 80, seed=4).view(40, 1, 80)
    slots, positions = torch.zeros(40, dtype=torch.int64), torch.arange(40)
    table = RopeTable(tokens(40, 40), tokens(40, 40, seed=5), halves=True)
    results = []
    for kernels in pools:
        caches = torch.zeros(2, 1, 1, 40, 80, dtype=torch.float16)
        results.append(
            (
                kernels.rms_norm(x, weight, 1e-5),
                kernels.layer_norm(x, weight, None, 1e-5),
                kernels.rope(q, positions, table),
                kernels.attention(q, k, k, caches[0], caches[1], slots, positions, 0.1),
            )
        )
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], result, strict=True))


def test_a_thousand_runs(native: NativeKernels) -> None:
    kernels = NativeKernels(4, native.isa)
    matrix = matrix_of(kernels, random_rows(GGMLType.Q4_0, 300, 256))
    coefficients = tokens(1, 300) * mask_of(1, 300, 0.7)
    first, _ = kernels.accumulate_rows(matrix, coefficients)
    for _ in range(1000):
        assert same_bits(kernels.accumulate_rows(matrix, coefficients)[0], first)
