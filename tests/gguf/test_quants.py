"""Dequantisation of every weight type against values worked out from the block layouts."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from powerinfer_py.gguf import BLOCK_LAYOUTS, WEIGHT_TYPES, GGMLType, dequantize, dequantize_rows, row_bytes

ROWS, COLS = 5, 512
QUANTISABLE = [t for t in WEIGHT_TYPES if t.name[0] != "Q" or "K" not in t.name]


def random_blocks(ggml_type: GGMLType, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Random bytes with the exponent of every 16-bit scale kept small, so that no value is infinite or NaN."""
    rng = np.random.default_rng(seed)
    if ggml_type.name in ("F32", "F16", "BF16"):
        return (
            quantize(rng.standard_normal((rows, cols), np.float32), GGMLQuantizationType(int(ggml_type)))
            .view(np.uint8)
            .reshape(-1)
        )
    data = rng.integers(0, 256, (rows * cols // BLOCK_LAYOUTS[ggml_type].n_weights, BLOCK_LAYOUTS[ggml_type].n_bytes))
    for place in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q8_0": (0,)}.get(ggml_type.name, (0, 2)):
        if place == 2 and ggml_type.name in ("Q4_0", "Q5_0"):
            continue
        data[:, place + 1] &= 0x3F
    return data.astype(np.uint8).reshape(-1)


@pytest.mark.parametrize("ggml_type", QUANTISABLE, ids=lambda t: t.name)
def test_dequantised_values_are_near_the_originals(ggml_type: GGMLType) -> None:
    original = np.random.default_rng(1).standard_normal((ROWS, COLS), np.float32)
    data = np.frombuffer(quantize(original, GGMLQuantizationType(int(ggml_type))).tobytes(), np.uint8)
    result = dequantize(data, ggml_type, ROWS, COLS)
    assert result.dtype == np.float32
    assert result.shape == (ROWS, COLS)
    steps = {"F32": 0.0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 1.6e-2, "Q4_0": 0.5, "Q4_1": 0.3, "Q5_0": 0.3, "Q5_1": 0.15}
    assert np.abs(result - original).max() <= steps[ggml_type.name]


@pytest.mark.parametrize("ggml_type", WEIGHT_TYPES, ids=lambda t: t.name)
def test_rows_are_independent_of_each_other(ggml_type: GGMLType) -> None:
    data = random_blocks(ggml_type, ROWS, COLS)
    whole = dequantize(data, ggml_type, ROWS, COLS)
    assert np.isfinite(whole).all()
    assert np.ptp(whole) > 0
    ids = np.array([4, 0, 0, 3])
    np.testing.assert_array_equal(dequantize_rows(data, ggml_type, ROWS, COLS, ids), whole[ids])
    n_row = row_bytes(ggml_type, COLS)
    for row in range(ROWS):
        alone = dequantize(data[row * n_row : (row + 1) * n_row], ggml_type, 1, COLS)
        np.testing.assert_array_equal(alone[0], whole[row])


def test_blocks_by_hand() -> None:
    q8 = np.frombuffer(np.float16(0.5).tobytes() + np.arange(-16, 16, dtype=np.int8).tobytes(), np.uint8)
    np.testing.assert_array_equal(dequantize(q8, GGMLType.Q8_0, 1, 32)[0], 0.5 * np.arange(-16, 16))
    # Low nibbles are the first 16 weights, high nibbles the last 16; 8 is zero.
    q4 = np.frombuffer(np.float16(2).tobytes() + bytes(i | (15 - i) << 4 for i in range(16)), np.uint8)
    expected = np.concatenate([np.arange(16), np.arange(15, -1, -1)]) - 8
    np.testing.assert_array_equal(dequantize(q4, GGMLType.Q4_0, 1, 32)[0], 2.0 * expected)
    bf16 = np.array([0x3F80, 0xC000, 0x7FC0], "<u2").view(np.uint8)
    np.testing.assert_array_equal(dequantize(bf16, GGMLType.BF16, 1, 3)[0], [1, -2, np.nan])


def test_unaligned_data_and_empty_matrices() -> None:
    values = np.random.default_rng(2).standard_normal(64).astype(np.float32)
    shifted = np.frombuffer(b"\0" + values.tobytes(), np.uint8)[1:]
    result = dequantize(shifted, GGMLType.F32, 2, 32)
    np.testing.assert_array_equal(result.reshape(-1), values)
    assert result.flags.writeable
    for ggml_type in WEIGHT_TYPES:
        assert dequantize(np.zeros(0, np.uint8), ggml_type, 0, 256).shape == (0, 256)
        assert dequantize(np.zeros(0, np.uint8), ggml_type, 3, 0).shape == (3, 0)
        none = np.zeros(0, np.int64)
        data = np.zeros(2 * row_bytes(ggml_type, 256), np.uint8)
        assert dequantize_rows(data, ggml_type, 2, 256, none).shape == (0, 256)


def test_nan_and_infinite_scales_pass_through_without_a_warning() -> None:
    for scale in (np.nan, np.inf):
        data = np.frombuffer(np.float16(scale).tobytes() + bytes([0x7F] * 32), np.uint8)
        assert not np.isfinite(dequantize(data, GGMLType.Q8_0, 1, 32)).any()


def test_wrong_arguments_are_refused() -> None:
    data = np.zeros(34, np.uint8)
    with pytest.raises(ValueError, match="I32 is no weight type"):
        dequantize(data, GGMLType.I32, 1, 8)
    with pytest.raises(ValueError, match="no multiple of the Q8_0 block"):
        dequantize(data, GGMLType.Q8_0, 1, 33)
    with pytest.raises(ValueError, match=r"expected uint8 \(68,\)"):
        dequantize(data, GGMLType.Q8_0, 2, 32)
    with pytest.raises(ValueError, match="int8 data"):
        dequantize(data.view(np.int8), GGMLType.Q8_0, 1, 32)
    for bad in ([1], [-1]):
        with pytest.raises(IndexError, match="expected 0 to 0"):
            dequantize_rows(data, GGMLType.Q8_0, 1, 32, np.array(bad))
