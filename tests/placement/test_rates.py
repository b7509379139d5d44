"""Rates: measured once a machine, given, or assumed and said so."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import pytest

from powerinfer_py.errors import OptionError
from powerinfer_py.placement import rates
from powerinfer_py.placement.problem import Rates

MEASURED = Rates(3e11, 2e10, 1e-5, 2e-5, "measured")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "powerinfer-py" / "rates.json"


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def measure(n_threads: int, _gpu: rates.GpuProbe | None) -> Rates:
        calls.append(n_threads)
        return MEASURED

    monkeypatch.setattr(rates, "measure", measure)
    return calls


def test_a_machine_is_probed_once_for_a_number_of_threads(probes: list[int]) -> None:
    assert [rates.machine_rates(2), rates.machine_rates(2), rates.machine_rates(4)] == [MEASURED] * 3
    assert probes == [2, 4]


@pytest.mark.parametrize("content", ["", "{", "[]", "nul\x00", '{"x": 1}'])
def test_a_damaged_cache_is_probed_again(probes: list[int], cache: Path, content: str) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert rates.machine_rates(2) == MEASURED
    assert rates.machine_rates(2) == MEASURED
    assert probes == [2]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "fast", None])
def test_figures_that_cannot_be_are_probed_again(probes: list[int], cache: Path, value: object) -> None:
    rates.machine_rates(2)
    kept = json.loads(cache.read_text())
    (key,) = kept
    kept[key]["cpu_bytes_per_s"] = value
    cache.write_text(json.dumps(kept))
    assert rates.machine_rates(2) == MEASURED
    assert probes == [2, 2]


def test_a_cache_that_cannot_be_written_is_no_failure(probes: list[int], cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert rates.machine_rates(2) == MEASURED
    assert probes == [2]


def test_the_probe_reads_memory_at_a_plausible_speed() -> None:
    started = perf_counter()
    speed = rates.cpu_bandwidth(1, n_bytes=1 << 24, seconds=0.01)
    assert 1e8 < speed < 1e13
    assert perf_counter() - started < 30


def test_without_a_gpu_its_figures_are_assumed_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "cpu_bandwidth", lambda _threads: 1.5e10)
    measured = rates.measure(1, None)
    assert measured.cpu_bytes_per_s == 1.5e10
    assert measured.gpu_bytes_per_s == rates.ASSUMED_GPU_BYTES_PER_S
    assert "assumed: none here" in measured.source


def test_a_gpu_is_measured_once_and_what_was_assumed_of_it_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "cpu_bandwidth", lambda _threads: 1.5e10)
    answers: list[tuple[float, float] | None] = [None, (9e11, 8e-6)]
    gpu = rates.GpuProbe("a GPU", lambda: answers.pop(0))
    assert "assumed: the budget leaves too little" in rates.machine_rates(2, gpu).source
    measured = rates.machine_rates(2, gpu)
    assert (measured.gpu_bytes_per_s, measured.synchronise_s, measured.source) == (9e11, 8e-6, "measured")
    assert rates.machine_rates(2, gpu) == measured
    assert not answers
    assert rates.machine_rates(2).gpu_bytes_per_s == rates.ASSUMED_GPU_BYTES_PER_S


def test_given_figures_replace_measured_ones() -> None:
    given = rates.given_rates(MEASURED, gpu_gb_per_s=936)
    assert (given.gpu_bytes_per_s, given.cpu_bytes_per_s) == (936e9, 2e10)
    assert given.source == "given in part; else measured"
    given = rates.given_rates(MEASURED, gpu_gb_per_s=1, cpu_gb_per_s=2, synchronise_us=0, layer_us=5)
    assert (given.gpu_bytes_per_s, given.cpu_bytes_per_s, given.synchronise_s, given.source) == (1e9, 2e9, 0, "given")
    assert given.layer_s == pytest.approx(5e-6)
    assert rates.given_rates(MEASURED) is MEASURED


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_given_figures_that_cannot_be_are_refused(value: float) -> None:
    with pytest.raises(OptionError):
        rates.given_rates(MEASURED, gpu_gb_per_s=value)
    with pytest.raises(OptionError):
        rates.given_rates(MEASURED, synchronise_us=value or -1)
