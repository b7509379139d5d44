"""PowerInfer's own question, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from powerinfer_py.errors import OptionError
from powerinfer_py.placement.most_active import most_active


def brute_force(counts: list[np.ndarray], capacity: int, group: int, threshold: int) -> float:
    best = 0.0
    options = []
    for layer in counts:
        takes = sorted({min(n, layer.size) for n in range(0, layer.size + group, group)})
        options.append([n for n in takes if n == 0 or n >= min(threshold, layer.size)])
    for takes in itertools.product(*options):
        if sum(takes) <= capacity:
            total = sum(float(np.sort(layer)[::-1][:n].sum()) for layer, n in zip(counts, takes, strict=True))
            best = max(best, total)
    return best


@pytest.mark.parametrize("seed", range(8))
def test_the_most_active_neurons_are_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = [rng.integers(0, 100, 7).astype(np.float64) ** 2 for _ in range(4)]
    capacity, group, threshold = int(rng.integers(0, 30)), int(rng.integers(1, 4)), int(rng.integers(0, 6))
    hot = most_active(counts, capacity, group, threshold)
    assert sum(ids.size for ids in hot) <= capacity
    assert all(ids.size == 0 or ids.size >= min(threshold, 7) for ids in hot)
    assert all(np.all(np.diff(ids) > 0) for ids in hot)
    total = sum(float(layer[ids].sum()) for layer, ids in zip(counts, hot, strict=True))
    assert total == pytest.approx(brute_force(counts, capacity, group, threshold), rel=1e-5)


@pytest.mark.parametrize(("capacity", "group", "threshold"), [(-1, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_numbers_that_cannot_be_are_refused(capacity: int, group: int, threshold: int) -> None:
    with pytest.raises(OptionError):
        most_active([np.ones(4)], capacity, group, threshold)
