"""Bytes of weights on a device."""

from __future__ import annotations

import pytest

from powerinfer_py.gguf import GGMLType, row_bytes
from powerinfer_py.gguf.types import WEIGHT_TYPES
from powerinfer_py.placement.device_bytes import ALIGNMENT, DEVICE_TYPES, aligned, device_type, matrix_bytes


@pytest.mark.parametrize("ggml_type", WEIGHT_TYPES)
def test_types_with_kernels_keep_their_bytes_and_others_become_f16(ggml_type: GGMLType) -> None:
    held = device_type(ggml_type)
    assert held is (ggml_type if ggml_type in DEVICE_TYPES else GGMLType.F16)
    expected = 3 * row_bytes(ggml_type, 512) if ggml_type in DEVICE_TYPES else 3 * 512 * 2
    assert matrix_bytes(ggml_type, 3, 512) == expected


def test_integers_are_no_weights() -> None:
    with pytest.raises(ValueError, match="I32 is no weight type"):
        device_type(GGMLType.I32)


def test_allocations_are_rounded_up() -> None:
    assert [aligned(n) for n in (0, 1, ALIGNMENT, ALIGNMENT + 1)] == [0, ALIGNMENT, ALIGNMENT, 2 * ALIGNMENT]
