"""Dequantisation of every weight type against values worked out from the block layouts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from powerinfer_py.gguf import BLOCK_LAYOUTS, WEIGHT_TYPES, GGMLType, dequantize, dequantize_rows, row_bytes

ROWS, COLS = 5, 512
# The gguf package quantises to these; it only reads the K-quants.
QUANTISABLE = [t for t in WEIGHT_TYPES if not t.name.endswith("_K")]


# Where in a block its float16 scales (and minima) lie.
SCALE_PLACES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def random_blocks(ggml_type: GGMLType, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Random bytes, but scales below 2, so that no value is infinite or NaN."""
    rng = np.random.default_rng(seed)
    if ggml_type.name not in SCALE_PLACES:
        values = quantize(rng.standard_normal((rows, cols), np.float32), GGMLQuantizationType(int(ggml_type)))
        return np.frombuffer(values.tobytes(), np.uint8)
    layout = BLOCK_LAYOUTS[ggml_type]
    data = rng.integers(0, 256, (rows * cols // layout.n_weights, layout.n_bytes)).astype(np.uint8)
    for place in SCALE_PLACES[ggml_type.name]:
        data[:, place + 1] &= 0x3F
    return data.reshape(-1)


def half(block: bytes, place: int) -> float:
    return float(np.frombuffer(block[place : place + 2], "<f2")[0])


def q6_k_by_hand(block: bytes) -> list[float]:
    """128 low nibbles, 64 bytes of upper bit pairs, 16 signed scales, d; scales serve 16 weights each."""
    scales = np.frombuffer(block[192:208], np.int8).tolist()
    values = []
    for i in range(256):
        part, quarter, lane = i // 128, i % 128 // 32, i % 32
        low = block[64 * part + 32 * (quarter % 2) + lane] >> (4 * (quarter // 2)) & 15
        high = block[128 + 32 * part + lane] >> (2 * quarter) & 3
        values.append(half(block, 208) * scales[i // 16] * ((low | high << 4) - 32))
    return values


def q4_k_by_hand(block: bytes) -> list[float]:
    """d, dmin, eight 6-bit scales and minima in 12 bytes, then nibbles: a group of 32 weights has one of each."""
    packed, values = block[4:16], []
    for i in range(256):
        group = i // 32
        if group < 4:
            scale, minimum = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            minimum = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        nibble = block[16 + 32 * (group // 2) + i % 32] >> (4 * (group % 2)) & 15
        values.append(half(block, 0) * scale * nibble - half(block, 2) * minimum)
    return values


@pytest.mark.parametrize(("ggml_type", "by_hand"), [(GGMLType.Q6_K, q6_k_by_hand), (GGMLType.Q4_K, q4_k_by_hand)])
def test_k_quants_by_hand(ggml_type: GGMLType, by_hand: Callable[[bytes], list[float]]) -> None:
    data = random_blocks(ggml_type, 1, 512)
    n_block = BLOCK_LAYOUTS[ggml_type].n_bytes
    expected = by_hand(data[:n_block].tobytes()) + by_hand(data[n_block:].tobytes())
    np.testing.assert_allclose(dequantize(data, ggml_type, 1, 512)[0], expected, rtol=1e-5, atol=1e-5)


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
