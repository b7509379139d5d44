"""Weights on the device: the file's bytes, in one allocation of the file's size, in any order of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_blocks import random_rows
from torch import Tensor

from powerinfer_py.errors import UnsupportedError
from powerinfer_py.gguf.types import GGMLType, row_bytes
from powerinfer_py.kernels import make_kernels
from powerinfer_py.kernels.triton.device_rows import DeviceRows, fill, placed, row_parts, upload
from powerinfer_py.placement.device_bytes import matrix_bytes

STORED = [GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0]
SIZES: list[int] = []


def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    assert dtype is torch.uint8
    SIZES.append(shape[0])
    return torch.full(shape, 255, dtype=dtype)


def file_bytes(rows: DeviceRows) -> np.ndarray:
    """Rows as the file stores them, put together again: (rows, bytes)."""
    n_row = rows.cols // 2 if rows.storage == "q4_0" else rows.cols * rows.values.dtype.itemsize
    values = rows.values.contiguous().view(torch.uint8).numpy().reshape(rows.rows, n_row)
    if rows.scales is None:
        return values
    n_blocks = rows.cols // 32
    blocks = values.reshape(rows.rows, n_blocks, n_row // n_blocks)
    scales = rows.scales.contiguous().view(torch.uint8).numpy().reshape(rows.rows, n_blocks, 2)
    return np.concatenate([scales, blocks], axis=2).reshape(rows.rows, n_row + 2 * n_blocks)


@pytest.mark.parametrize("ggml_type", STORED)
def test_bytes_are_the_files(ggml_type: GGMLType) -> None:
    stored = random_rows(ggml_type, 7, 96)
    n_row = row_bytes(ggml_type, 96)
    SIZES.clear()
    rows = upload(ggml_type, 7, 96, stored.data, allocate)
    assert (file_bytes(rows) == stored.data.reshape(7, n_row)).all()
    assert [7 * n_row] == SIZES
    assert rows.scales is None or rows.scales.data_ptr() % 16 == 0


@pytest.mark.parametrize("ggml_type", STORED)
@pytest.mark.parametrize("ids", [None, [6, 0, 3], []], ids=["all", "some", "none"])
@pytest.mark.parametrize("host", ["native", "torch"])
def test_rows_filled_in_on_the_host_are_those_uploaded(
    ggml_type: GGMLType, ids: list[int] | None, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("powerinfer_py.kernels.parted_blocks._CACHED_BYTES", 100)
    data = random_rows(ggml_type, 7, 96).data.reshape(7, -1)
    chosen = None if ids is None else np.array(ids, np.int64)
    wanted = data if chosen is None else data[chosen]
    uploaded = upload(ggml_type, len(wanted), 96, wanted.reshape(-1), allocate)
    place = torch.full((wanted.size,), 255, dtype=torch.uint8)
    largest = fill(ggml_type, 96, data, chosen, place.numpy(), make_kernels(3, name=host))
    rows = placed(ggml_type, uploaded.rows, 96, place, largest)
    assert rows.values.data_ptr() == place.data_ptr()
    assert (file_bytes(rows) == file_bytes(uploaded)).all()
    assert (rows.storage, rows.rows, rows.cols, rows.half_scale) == (
        uploaded.storage,
        uploaded.rows,
        uploaded.cols,
        uploaded.half_scale,
    )


@pytest.mark.parametrize("ggml_type", [*STORED, GGMLType.Q6_K])
def test_the_parts_of_a_row_are_those_of_the_arrays(ggml_type: GGMLType) -> None:
    rows = upload(ggml_type, 3, 256, random_rows(ggml_type, 3, 256).data, allocate)
    arrays = [rows.values] if rows.scales is None else [rows.values, rows.scales]
    assert row_parts(ggml_type, 256) == tuple(array.nbytes // 3 for array in arrays)
    assert sum(row_parts(ggml_type, 256)) == matrix_bytes(ggml_type, 1, 256)


@pytest.mark.parametrize("ggml_type", [GGMLType.F16, GGMLType.Q4_0, GGMLType.Q6_K])
def test_rows_without_columns(ggml_type: GGMLType) -> None:
    rows = upload(ggml_type, 5, 0, np.zeros(0, np.uint8), allocate)
    assert (rows.values.numel(), rows.rows, rows.half_scale) == (0, 5, 1.0)


def test_other_types_become_f16() -> None:
    stored = random_rows(GGMLType.Q6_K, 5, 256)
    rows = upload(GGMLType.Q6_K, 5, 256, stored.data, allocate)
    assert rows.storage == "f16"
    assert (rows.values.numpy() == stored.values.astype(np.float16)).all()


def test_what_f16_cannot_hold_is_refused() -> None:
    data = random_rows(GGMLType.Q4_1, 2, 32).data.copy()
    data[:2] = np.array([60000.0], np.float16).view(np.uint8)
    data[4:20] = 0xFF
    with pytest.raises(UnsupportedError, match="Q4_1"):
        upload(GGMLType.Q4_1, 2, 32, data, allocate)


@pytest.mark.parametrize("ggml_type", [GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0])
@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1.0, 1e4])
def test_the_largest_weight_fits_a_float16(ggml_type: GGMLType, factor: float) -> None:
    if ggml_type is not GGMLType.BF16 and factor < 1e-3:
        pytest.skip("the scale of a block cannot be that small")
    values = (random_rows(GGMLType.F32, 3, 64).values * np.float32(factor)).astype(np.float32)
    import gguf

    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType(int(ggml_type))).view(np.uint8).reshape(-1)
    rows = upload(ggml_type, 3, 64, data, allocate)
    assert np.frexp(rows.half_scale)[0] == 0.5
    if factor > 1e-30:
        assert 2.0**12 <= np.abs(values).max() * rows.half_scale <= 2.0**14 * 1.01


def test_the_largest_bfloat16_is_a_finite_one() -> None:
    values = torch.tensor([[1.0, -3.0e38, float("nan"), -float("inf"), 2.0e38, float("inf"), 0.0, -0.0]])
    data = values.bfloat16().view(torch.uint8).numpy()
    place = np.zeros(16, np.uint8)
    largest = fill(GGMLType.BF16, 8, data, None, place, make_kernels(1))
    assert largest == -float(values.bfloat16()[0, 1])
    assert fill(GGMLType.BF16, 2, data.view(np.uint8)[:, 4:8], None, place[:4], make_kernels(1, name="torch")) == 0.0
    assert fill(GGMLType.BF16, 8, data[:0], None, place[:0], make_kernels(1)) == 0.0


def test_wrong_calls_are_refused() -> None:
    data = random_rows(GGMLType.Q8_0, 4, 32).data
    with pytest.raises(ValueError, match="shape"):
        upload(GGMLType.Q8_0, 5, 32, data, allocate)


def test_many_rows_are_filled_in_by_all_threads() -> None:
    """More than one thread takes at once; what is not finite does not count as the largest scale."""
    stored = random_rows(GGMLType.Q4_0, 3000, 96)
    data = stored.data.reshape(3000, -1).copy()
    data[5, :2] = np.array([np.inf], "<f2").view(np.uint8)
    ids = np.arange(0, 3000, 2, dtype=np.int64)[::-1].copy()
    places = [np.zeros(1500 * data.shape[1], np.uint8) for _ in range(3)]
    found = [make_kernels(n).fill_blocks(data, ids, 16, place) for n, place in zip((1, 4), places, strict=False)]
    found.append(make_kernels(1, name="torch").fill_blocks(data, ids, 16, places[2]))
    assert (places[0] == places[2]).all()
    assert (places[1] == places[2]).all()
    assert found == [found[2]] * 3
    with pytest.raises(IndexError, match="row 3000"):
        make_kernels(1).fill_blocks(data, np.array([3000]), 16, np.zeros(data.shape[1], np.uint8))
    with pytest.raises(ValueError, match="do not go into"):
        make_kernels(1).fill_blocks(data, ids, 16, places[0][:-1])
