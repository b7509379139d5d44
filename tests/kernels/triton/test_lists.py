"""Masks as lists, as unions and as bits, against numpy, over sizes around a tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_kernels import mask_of
from helpers_triton import Poison, on_device

from powerinfer_py.kernels.triton import lists
from powerinfer_py.kernels.triton.kernels import TritonKernels

SIZES = [1, 70, lists.TILE - 1, lists.TILE, lists.TILE + 1, 2 * lists.TILE + 100]


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("n", SIZES)
def test_lists_are_ascending_ids(triton_kernels: TritonKernels, n: int, density: float) -> None:
    new = Poison(str(triton_kernels.device))
    # Rows that lie apart: the left part of a wider mask.
    wide = on_device(triton_kernels, mask_of(2, n + 7, density))
    assert wide is not None
    mask = wide[:, :n]
    ids, counts = new((2, n), torch.int32), new((2,), torch.int32)
    lists.list_active(mask, ids, counts)
    for token in range(2):
        want = mask[token].cpu().nonzero().flatten().tolist()
        assert counts[token] == len(want)
        assert ids[token, : len(want)].tolist() == want
        assert (ids[token, len(want) :] == -1).all()


def test_coefficients_are_listed_where_they_are_not_zero(triton_kernels: TritonKernels) -> None:
    new = Poison(str(triton_kernels.device))
    values = torch.tensor([[0.0, -0.0, 1e-45, float("nan"), -3.0, 0.0]])
    ids, counts = new((1, 6), torch.int32), new((1,), torch.int32)
    lists.list_active(on_device(triton_kernels, values), ids, counts)  # type: ignore[arg-type]
    assert (counts.tolist(), ids[0, :3].tolist()) == ([3], [2, 3, 4])


@pytest.mark.parametrize("n", [1, 70, lists.TILE + 1])
def test_a_union_lists_what_any_token_wants(triton_kernels: TritonKernels, n: int) -> None:
    new = Poison(str(triton_kernels.device))
    mask = mask_of(5, n, 0.05)
    union, ids, count = new((n,), torch.uint8), new((n,), torch.int32), new((1,), torch.int32)
    lists.list_active_of_any(on_device(triton_kernels, mask), union, ids, count)  # type: ignore[arg-type]
    want = mask.any(dim=0).nonzero().flatten().tolist()
    assert ids[: int(count)].tolist() == want


@pytest.mark.parametrize("n", [1, 7, 8, 9, 70, 2049])
@pytest.mark.parametrize("begin", [0, 3])
def test_bits(triton_kernels: TritonKernels, n: int, begin: int) -> None:
    mask = mask_of(2, n + begin, 0.4)
    bits = triton_kernels.pack_mask(on_device(triton_kernels, mask), begin)  # type: ignore[arg-type]
    want = np.packbits(mask[:, begin:].numpy(), axis=1, bitorder="little")
    assert (bits.cpu().numpy() == want).all()


def test_no_columns_give_no_bits(triton_kernels: TritonKernels) -> None:
    mask = on_device(triton_kernels, mask_of(2, 5, 0.4))
    assert triton_kernels.pack_mask(mask, 5).shape == (2, 0)  # type: ignore[arg-type]
