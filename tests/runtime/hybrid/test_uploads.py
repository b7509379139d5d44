"""Weights on their way to the device: laid out in bands, each copied in time, through two buffers that are given up."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_blocks import random_rows
from helpers_hybrid import CountedStandIn, split
from helpers_late_device import LateDevice
from torch import Tensor

from powerinfer_py import LLM
from powerinfer_py.errors import UnsupportedError
from powerinfer_py.gguf.types import GGMLType, row_bytes
from powerinfer_py.kernels import make_kernels
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix
from powerinfer_py.placement.device_bytes import device_type, matrix_bytes
from powerinfer_py.runtime.hybrid import uploads
from powerinfer_py.runtime.hybrid.stand_in import KERNEL_NAMES, StandIn
from powerinfer_py.runtime.hybrid.uploads import Uploader

TYPES = [GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q4_K]
ROWS, COLS = 23, 256
IDS = {"all": None, "some": [22, 3, 4, 11, 0, 1, 2, 7, 9], "none": []}


class Target:
    """Memory of a device as a region gives it, NaN in every float type."""

    def __init__(self) -> None:
        self.taken: list[Tensor] = []

    def take(self, n_bytes: int) -> Tensor:
        self.taken.append(torch.full((n_bytes,), 255, dtype=torch.uint8))
        return self.taken[-1]


def device_kernels(name: str) -> Kernels:
    if name == "triton":
        pytest.importorskip("triton")
    return StandIn(name).make_kernels(lambda shape, dtype: torch.empty(shape, dtype=dtype))


def plainly(kernels: Kernels, ggml_type: GGMLType, rows: np.ndarray) -> Matrix:
    """Rows (n, row_bytes) as a matrix of `kernels`, in one piece and without a device."""
    place, known = Target().take(matrix_bytes(ggml_type, len(rows), COLS)), 0.0
    if len(rows):
        known = kernels.fill_rows(ggml_type, COLS, rows, None, place.numpy(), make_kernels(1, name="torch"))
    return kernels.filled_matrix("w", device_type(ggml_type), len(rows), COLS, place, known)


def bytes_of(matrix: Matrix) -> np.ndarray:
    """All that a matrix of a stand-in consists of, part after part."""
    handle = matrix.handle
    if not hasattr(handle, "values"):
        return np.array(matrix.data)
    parts = [part for part in (handle.values, handle.scales) if part is not None and part.numel()]
    return np.concatenate([np.zeros(0, np.uint8), *(part.view(torch.uint8).numpy().reshape(-1) for part in parts)])


def uploaded(uploader: Uploader, ggml_type: GGMLType, data: np.ndarray, ids: list[int] | None = None) -> Matrix:
    chosen = None if ids is None else np.array(ids, np.int64)
    rows = data.size // row_bytes(ggml_type, COLS)
    return uploader.matrix("w", ggml_type, rows, COLS, data, chosen, Target())


@pytest.mark.parametrize("kernels", KERNEL_NAMES)
@pytest.mark.parametrize("host", ["native", "torch"])
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda t: t.name)
def test_a_matrix_in_bands_is_the_matrix(
    ggml_type: GGMLType, ids: str, host: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every size of a buffer: for all rows, for some of them, and smaller than one."""
    theirs, stored = device_kernels(kernels), random_rows(ggml_type, ROWS, COLS)
    rows = stored.data.reshape(ROWS, -1)
    chosen = IDS[ids]
    expected = plainly(theirs, ggml_type, rows if chosen is None else rows[chosen])
    for n_bytes in (1 << 20, 5 * matrix_bytes(ggml_type, 1, COLS), 1):
        monkeypatch.setattr(uploads, "BUFFER_BYTES", n_bytes)
        device: Any = LateDevice()
        with Uploader(device, theirs, make_kernels(2, name=host)) as uploader:
            matrix = uploaded(uploader, ggml_type, stored.data, chosen)
        assert (matrix.name, matrix.type, matrix.rows, matrix.cols) == (
            "w",
            device_type(ggml_type),
            expected.rows,
            COLS,
        )
        assert np.array_equal(bytes_of(matrix), bytes_of(expected))
        assert getattr(matrix.handle, "half_scale", 1.0) == getattr(expected.handle, "half_scale", 1.0)


