"""What becomes of the options about GPUs, on machines with and without one. No CUDA is initialised by any of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from powerinfer_py.config import RuntimeOptions
from powerinfer_py.errors import DeviceError, OptionError
from powerinfer_py.placement.budget import SAFETY_MARGIN_BYTES, DeviceMemory
from powerinfer_py.placement.problem import Rates
from powerinfer_py.placement.rates import LayerProbe
from powerinfer_py.runtime import devices
from powerinfer_py.runtime.devices import find_device
from powerinfer_py.runtime.hybrid import cuda_device
from powerinfer_py.runtime.hybrid.device import Arrangement


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Two GPUs that are only counted; what would be made of them."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda_device, "CudaDevice", lambda *args: calls.append(args) or "a device")
    return calls


def test_without_a_statement_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("CUDA was asked"))
    assert find_device(RuntimeOptions()) == (None, [])
    assert find_device(RuntimeOptions(vram_budget=0.0)) == (None, [])


def test_a_budget_finds_the_first_gpu_or_the_one_named(made: list[tuple[Any, ...]]) -> None:
    assert find_device(RuntimeOptions(vram_budget=8.0)) == ("a device", [])
    assert find_device(RuntimeOptions(vram_budget=-1.0, main_gpu=1)) == ("a device", [])
    assert made == [(0, Arrangement.TWO_NODES), (1, Arrangement.TWO_NODES)]


def test_how_steps_run_can_be_forced(made: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERINFER_STEP", "side-stream")
    find_device(RuntimeOptions(vram_budget=8.0))
    assert made == [(0, Arrangement.SIDE_STREAM)]
    monkeypatch.setenv("POWERINFER_STEP", "fast")
    with pytest.raises(OptionError, match="POWERINFER_STEP must be one of two-nodes, side-stream, flags, eager"):
        find_device(RuntimeOptions(vram_budget=8.0))


def test_a_gpu_that_is_not_there_is_an_error(made: list[tuple[Any, ...]]) -> None:
    with pytest.raises(DeviceError, match=r"GPU 2 .*found: 2"):
        find_device(RuntimeOptions(vram_budget=8.0, main_gpu=2))
    assert not made


def test_what_the_kernels_need_is_said_in_one_line(
    made: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(DeviceError, match="need a C compiler"):
        find_device(RuntimeOptions(vram_budget=8.0))
    assert not made


def test_without_a_gpu_everything_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    options = RuntimeOptions(vram_budget=8.0, gpu_index=str(tmp_path / "x"))
    device, notices = find_device(options)
    assert device is None
    assert [notice.split(":")[0] for notice in notices] == ["VRAM budget", "GPU index"]
    assert all("no CUDA device was found" in notice for notice in notices)
    _, notices = find_device(RuntimeOptions(reset_gpu_index=True, disable_gpu_index=True))
    assert [notice.split(":")[0] for notice in notices] == ["--reset-gpu-index", "--disable-gpu-index"]


def test_an_index_without_a_budget_is_told(made: list[tuple[Any, ...]]) -> None:
    device, notices = find_device(RuntimeOptions(gpu_index="x"))
    assert device is None
    assert "without a VRAM budget no GPU is used" in notices[0]
    assert not made


@pytest.fixture
def assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "machine_rates", lambda n_threads: Rates(1e11, n_threads * 1e9, 1e-5, 1e-5, "assumed"))


@pytest.mark.usefixtures("assumed")
def test_rates_of_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.rates_of_this_machine(3) == Rates(1e11, 3e9, 1e-5, 1e-5, "assumed")


@pytest.mark.usefixtures("assumed")
def test_rates_of_a_machine_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured in what is free but for the margin; where it cannot be used, the reason is told."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    class Measured:
        def memory(self) -> DeviceMemory:
            return DeviceMemory(8 << 30, 4 << 30)

        arrangement = Arrangement.TWO_NODES

        def rates(self, n_threads: int, free_bytes: int, layers: LayerProbe | None = None) -> Rates:
            source = "measured" if layers is None else f"{layers.kind}: {layers.measure()}"
            return Rates(9e11, n_threads * 1e9, float(free_bytes), 0.0, source)

    monkeypatch.setattr(devices, "_cuda_device", lambda _index: Measured())
    assert devices.rates_of_this_machine(2) == Rates(9e11, 2e9, float((4 << 30) - SAFETY_MARGIN_BYTES), 0.0, "measured")

    # Those of a model are taken where they are known, and never measured here.
    known = devices.rates_of_this_machine(2, lambda arrangement: f"layers, {arrangement}")
    assert known.source == "layers, two-nodes: it has not run here yet"

    def broken(index: int) -> Measured:
        raise DeviceError(f"GPU {index} cannot be used")

    monkeypatch.setattr(devices, "_cuda_device", broken)
    rates = devices.rates_of_this_machine(2)
    assert (rates.gpu_bytes_per_s, rates.source) == (1e11, "CPU measured; GPU assumed: GPU 0 cannot be used")
