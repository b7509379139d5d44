"""Attention of tokens and prompts against float64, over both types of cache; what is written, what is read, by whom."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_attention import HALVES, N_CTX, N_SLOTS, TYPES, Case, Types, expected
from helpers_kernels import same_bits
from helpers_triton import on_device
from torch import Tensor

from powerinfer_py.config import CacheType
from powerinfer_py.kernels.cache_rows import cache_type_of, decode_rows, encode_rows
from powerinfer_py.kernels.triton import attention_rows, attention_tiles, launch
from powerinfer_py.kernels.triton.kernels import TritonKernels

Q8_0: Types = (CacheType.Q8_0, CacheType.Q8_0)


def on(kernels: TritonKernels, case: Case) -> Case:
    """The case where the kernels want it."""
    for name in ("q", "k", "v", "k_cache", "v_cache"):
        setattr(case, name, on_device(kernels, getattr(case, name)))
    return case


def run(kernels: TritonKernels, case: Case, slots: Tensor, positions: Tensor) -> Tensor:
    """Attention on the device; the case comes back to the CPU."""
    on(kernels, case)
    y = case.run(kernels, slots.to(kernels.device), positions.to(kernels.device)).cpu()
    for name in ("q", "k", "v", "k_cache", "v_cache"):
        setattr(case, name, getattr(case, name).cpu())
    return y


# Two sequences; the first has a token of the other between its own.
SLOTS = torch.tensor([1] * 4 + [0] * 2 + [1])
POSITIONS = torch.tensor([*range(4), 0, 1, 4])


@pytest.mark.parametrize("many", [False, True], ids=["rows", "tiles"])
@pytest.mark.parametrize(
    ("heads", "heads_kv", "dim", "dim_v", "types"),
    [(2, 2, 16, 16, HALVES), (4, 2, 20, 12, HALVES), (3, 1, 7, 33, HALVES), (1, 1, 128, 64, HALVES)]
    + [(2, 1, 64, 96, types) for types in TYPES[1:]],
    ids=str,
)
def test_close_to_float64(
    triton_kernels: TritonKernels,
    monkeypatch: pytest.MonkeyPatch,
    heads: int,
    heads_kv: int,
    dim: int,
    dim_v: int,
    types: Types,
    many: bool,
) -> None:
    monkeypatch.setattr("powerinfer_py.kernels.triton.kernels.MAX_TOKENS", 0 if many else 16)
    case = Case(len(SLOTS), heads, heads_kv, dim, dim_v, types)
    y = run(triton_kernels, case, SLOTS, POSITIONS).numpy()
    for cache, new in ((case.k_cache, case.k), (case.v_cache, case.v)):
        stored = cache[SLOTS, :, POSITIONS].view(torch.uint8)
        assert torch.equal(stored, encode_rows(new, cache_type_of(cache)).view(torch.uint8))
        untouched = torch.ones(N_SLOTS, N_CTX, dtype=torch.bool)
        untouched[SLOTS, POSITIONS] = False
        assert (cache.view(torch.uint8).transpose(1, 2)[untouched] == 255).all()
    want, bound = expected(case, SLOTS, POSITIONS)
    # Halves of a query and of a weight are off by 2^-22 of themselves, weights are summed twice: within the
    # bound of float32 sums in any order, but for a query's smallest elements.
    bound = bound + 2.0**-22 * np.abs(case.v.numpy()).max()
    assert (np.abs(y - want) <= bound).all(), (np.abs(y - want) / bound).max()


def test_chunks_of_a_long_context(triton_kernels: TritonKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, and more than are combined at once."""
    monkeypatch.setattr(attention_rows, "CHUNK", 16)
    monkeypatch.setattr(attention_rows, "_TOGETHER", 2)
    case = Case(1, 1, 1, 16, 16)
    case.k_cache[:, :, :36] = torch.randn(N_SLOTS, 1, 36, 16).half()
    case.v_cache[:, :, :36] = torch.randn(N_SLOTS, 1, 36, 16).half()
    for position in (15, 16, 36):
        place = torch.tensor([2]), torch.tensor([position])
        y = run(triton_kernels, case, *place).numpy()
        want, bound = expected(case, *place)
        assert (np.abs(y - want) <= bound).all()


def filled(n_tokens: int, heads: int, heads_kv: int, dim: int, dim_v: int, types: Types) -> Case:
    """A case whose caches were written to before, at every place."""
    case = Case(n_tokens, heads, heads_kv, dim, dim_v, types)
    random = torch.Generator().manual_seed(1)
    for cache, width in ((case.k_cache, dim), (case.v_cache, dim_v)):
        values = torch.randn(N_SLOTS, heads_kv, N_CTX, width, generator=random)
        cache.copy_(encode_rows(values, cache_type_of(cache)))
    return case


