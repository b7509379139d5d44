"""Attention against float64 over both types of cache: shapes, sharing of key heads, rounding, order of storing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_attention import HALVES, N_CTX, N_SLOTS, TYPES, Case, Types, expected
from helpers_kernels import same_bits

from powerinfer_py.config import CacheType
from powerinfer_py.kernels.cache_rows import encode_rows
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.interface import Kernels


@pytest.mark.parametrize(
    ("heads", "heads_kv", "dim", "dim_v"),
    [(1, 1, 64, 64), (4, 4, 16, 16), (6, 2, 20, 12), (8, 1, 128, 128), (5, 5, 7, 33), (71, 1, 8, 8), (2, 1, 1, 1)],
)
def test_prompt_and_decode_are_close_to_float64(
    kernels: Kernels, heads: int, heads_kv: int, dim: int, dim_v: int
) -> None:
    case = Case(24, heads, heads_kv, dim, dim_v)
    require_close_to_float64(kernels, case)


@pytest.mark.parametrize("types", TYPES[1:], ids=str)
@pytest.mark.parametrize(
    ("heads", "heads_kv", "dim", "dim_v"),
    [(1, 1, 32, 32), (6, 2, 64, 96), (4, 4, 128, 64), (9, 1, 96, 32)],
)
def test_blocks_in_the_cache_are_close_to_float64(
    kernels: Kernels, heads: int, heads_kv: int, dim: int, dim_v: int, types: Types
) -> None:
    case = Case(24, heads, heads_kv, dim, dim_v, types)
    require_close_to_float64(kernels, case)


def require_close_to_float64(kernels: Kernels, case: Case) -> None:
    slots = torch.tensor([1] * 20 + [0] * 2 + [1] * 2)
    positions = torch.tensor([*range(20), 0, 1, 20, 21])
    y = case.run(kernels, slots, positions).numpy()
    want, bound = expected(case, slots, positions)
    assert (np.abs(y - want) <= bound).all(), (np.abs(y - want) / bound).max()


def test_rows_of_blocks_have_the_bytes_of_the_definition(kernels: Kernels) -> None:
    q8_0 = CacheType.Q8_0
    case = Case(5, 2, 2, 128, 160, (q8_0, q8_0))
    case.k[0, 0, :32] = 0
    case.k[0, 0, 32:64] = torch.arange(32) - 15.5  # ties
    case.k[0, 1] *= 1e-9  # a scale that float16 has no number for
    case.k[1, 0, 5] = 65519.0 * 127
    case.k[1, 1, 40] = 65521.0 * 127
    for i, value in enumerate((float("nan"), float("inf"), -float("inf"), 3e38)):
        case.v[2, 0, 32 * i + 3 * i] = value
    slots, positions = torch.tensor([0, 2, 0, 1, 1]), torch.tensor([0, 5, 36, 7, 8])
    case.run(kernels, slots, positions)
    for cache, new in ((case.k_cache, case.k), (case.v_cache, case.v)):
        assert torch.equal(cache[slots, :, positions], encode_rows(new, q8_0))
        untouched = torch.ones(N_SLOTS, N_CTX, dtype=torch.bool)
        untouched[slots, positions] = False
        assert (cache.transpose(1, 2)[untouched] == 255).all()


def test_what_no_block_can_hold_reaches_the_result(kernels: Kernels) -> None:
    types = (CacheType.Q8_0, CacheType.Q8_0)
    for value in (float("nan"), float("inf"), 3e38):
        keys, values = Case(6, 2, 1, 64, 64, types), Case(6, 2, 1, 64, 64, types)
        keys.k[3, 0, 40] = values.v[3, 0, 40] = value
        place = torch.zeros(6, dtype=torch.int64), torch.arange(6)
        y, z = (case.run(kernels, *place).view(6, 2, 64) for case in (keys, values))
        assert torch.isfinite(y[:3]).all()
        assert torch.isnan(y[3:]).all()
        assert torch.isfinite(z[:3]).all()
        assert torch.isfinite(z[:, :, :32]).all()
        assert torch.isnan(z[3:, :, 32:]).all()


def test_the_cache_is_rounded_to_nearest_even_and_written_only_where_told(kernels: Kernels) -> None:
    case = Case(3, 2, 2, 19, 21)
    edge = [1.0 + 2.0**-11, 1.0 + 3 * 2.0**-11, 65519.9, 65520.0, 1e9, 2.0**-25, 3 * 2.0**-26, -0.0, 2.0**-14, 6.1e-5]
    case.k[0, 0, : len(edge)] = torch.tensor(edge)
    case.v[2, 1, -len(edge) :] = -torch.tensor(edge)
    slots, positions = torch.tensor([0, 2, 0]), torch.tensor([0, 5, 36])
    case.run(kernels, slots, positions)
    for cache, new in ((case.k_cache, case.k), (case.v_cache, case.v)):
        assert (cache[slots, :, positions].view(torch.int16) == new.half().view(torch.int16)).all()
        untouched = torch.ones(N_SLOTS, N_CTX, dtype=torch.bool)
        untouched[slots, positions] = False
        assert torch.isnan(cache.transpose(1, 2)[untouched]).all()


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_token_by_token_has_the_bits_of_the_whole_prompt(native: NativeKernels, types: Types) -> None:
    for heads, heads_kv, dim in ((4, 4, 64), (6, 2, 20), (30, 2, 96)):
        if dim % 32 and types != HALVES:
            continue
        slots, positions = torch.full((N_CTX,), 2), torch.arange(N_CTX)
        whole = Case(N_CTX, heads, heads_kv, dim, dim, types)
        y = whole.run(native, slots, positions)
        for step in (1, 5):
            parts = Case(N_CTX, heads, heads_kv, dim, dim, types)
            chunks = [slice(t, t + step) for t in range(0, N_CTX, step)]
            z = torch.cat([parts.part(native, chunk, slots, positions) for chunk in chunks])
            assert same_bits(y, z)


def test_large_scores_do_not_overflow(kernels: Kernels) -> None:
    case = Case(6, 2, 2, 32, 32)
    case.q *= 1000
    slots, positions = torch.zeros(6, dtype=torch.int64), torch.arange(6)
    y = case.run(kernels, slots, positions)
    assert torch.isfinite(y).all()
    # With gaps of hundreds between scores the softmax picks one value.
    keys = case.k_cache[0, :, :6].float()
    best = torch.einsum("hd,hnd->hn", case.q[5], keys).argmax(dim=1)
    picked = torch.stack([case.v_cache[0, h, best[h]].float() for h in range(2)])
    assert torch.allclose(y[5].view(2, 32), picked, atol=1e-2)


def test_nan_reaches_the_tokens_that_see_it_and_no_other(kernels: Kernels) -> None:
    case = Case(12, 2, 1, 16, 16)
    case.k[7, 0, 3] = float("nan")
    y = case.run(kernels, torch.zeros(12, dtype=torch.int64), torch.arange(12))
    assert torch.isfinite(y[:7]).all()
    assert torch.isnan(y[7:]).all()


@pytest.mark.parametrize(("slot", "position"), [(-1, 0), (N_SLOTS, 0), (0, -1), (0, N_CTX)])
def test_a_place_outside_the_cache_is_refused(kernels: Kernels, slot: int, position: int) -> None:
    case = Case(2, 2, 2, 8, 8)
    with pytest.raises(IndexError):
        case.run(kernels, torch.tensor([0, slot]), torch.tensor([0, position]))
    assert torch.isnan(case.k_cache).all()


def test_a_cache_of_another_type_or_shape_is_refused(native: NativeKernels) -> None:
    place = torch.zeros(2, dtype=torch.int64), torch.arange(2)
    case = Case(2, 2, 2, 64, 64)
    case.v_cache = case.v_cache.float()
    with pytest.raises(TypeError, match="v_cache"):
        case.run(native, *place)
    case = Case(2, 2, 2, 64, 64)
    case.k_cache = torch.zeros(N_SLOTS, 2, N_CTX, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"k_cache.*68"):
        case.run(native, *place)
    case = Case(2, 2, 2, 20, 20)
    case.k_cache = torch.zeros(N_SLOTS, 2, N_CTX, 34, dtype=torch.uint8)
    with pytest.raises(ValueError, match="20"):
        case.run(native, *place)


def test_no_tokens(kernels: Kernels) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert Case(0, 4, 2, 8, 6).run(kernels, none, none).shape == (0, 24)
