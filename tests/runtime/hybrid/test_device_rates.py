"""Measuring a device: never with more of its memory than it was given, none of which is held afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers_hybrid import CountedStandIn

from powerinfer_py import LLM
from powerinfer_py.placement.budget import GIB
from powerinfer_py.placement.index_choice import IndexChooser
from powerinfer_py.placement.problem import Rates
from powerinfer_py.placement.rates import GpuProbe, LayerProbe, machine_rates
from powerinfer_py.runtime.hybrid import device_rates
from powerinfer_py.runtime.hybrid.device_rates import probe_device

LEAST, MOST = 1 << 20, 1 << 21


@pytest.fixture(autouse=True)
def _small_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(device_rates, "LEAST_PROBE_BYTES", LEAST)
    monkeypatch.setattr(device_rates, "PROBE_BYTES", MOST)


class Probed(CountedStandIn):
    """Measured as a GPU is."""

    def __init__(self, context_bytes: int = 0) -> None:
        super().__init__(context_bytes=context_bytes)
        self.probed: list[int] = []

    def rates(self, n_threads: int, free_bytes: int, layers: LayerProbe | None = None) -> Rates:  # noqa: ARG002
        def measure() -> tuple[float, float] | None:
            found = probe_device(self, free_bytes)
            self.probed.append(self.peak_bytes)
            return found

        return machine_rates(n_threads, GpuProbe("a stand-in", measure))


@pytest.mark.parametrize("free_bytes", [LEAST - 1, LEAST, LEAST + 12345, MOST, 100 * MOST])
def test_it_takes_no_more_than_it_may(free_bytes: int) -> None:
    device = CountedStandIn()
    found = probe_device(device, free_bytes)
    assert device.live_bytes == 0
    if free_bytes < LEAST:
        assert found is None
        assert device.peak_bytes == 0
        return
    assert found is not None
    bytes_per_s, synchronise_s = found
    assert 1e7 < bytes_per_s < 1e13
    assert 0 < synchronise_s < 1
    assert 0.99 * min(free_bytes, MOST) <= device.peak_bytes <= min(free_bytes, MOST)


def test_memory_is_given_back_where_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    device = CountedStandIn()
    released = []
    monkeypatch.setattr(device, "release", lambda: released.append(True))
    monkeypatch.setattr(device, "copy", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        probe_device(device, MOST)
    assert released == [True]
    assert device.live_bytes == 0


@pytest.mark.parametrize("budget", [2_300_000, 3_000_000, 6_000_000])
def test_loading_a_model_measures_inside_its_budget(
    models: dict[str, Path], tmp_path: Path, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free beside the context is all that the probe has, and it is free again when neurons are placed."""
    path = shutil.copy(models["bamboo"], tmp_path / "model.powerinfer.gguf")
    device, held, choose = Probed(context_bytes=500_000), list[int](), IndexChooser.__call__

    def chosen(self: IndexChooser, *args: object) -> object:
        held.append(device.live_bytes)
        return choose(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(IndexChooser, "__call__", chosen)
    with LLM(path, threads=1, vram_budget=budget / GIB, device=device, context_length=32, batch_size=1) as llm:
        assert held == [0]
        assert 0 < device.probed[0] <= budget - 500_000
        assert device.peak_bytes + 500_000 <= budget
        assert llm.stats.vram["expected_s"] > 0