# One token; several, of one sequence twice, at positions in the first chunk, on its edges, and in the last.
PLACES = [([2], [36]), ([0, 1, 2, 1], [31, 36, 0, 32])]
GROUPS = [(4, 2, 80, 80, HALVES), (7, 1, 20, 33, HALVES), (20, 1, 16, 40, HALVES), (8, 1, 128, 64, Q8_0)]
GROUPS += [(3, 1, 96, 64, types) for types in TYPES]


@pytest.mark.parametrize(("slots", "positions"), PLACES, ids=["one", "several"])
@pytest.mark.parametrize(
    ("heads", "heads_kv", "dim", "dim_v", "types", "cores"),
    [(*group, True) for group in GROUPS] + [(3, 1, 64, 32, types, False) for types in (HALVES, Q8_0)],
    ids=str,
)
def test_groups_of_heads(
    triton_kernels: TritonKernels,
    monkeypatch: pytest.MonkeyPatch,
    heads: int,
    heads_kv: int,
    dim: int,
    dim_v: int,
    types: Types,
    slots: list[int],
    positions: list[int],
    cores: bool,
) -> None:
    """Several chunks and several tiles in one, as on a device; 20 heads are two programs'.

    cores: False for devices where every query head reads for itself.
    """
    monkeypatch.setattr(attention_rows, "CHUNK", 32)
    monkeypatch.setattr(attention_rows, "_tile", lambda *_: 16)
    monkeypatch.setattr(attention_rows, "MAX_ROWS", 16)
    monkeypatch.setattr(launch, "has_tensor_cores", lambda _: cores)
    case = filled(len(slots), heads, heads_kv, dim, dim_v, types)
    place = torch.tensor(slots), torch.tensor(positions)
    y = run(triton_kernels, case, *place)
    want, bound = expected(case, *place)
    largest = np.abs(decode_rows(case.v_cache, dim_v).numpy()).max()
    assert (np.abs(y.numpy() - want) <= bound + 2.0**-22 * largest).all()
    # What a token gets does not depend on the others of its batch, which have written to other places.
    on(triton_kernels, case)
    last = slice(len(slots) - 1, None)
    alone = case.part(triton_kernels, last, *(part.to(triton_kernels.device) for part in place))
    assert same_bits(y[last], alone.cpu())


def test_values_of_all_sizes_in_groups(triton_kernels: TritonKernels) -> None:
    """Values near the largest of q8_0 beside small ones: both halves of both stay within float16."""
    case = filled(1, 3, 1, 32, 64, Q8_0)
    sizes = torch.tensor([1e-6, 1.0, 1e6])[torch.arange(N_CTX) % 3]
    case.v_cache[0, 0] = encode_rows(torch.randn(N_CTX, 64) * sizes[:, None], CacheType.Q8_0)
    place = torch.tensor([0]), torch.tensor([36])
    y = run(triton_kernels, case, *place).numpy()
    want, bound = expected(case, *place)
    largest = np.abs(decode_rows(case.v_cache[0], 64).numpy()).max()
    assert (np.abs(y - want) <= bound + 2.0**-22 * largest).all()


@pytest.mark.parametrize(("heads", "heads_kv", "programs"), [(8, 8, 8), (8, 2, 2), (15, 5, 5), (71, 1, 3)])
def test_keys_are_read_once_for_a_group(
    triton_kernels: TritonKernels, monkeypatch: pytest.MonkeyPatch, heads: int, heads_kv: int, programs: int
) -> None:
    """A program for each key head and chunk, wherever the tokens are: a captured launch serves every position."""
    grids: list[tuple[int, ...]] = []
    monkeypatch.setattr(launch, "run", lambda _kernel, grid, **_: grids.append(grid))
    case = on(triton_kernels, Case(2, heads, heads_kv, 16, 16))
    for position in (0, 36):
        grids.clear()
        slots, positions = (torch.tensor([1, n], device=case.q.device) for n in (0, position))
        case.run(triton_kernels, slots, positions)
        # Heads into the cache, chunks, their combination.
        assert grids == [(2, 2 * heads_kv), (2, programs, 1), (2, heads)]


