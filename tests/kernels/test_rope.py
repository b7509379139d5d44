"""Rotary embedding against float64, in both pairings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_kernels import ROUNDOFF

from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import RopeTable


def table_of(n_ctx: int, n_rot: int, halves: bool) -> RopeTable:
    frequencies = 10000.0 ** (-torch.arange(0, n_rot, 2) / n_rot)
    angles = torch.arange(n_ctx)[:, None] * frequencies
    return RopeTable(angles.cos(), angles.sin(), halves)


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(("n_head", "head_dim", "n_rot"), [(1, 2, 2), (3, 64, 64), (2, 80, 32), (5, 6, 4), (2, 4, 0)])
def test_rope_is_close_to_float64(kernels: Kernels, halves: bool, n_head: int, head_dim: int, n_rot: int) -> None:
    table = table_of(50, n_rot, halves)
    positions = torch.tensor([0, 49, 7, 7])
    x = torch.randn(4, n_head, head_dim, generator=torch.Generator().manual_seed(1))
    y = kernels.rope(x, positions, table).numpy().astype(np.float64)
    x64 = x.numpy().astype(np.float64)
    for t, position in enumerate(positions.tolist()):
        for pair in range(n_rot // 2):
            a, b = (pair, pair + n_rot // 2) if halves else (2 * pair, 2 * pair + 1)
            c, s = float(table.cos[position, pair]), float(table.sin[position, pair])
            first, second = x64[t, :, a], x64[t, :, b]
            bound = 2.01 * ROUNDOFF * (np.abs(first) + np.abs(second))
            assert (np.abs(y[t, :, a] - (first * c - second * s)) <= bound).all()
            assert (np.abs(y[t, :, b] - (first * s + second * c)) <= bound).all()
    assert (y[:, :, n_rot:] == x64[:, :, n_rot:]).all()


@pytest.mark.parametrize("bad", [-1, 50])
def test_a_position_beyond_the_table_is_refused(kernels: Kernels, bad: int) -> None:
    with pytest.raises(IndexError, match=str(bad)):
        kernels.rope(torch.zeros(1, 2, 8), torch.tensor([bad]), table_of(50, 8, True))