def test_the_largest_weight_of_any_band_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of zeros have none, the largest is neither in the first band nor in the last."""
    monkeypatch.setattr(uploads, "BUFFER_BYTES", 1)
    values = np.zeros((5, COLS), np.float32)
    values[1], values[2], values[3] = 1.0, -1000.0, 1.0
    data = (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(-1)
    device: Any = LateDevice()
    with Uploader(device, device_kernels("triton"), make_kernels(1)) as uploader:
        matrix = uploaded(uploader, GGMLType.BF16, data)
    assert matrix.handle.half_scale == 16.0


@pytest.mark.parametrize("kernels", ["native", "triton"])
@pytest.mark.parametrize("without", [None, "host"])
@pytest.mark.parametrize("of", ["bands", "matrices"])
def test_a_buffer_is_written_again_only_when_it_has_been_read(
    of: str, without: str | None, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that copies as late as it may; of one matrix in bands, and of matrices that fit a buffer each."""
    rows = [random_rows(GGMLType.Q4_0, ROWS, COLS, seed).data for seed in range(4)]
    monkeypatch.setattr(uploads, "BUFFER_BYTES", len(rows[0]) // (5 if of == "bands" else 1))
    theirs = device_kernels(kernels)
    device: Any = LateDevice(without)
    with Uploader(device, theirs, make_kernels(2)) as uploader:
        matrices = [uploaded(uploader, GGMLType.Q4_0, data) for data in rows]
    device.finish()
    expected = [plainly(theirs, GGMLType.Q4_0, data.reshape(ROWS, -1)) for data in rows]
    right = [np.array_equal(bytes_of(ours), bytes_of(plain)) for ours, plain in zip(matrices, expected, strict=True)]
    assert all(right) == (without is None)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("without", [None, "host"])
def test_buffers_are_given_up_when_everything_has_been_copied(without: str | None, fails: bool) -> None:
    """Whoever gets their memory next may write to it, whether loading has come to its end or not."""
    device: Any = LateDevice(without)
    data = random_rows(GGMLType.Q8_0, ROWS, COLS).data
    try:
        with Uploader(device, device_kernels("native"), make_kernels(1)) as uploader:
            matrices = [uploaded(uploader, GGMLType.Q8_0, data) for _ in range(2)]
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert len(device.buffers) == 2
    for buffer in device.buffers:
        buffer.fill_(255)
    device.finish()
    assert all(np.array_equal(matrix.data, data) for matrix in matrices) == (without is None)


def test_an_error_between_the_copies_of_a_band() -> None:
    """What was enqueued before it is waited for as well, although no mark says so."""

    class Failing(LateDevice):
        def copy(self, target: Tensor, source: Tensor) -> None:
            if self.calls["main"]:
                raise RuntimeError("the second copy")
            super().copy(target, source)

    device: Any = Failing()
    uploader = Uploader(device, device_kernels("triton"), make_kernels(1))
    with pytest.raises(RuntimeError, match="the second copy"), uploader:
        uploaded(uploader, GGMLType.Q8_0, random_rows(GGMLType.Q8_0, ROWS, COLS).data)
    assert device.done["main"] == len(device.calls["main"]) == 1


def test_an_error_of_a_later_band_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "BUFFER_BYTES", 1)
    data = random_rows(GGMLType.Q6_K, ROWS, COLS).data.copy()
    # The last two bytes of a block are its scale: the largest float16 there is.
    data.reshape(ROWS, -1)[17, -2:] = (0xFF, 0x7B)
    device: Any = LateDevice()
    uploader = Uploader(device, device_kernels("native"), make_kernels(1))
    with pytest.raises(UnsupportedError, match="Q6_K"), uploader:
        uploaded(uploader, GGMLType.Q6_K, data)
    assert device.done["main"] == len(device.calls["main"]) >= 17


