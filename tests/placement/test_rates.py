"""Rates: measured once a machine, given, or assumed and said so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest

from powerinfer_py.errors import OptionError
from powerinfer_py.placement import rates
from powerinfer_py.placement.budget import BudgetError
from powerinfer_py.placement.layer_times import LayerSample, LayerTimes, rates_from
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


TIMES = LayerTimes(
    step_s=1e-4,
    product_bytes_per_s=2e12,
    block_bytes=4e7,
    block_s=1e-4,
    hot=(LayerSample(1.6e-4, 8e6), LayerSample(1.3e-4, 2e6)),
    split=(LayerSample(5e-4, 0.0, 8e6), LayerSample(2e-4, 6e6, 2e6)),
    host=LayerSample(2e-3, 0.0, 8e6),
)


@pytest.fixture
def generic(monkeypatch: pytest.MonkeyPatch) -> rates.GpuProbe:
    monkeypatch.setattr(rates, "cpu_bandwidth", lambda _threads: 1.5e10)
    return rates.GpuProbe("a GPU", lambda: (9e11, 8e-6))


def test_layers_are_timed_once_for_each_kind(generic: rates.GpuProbe) -> None:
    timed: list[str] = []

    def probe(kind: str) -> rates.LayerProbe:
        return rates.LayerProbe(kind, lambda: timed.append(kind) or TIMES)  # type: ignore[func-returns-value]

    found = [rates.machine_rates(2, generic, probe(kind)) for kind in "aab"]
    assert found == [rates_from(TIMES, rates.MEASURED_WITH_LAYERS)] * 3
    assert timed == ["a", "b"]
    rates.machine_rates(4, generic, probe("a"))
    rates.machine_rates(2, rates.GpuProbe("another", generic.measure), probe("a"))
    assert timed == ["a", "b", "a", "a"]
    # What a small budget let be measured is measured again under another.
    partial = replace(TIMES, product_bytes_per_s=None, is_whole=False)
    small = rates.machine_rates(2, generic, rates.LayerProbe("d", lambda: partial))
    assert small == rates_from(partial, rates.MEASURED_WITH_LAYERS)
    assert rates.machine_rates(2, generic, probe("d")) == found[0] != small
    assert timed.pop() == "d"
    # Without a GPU nothing is asked of layers there.
    rates.machine_rates(2, None, probe("c"))
    assert timed == ["a", "b", "a", "a"]


def test_layers_that_cannot_be_timed_are_tried_again(generic: rates.GpuProbe) -> None:
    def failing() -> LayerTimes:
        raise BudgetError("no room")

    for measure, reason in ((lambda: "too little", "too little"), (failing, "no room")):
        found = rates.machine_rates(2, generic, rates.LayerProbe("a", measure))
        assert found.source == f"measured, but not with layers like this model's: {reason}"
        assert (found.gpu_bytes_per_s, found.cpu_bytes_per_s) == (9e11, 1.5e10)
    nonsense = replace(TIMES, step_s=float("nan"))
    assert "no sense" in rates.machine_rates(2, generic, rates.LayerProbe("a", lambda: nonsense)).source
    timed = rates.machine_rates(2, generic, rates.LayerProbe("a", lambda: TIMES))
    assert timed.source == rates.MEASURED_WITH_LAYERS
    assert rates.machine_rates(2, generic).source == "measured"


@pytest.mark.parametrize(
    "change", [{"rows_s": -1.0}, {"gpu_rows_bytes_per_s": 0.0}, {"unknown": 1.0}, {"change_s": ""}]
)
def test_a_kept_entry_that_cannot_be_is_measured_again(
    generic: rates.GpuProbe, cache: Path, change: dict[str, object]
) -> None:
    probe = rates.LayerProbe("a", lambda: TIMES)
    expected = rates.machine_rates(2, generic, probe)
    kept = {key: value | change for key, value in json.loads(cache.read_text()).items()}
    cache.write_text(json.dumps(kept))
    assert rates.machine_rates(2, generic, probe) == expected
    assert change.items().isdisjoint(next(iter(json.loads(cache.read_text()).values())).items())


def test_an_entry_without_rates_of_rows_is_one_of_before(probes: list[int], cache: Path) -> None:
    rates.machine_rates(2)
    kept = json.loads(cache.read_text())
    for entry in kept.values():
        for name in ("gpu_rows_bytes_per_s", "cpu_rows_bytes_per_s", "rows_s", "change_s"):
            entry.pop(name, None)
    cache.write_text(json.dumps(kept))
    assert rates.machine_rates(2) == MEASURED
    assert probes == [2]


def test_given_figures_replace_measured_ones() -> None:
    given = rates.given_rates(MEASURED, gpu_gb_per_s=936)
    assert (given.gpu_bytes_per_s, given.cpu_bytes_per_s) == (936e9, 2e10)
    assert given.source == "given in part; else measured"
    given = rates.given_rates(MEASURED, gpu_gb_per_s=1, cpu_gb_per_s=2, synchronise_us=0, layer_us=5)
    assert (given.gpu_bytes_per_s, given.cpu_bytes_per_s, given.synchronise_s, given.source) == (1e9, 2e9, 0, "given")
    assert given.layer_s == pytest.approx(5e-6)
    assert rates.given_rates(MEASURED) is MEASURED


def test_a_given_figure_stands_for_the_finer_one_unless_that_is_given_too() -> None:
    timed = rates_from(TIMES, "measured")
    given = rates.given_rates(timed, gpu_gb_per_s=936, cpu_gb_per_s=50, synchronise_us=9, layer_us=30)
    assert (given.gpu_rows, given.cpu_rows, given.change, given.rows_s) == (936e9, 50e9, given.synchronise_s, 0.0)
    fine = {"gpu_rows_gb_per_s": 300, "cpu_rows_gb_per_s": 20, "change_us": 70, "rows_us": 12}
    given = rates.given_rates(timed, gpu_gb_per_s=936, **fine)
    assert (given.gpu_bytes_per_s, given.gpu_rows, given.cpu_rows) == (936e9, 300e9, 20e9)
    assert (given.change, given.rows_s) == (pytest.approx(7e-5), pytest.approx(1.2e-5))
    assert (given.cpu_bytes_per_s, given.synchronise_s, given.layer_s) == (
        timed.cpu_bytes_per_s,
        timed.synchronise_s,
        timed.layer_s,
    )
    assert given.source == "given in part; else measured"


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_given_figures_that_cannot_be_are_refused(value: float) -> None:
    with pytest.raises(OptionError):
        rates.given_rates(MEASURED, gpu_gb_per_s=value)
    with pytest.raises(OptionError):
        rates.given_rates(MEASURED, synchronise_us=value or -1)
