"""Types that devices have no form of, as float16: the values of the gguf package, whoever turns them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_blocks import random_rows

from powerinfer_py.errors import UnsupportedError
from powerinfer_py.gguf.quants import dequantize
from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType
from powerinfer_py.kernels import halved_rows
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.placement.device_bytes import DEVICE_TYPES

ROWS, COLS = 9, 512
HALVED = [ggml_type for ggml_type in WEIGHT_TYPES if ggml_type not in DEVICE_TYPES]


def as_halves(values: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return values.astype("<f2")


def halved(
    kernels: Kernels, ggml_type: GGMLType, data: np.ndarray, ids: np.ndarray | None = None, cols: int = COLS
) -> np.ndarray:
    n_stored = data.size // (random_rows(ggml_type, 1, cols).data.size or 1)
    n = n_stored if ids is None else ids.size
    place = np.full(2 * n * cols, 255, np.uint8)
    kernels.fill_halves(ggml_type, cols, data.reshape(n_stored, -1), ids, place)
    return place.view("<f2").reshape(n, cols)


@pytest.mark.parametrize("ggml_type", HALVED, ids=lambda t: t.name)
@pytest.mark.parametrize("ids", [None, [8, 0, 3, 3], []], ids=["all", "some", "none"])
@pytest.mark.parametrize("step", [1 << 20, 2 * COLS])
def test_the_bits_are_those_of_the_definition(
    kernels: Kernels, ggml_type: GGMLType, ids: list[int] | None, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one step and in several, of data that starts anywhere."""
    monkeypatch.setattr(halved_rows, "_STEP_WEIGHTS", step)
    stored = random_rows(ggml_type, ROWS, COLS, seed=3, offset=1)
    chosen = None if ids is None else np.array(ids, np.int64)
    want = as_halves(dequantize(stored.data, ggml_type, ROWS, COLS))
    actual = halved(kernels, ggml_type, stored.data, chosen)
    assert np.array_equal(actual.view(np.uint16), (want if chosen is None else want[chosen]).view(np.uint16))


@pytest.mark.parametrize("ggml_type", HALVED, ids=lambda t: t.name)
def test_any_bytes(kernels: Kernels, ggml_type: GGMLType) -> None:
    """Scales of every size, infinite ones and NaN among them: the same values, or the same refusal."""
    rng = np.random.default_rng(int(ggml_type))
    n_refused = 0
    for _ in range(40):
        data = rng.integers(0, 256, random_rows(ggml_type, 1, 256).data.size).astype(np.uint8)
        with np.errstate(all="ignore"):
            values = dequantize(data, ggml_type, 1, 256)
        want = as_halves(values)
        if (np.isinf(want) & np.isfinite(values)).any():
            n_refused += 1
            with pytest.raises(UnsupportedError, match=ggml_type.name):
                halved(kernels, ggml_type, data, cols=256)
            continue
        assert np.array_equal(halved(kernels, ggml_type, data, cols=256), want, equal_nan=True)
    assert 0 < n_refused < 40


def test_what_is_not_finite_does_not_hide_what_is_too_large(kernels: Kernels) -> None:
    data = np.concatenate([random_rows(GGMLType.Q4_1, 2, 32).data, np.zeros(20, np.uint8)])
    data[:2] = np.array([np.nan], "<f2").view(np.uint8)
    assert np.isnan(halved(kernels, GGMLType.Q4_1, data, cols=32)[0]).all()
    data[40:42] = np.array([60000.0], "<f2").view(np.uint8)
    data[44:] = 0xFF
    with pytest.raises(UnsupportedError, match="Q4_1"):
        halved(kernels, GGMLType.Q4_1, data, cols=32)