def test_the_host_writes_a_band_while_the_one_before_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for no more than the copy of the band before that, which frees its buffer."""
    monkeypatch.setattr(uploads, "BUFFER_BYTES", 4 * matrix_bytes(GGMLType.Q8_0, 1, COLS))
    theirs, device = device_kernels("native"), LateDevice()
    fill_rows, done = theirs.fill_rows, []

    def filling(*arguments: Any) -> float:
        done.append(device.done["main"])
        return fill_rows(*arguments)

    theirs.fill_rows = filling  # type: ignore[method-assign]
    late: Any = device
    with Uploader(late, theirs, make_kernels(1)) as uploader:
        uploaded(uploader, GGMLType.Q8_0, random_rows(GGMLType.Q8_0, ROWS, COLS).data)
    assert done == [0, 0, 1, 2, 3, 4]


def test_buffers_are_two_and_as_long_as_a_row_has_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "BUFFER_BYTES", 3 * COLS)
    device = CountedStandIn()
    with Uploader(device, device_kernels("native"), make_kernels(1)) as uploader:
        assert device.host_bytes == 0
        uploaded(uploader, GGMLType.Q8_0, random_rows(GGMLType.Q8_0, ROWS, COLS).data)
        assert device.host_bytes == 2 * 3 * COLS
        uploaded(uploader, GGMLType.F32, random_rows(GGMLType.F32, ROWS, COLS).data)
        assert device.host_bytes == 2 * 4 * COLS
        uploaded(uploader, GGMLType.F16, random_rows(GGMLType.F16, ROWS, COLS).data)
        assert device.host_bytes == 2 * 4 * COLS
    assert device.host_bytes == 0


@pytest.mark.parametrize("kernels", KERNEL_NAMES)
@pytest.mark.parametrize("ggml_type", [GGMLType.F16, GGMLType.Q4_0, GGMLType.Q6_K])
def test_rows_without_columns_and_no_rows_need_no_buffer(ggml_type: GGMLType, kernels: str) -> None:
    """A down projection by columns has none of them where no neuron is hot."""
    device: Any = LateDevice()
    none, target = np.zeros(0, np.uint8), Target()
    with Uploader(device, device_kernels(kernels), make_kernels(1)) as uploader:
        shapes = [uploader.matrix("w", ggml_type, *shape, none, None, target) for shape in ((5, 0), (0, 256))]
    assert [(matrix.rows, matrix.cols) for matrix in shapes] == [(5, 0), (0, 256)]
    assert [place.numel() for place in target.taken] == [0, 0]
    assert not device.buffers
    assert not device.calls["main"]


@pytest.mark.parametrize("name", ["relu-llama.q4", "opt.gguf", "silu.k"])
def test_a_loaded_model_has_no_buffers_left(
    models: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two while it is loaded, in many bands; its logits are those of a model that was loaded in one."""
    sizes: list[int] = []

    class Noting(CountedStandIn):
        def host_buffer(self, n_bytes: int) -> Tensor:
            sizes.append(n_bytes)
            return super().host_buffer(n_bytes)

    choose = lambda sizes, _fixed, _left: split(sizes.config, 1.0)  # noqa: E731
    found, left = [], []
    for n_bytes in (uploads.BUFFER_BYTES, 4096):
        monkeypatch.setattr(uploads, "BUFFER_BYTES", n_bytes)
        device = Noting()
        with LLM(models[name], threads=2, vram_budget=1.0, context_length=32, device=device, choose=choose) as llm:
            assert sizes.count(n_bytes) == 2
            gc.collect()
            left.append(llm.stats.vram["host_buffer_bytes"])
            assert left[-1] == device.host_bytes
            found.append(llm.logits([1, 2, 3]))
    assert left[0] == left[1] < 4 << 20
    assert np.array_equal(found[0], found[1])