def test_tiles_of_a_long_prompt(triton_kernels: TritonKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens than a tile of tokens, more positions than a tile of keys."""
    monkeypatch.setattr(attention_tiles, "_TOKENS", 16)
    monkeypatch.setattr(attention_tiles, "_TILE", 16)
    case = Case(N_CTX, 1, 1, 32, 16)
    slots, positions = torch.zeros(N_CTX, dtype=torch.int64), torch.arange(N_CTX)
    y = run(triton_kernels, case, slots, positions)
    want, bound = expected(case, slots, positions)
    assert (np.abs(y.numpy() - want) <= bound + 2.0**-20).all()
    again = run(triton_kernels, case, slots, positions)
    assert same_bits(y, again)


def test_rows_of_blocks_have_the_bytes_of_the_definition(triton_kernels: TritonKernels) -> None:
    case = Case(5, 2, 2, 128, 160, Q8_0)
    case.k[0, 0, :32] = 0
    case.k[0, 0, 32:64] = torch.arange(32) - 15.5  # ties
    case.k[0, 1] *= 1e-9  # a scale that float16 has no number for
    case.k[1, 0, 5] = 65519.0 * 127
    case.k[1, 1, 40] = 65521.0 * 127
    for i, value in enumerate((float("nan"), float("inf"), -float("inf"), 3e38)):
        case.v[2, 0, 32 * i + 3 * i] = value
    slots, positions = torch.tensor([0, 2, 0, 1, 1]), torch.tensor([0, 5, 36, 7, 8])
    run(triton_kernels, case, slots, positions)
    for cache, new in ((case.k_cache, case.k), (case.v_cache, case.v)):
        assert torch.equal(cache[slots, :, positions], encode_rows(new, CacheType.Q8_0))


def test_halves_are_rounded_to_nearest_even(triton_kernels: TritonKernels) -> None:
    case = Case(3, 2, 2, 19, 21)
    edge = [1.0 + 2.0**-11, 1.0 + 3 * 2.0**-11, 65519.9, 65520.0, 1e9, 2.0**-25, 3 * 2.0**-26, -0.0, 2.0**-14, 6.1e-5]
    case.k[0, 0, : len(edge)] = torch.tensor(edge)
    slots, positions = torch.tensor([0, 2, 0]), torch.tensor([0, 5, 36])
    run(triton_kernels, case, slots, positions)
    assert (case.k_cache[slots, :, positions].view(torch.int16) == case.k.half().view(torch.int16)).all()


@pytest.mark.parametrize("types", [HALVES, Q8_0], ids=str)
@pytest.mark.parametrize(("n_tokens", "heads"), [(7, 1), (7, 3), (17, 1)])
def test_nan_reaches_the_tokens_that_see_it_and_no_other(
    triton_kernels: TritonKernels, types: Types, n_tokens: int, heads: int
) -> None:
    place = torch.zeros(n_tokens, dtype=torch.int64), torch.arange(n_tokens)
    for name in ("k", "v"):
        case = Case(n_tokens, heads, 1, 32, 32, types)
        getattr(case, name)[5, 0, 3] = float("nan")
        y = run(triton_kernels, case, *place).view(n_tokens, heads, 32)
        assert torch.isfinite(y[:5]).all()
        # A value that is NaN spoils its own column, a block of the cache all of its columns.
        spoilt = y[5:] if name == "k" or types == Q8_0 else y[5:, :, 3]
        assert torch.isnan(spoilt).all()


@pytest.mark.parametrize(("n_tokens", "shared"), [(6, 1), (6, 2), (17, 1)])
def test_large_scores_do_not_overflow(triton_kernels: TritonKernels, n_tokens: int, shared: int) -> None:
    case = Case(n_tokens, 2 * shared, 2, 32, 32)
    case.q *= 1000
    y = run(triton_kernels, case, torch.zeros(n_tokens, dtype=torch.int64), torch.arange(n_tokens))
    assert torch.isfinite(y).all()
    keys = case.k_cache[0, :, :n_tokens].float().repeat_interleave(shared, dim=0)
    best = torch.einsum("hd,hnd->hn", case.q[-1], keys).argmax(dim=1)
    picked = torch.stack([case.v_cache[0, h // shared, best[h]].float() for h in range(2 * shared)])
    assert torch.allclose(y[-1].view(2 * shared, 32), picked, atol=1e-2)


@pytest.mark.parametrize(("slot", "position"), [(-1, 0), (N_SLOTS, 0), (0, -1), (0, N_CTX)])
def test_a_place_outside_the_cache_is_refused_or_gives_nan(
    triton_kernels: TritonKernels, slot: int, position: int
) -> None:
    case = Case(2, 2, 2, 8, 8)
    places = torch.tensor([0, slot]), torch.tensor([0, position])
    if triton_kernels.device.type == "cpu":
        with pytest.raises(IndexError):
            run(triton_kernels, case, *places)
    else:
        y = run(triton_kernels, case, *places)
        assert torch.isfinite(y[0]).all()
        assert torch.isnan(y[1]).all()


def test_no_tokens(triton_kernels: TritonKernels) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert run(triton_kernels, Case(0, 4, 2, 8, 6), none, none).shape == (0, 24)


def test_caches_that_do_not_fit_are_refused(triton_kernels: TritonKernels) -> None:
    place = torch.zeros(2, dtype=torch.int64), torch.arange(2)
    case = Case(2, 2, 2, 64, 64)
    case.v_cache = case.v_cache.float()
    with pytest.raises(TypeError, match="float16"):
        run(triton_kernels, case, *place)
    case = Case(2, 2, 2, 64, 64)
    case.k_cache = torch.zeros(N_SLOTS, 2, N_CTX, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"k_cache.*68"):
        run(triton_kernels, case, *place)
