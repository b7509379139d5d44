"""Lists of ids at the native extension: any order and any repeats are computed, one id out of range is refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers_blocks import random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from powerinfer_py import _native
from powerinfer_py.gguf import GGMLType

N_ROWS, N_COLS = 20, 64
ROWS = random_rows(GGMLType.Q4_0, N_ROWS, N_COLS)
bounded = settings(max_examples=40, deadline=None, derandomize=True)
out_of_range = st.sampled_from([-1, N_ROWS, 2**31, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)])


@pytest.fixture(scope="module", params=_native.available_isas())
def kernels(request: pytest.FixtureRequest) -> Iterator[_native.CpuKernels]:
    yield _native.CpuKernels(request.param, 2)


def looked_up(kernels: _native.CpuKernels, ids: list[int]) -> np.ndarray:
    given_ids = torch.tensor(ids, dtype=torch.int64)
    result = torch.full((len(ids), N_COLS), float("nan"))
    matrix = _native.Matrix(ROWS.data, int(GGMLType.Q4_0), N_ROWS, N_COLS)
    kernels.rows(matrix, given_ids.data_ptr() if ids else 0, len(ids), result.data_ptr() if ids else 0)
    return result.numpy()


@bounded
@given(ids=st.lists(st.integers(0, N_ROWS - 1), max_size=40))
def test_unsorted_and_repeated_ids(kernels: _native.CpuKernels, ids: list[int]) -> None:
    assert np.array_equal(looked_up(kernels, ids), ROWS.values[ids].reshape(len(ids), N_COLS))


@bounded
@given(ids=st.lists(st.integers(0, N_ROWS - 1), max_size=8), bad=out_of_range, data=st.data())
def test_an_id_out_of_range_is_refused(
    kernels: _native.CpuKernels, ids: list[int], bad: int, data: st.DataObject
) -> None:
    ids.insert(data.draw(st.integers(0, len(ids))), bad)
    with pytest.raises(IndexError, match=rf"row {bad} is not in \[0, {N_ROWS}\)"):
        looked_up(kernels, ids)


@bounded
@given(position=st.integers(-3, 12), slot=st.integers(-3, 5))
def test_places_in_the_cache(kernels: _native.CpuKernels, position: int, slot: int) -> None:
    n_slots, n_ctx, head_dim = 2, 8, 4
    x = torch.ones(1, 1, head_dim)
    cache = torch.zeros(2, n_slots, 1, n_ctx, head_dim, dtype=torch.float16)
    y = torch.zeros(1, 1, head_dim)
    where = torch.tensor([slot, position])
    addresses = [t.data_ptr() for t in (x, x, x, cache[0], cache[1])]
    tail = (1, 1, 1, n_slots, n_ctx, head_dim, head_dim, 1.0, y.data_ptr())
    f16 = (int(GGMLType.F16), int(GGMLType.F16))

    def attend() -> None:
        kernels.attention(*addresses, f16, where[:1].data_ptr(), where[1:].data_ptr(), *tail)

    if 0 <= slot < n_slots and 0 <= position < n_ctx:
        attend()
        assert int((cache != 0).sum()) == 2 * head_dim
        assert bool((cache[0, slot, 0, position] == 1).all())
    else:
        with pytest.raises(IndexError):
            attend()
        assert not bool(cache.any())
