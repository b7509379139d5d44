"""Timing a model's layers on both sides: inside the budget, once a machine, and without a trace in what runs later."""

from __future__ import annotations

import gc
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers_hybrid import CountedStandIn, run_sequences, sequences_of

from powerinfer_py import LLM
from powerinfer_py.config import RuntimeOptions, Sparsity
from powerinfer_py.errors import DeviceError
from powerinfer_py.gguf import open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement.budget import GIB
from powerinfer_py.placement.fixed_bytes import minimum_bytes
from powerinfer_py.placement.index_choice import IndexChooser
from powerinfer_py.placement.layer_times import LayerTimes
from powerinfer_py.placement.problem import Rates
from powerinfer_py.placement.rates import MEASURED_WITH_LAYERS
from powerinfer_py.placement.sizes import model_sizes
from powerinfer_py.runtime.hybrid import device_rates, layer_probe
from powerinfer_py.runtime.hybrid.device import Arrangement
from powerinfer_py.runtime.hybrid.layer_kinds import alike, layer_kinds
from powerinfer_py.runtime.hybrid.layer_probe import LayerTimer

CONTEXT_BYTES = 500_000


@pytest.fixture(autouse=True)
def _short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(device_rates, "LEAST_PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(device_rates, "PROBE_BYTES", 1 << 21)
    monkeypatch.setattr(layer_probe, "_STEPS", 4)
    monkeypatch.setattr(layer_probe, "_MOST_LAYERS", 3)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[LayerTimes | str]:
    """What every probe found."""
    found: list[LayerTimes | str] = []
    measure = LayerTimer.measure

    def noted(self: LayerTimer) -> LayerTimes | str:
        found.append(measure(self))
        gc.collect()
        assert isinstance(self.device, CountedStandIn)
        assert self.device.live_bytes == 0
        return found[-1]

    monkeypatch.setattr(LayerTimer, "measure", noted)
    return found


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[Rates]:
    """What each placement was chosen by."""
    seen: list[Rates] = []
    choose = IndexChooser.__call__

    def chosen(self: IndexChooser, *args: object) -> object:
        seen.append(self._rates)
        return choose(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(IndexChooser, "__call__", chosen)
    return seen


def measured_device(kernels: str = "native", arrangement: Arrangement = Arrangement.TWO_NODES) -> CountedStandIn:
    device = CountedStandIn(kernels, CONTEXT_BYTES, arrangement)
    device._measures_rates = True
    return device


def loaded(path: Path, device: CountedStandIn, budget: float = GIB, sparsity: str = "auto") -> LLM:
    options = {"context_length": 32, "batch_size": 8, "threads": 1, "max_batch": 2}
    return LLM(path, vram_budget=budget / GIB, device=device, sparsity=sparsity, **options)  # type: ignore[arg-type]


@pytest.fixture
def copied(models: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Models whose folders an index may be kept in."""
    return {name: Path(shutil.copy(path, tmp_path / f"{name}.gguf")) for name, path in models.items()}


@pytest.mark.parametrize(
    ("name", "sparsity", "kernels", "arrangement"),
    [
        ("relu-llama.q4", "predictor", "native", Arrangement.TWO_NODES),
        ("relu-llama", "exact", "native", Arrangement.SIDE_STREAM),
        ("bamboo.q4", "dense", "native", Arrangement.EAGER),
        ("relu-falcon", "predictor", "torch", Arrangement.TWO_NODES),
        ("opt", "predictor", "native", Arrangement.EAGER),
        ("opt.gguf", "exact", "native", Arrangement.TWO_NODES),
        ("silu", "dense", "native", Arrangement.TWO_NODES),
        ("silu.k", "dense", "native", Arrangement.FLAGS),
    ],
)
def test_every_mode_is_measured(
    copied: dict[str, Path],
    probes: list[LayerTimes | str],
    rates: list[Rates],
    name: str,
    sparsity: str,
    kernels: str,
    arrangement: Arrangement,
) -> None:
    with loaded(copied[name], measured_device(kernels, arrangement), sparsity=sparsity) as llm:
        assert llm.stats.vram["expected_s"] > 0
    (times,) = probes
    assert isinstance(times, LayerTimes)
    assert times.block_bytes > 0
    samples = [*times.hot, *times.split, times.host]
    assert all(math.isfinite(sample.seconds) and sample.seconds > 0 for sample in samples)
    everything = times.host.cold_bytes
    assert everything > 0
    assert times.hot[0].hot_bytes == pytest.approx(everything, rel=0.3)
    assert [sample.cold_bytes for sample in times.hot] == [0.0] * len(times.hot)
    assert times.split[0].hot_bytes == 0
    for sample in times.split:
        assert sample.hot_bytes + sample.cold_bytes == pytest.approx(everything, rel=0.3)
    (found,) = rates
    assert found.source == MEASURED_WITH_LAYERS
    speeds = (found.gpu_bytes_per_s, found.gpu_rows, found.cpu_bytes_per_s, found.cpu_rows)
    assert all(math.isfinite(speed) and speed > 0 for speed in speeds)
    assert all(0 <= seconds < 10 for seconds in (found.layer_s, found.rows_s, found.synchronise_s))
    assert 0 < found.change < 10


def test_triton_kernels_are_measured(
    copied: dict[str, Path], probes: list[LayerTimes | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    # Its interpreter takes most of a second for a layer.
    for name in ("_STEPS", "_LEAST_STEPS", "_PRODUCTS", "_MOST_LAYERS"):
        monkeypatch.setattr(layer_probe, name, 1)
    monkeypatch.setattr(layer_probe, "_WARM_STEPS", 1)
    with loaded(copied["relu-llama.q4"], measured_device("triton", Arrangement.EAGER)):
        assert isinstance(probes[0], LayerTimes)


@pytest.mark.parametrize("budget", [2_300_000, 2_800_000, 3_300_000, 4_000_000, 8_000_000])
def test_the_budget_is_kept_meanwhile(copied: dict[str, Path], probes: list[LayerTimes | str], budget: int) -> None:
    device = measured_device()
    with loaded(copied["bamboo"], device, budget) as llm:
        assert len(probes) == 1
        assert device.peak_bytes + CONTEXT_BYTES <= budget
        assert llm.stats.vram["expected_s"] > 0


def test_too_small_a_budget_is_told(
    copied: dict[str, Path], probes: list[LayerTimes | str], rates: list[Rates]
) -> None:
    with open_gguf(copied["relu-llama"]) as file:
        config = read_config(file, RuntimeOptions())
        sizes = model_sizes(file, config, sparsity=Sparsity.PREDICTOR, n_ctx=32, n_slots=2)
    with loaded(copied["relu-llama"], measured_device(), minimum_bytes(sizes, 8, CONTEXT_BYTES)):
        pass
    assert isinstance(probes[0], str)
    assert rates[0].source.endswith(f"but not with layers like this model's: {probes[0]}")


def test_a_second_start_does_not_probe(
    copied: dict[str, Path], probes: list[LayerTimes | str], rates: list[Rates]
) -> None:
    for _ in range(2):
        with loaded(copied["relu-llama.q4"], measured_device()):
            pass
    assert len(probes) == 1
    assert rates[0] == rates[1]
    # Another model of such layers, another mode, another arrangement.
    with loaded(Path(shutil.copy(copied["relu-llama.q4"], copied["opt"].with_name("same.gguf"))), measured_device()):
        assert len(probes) == 1
    with loaded(copied["relu-llama.q4"], measured_device(), sparsity="exact"):
        assert len(probes) == 2
    with loaded(copied["relu-llama.q4"], measured_device(arrangement=Arrangement.EAGER)):
        assert len(probes) == 3


def test_what_fails_falls_back_and_says_so(
    copied: dict[str, Path], rates: list[Rates], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: LayerTimer, *_args: object) -> LayerTimes:
        raise DeviceError("a layer does not run")

    monkeypatch.setattr(LayerTimer, "_measured", broken)
    device = measured_device()
    with loaded(copied["relu-llama.q4"], device) as llm:
        assert rates[0].source == "measured, but not with layers like this model's: a layer does not run"
        assert llm.stats.vram["expected_s"] > 0


def test_nothing_of_it_is_seen_later(copied: dict[str, Path], probes: list[LayerTimes | str]) -> None:
    """The same logits as without, and no neuron counted that was not asked for."""
    logits = []
    for measures in (False, True):
        device = measured_device()
        device._measures_rates = measures
        with loaded(copied["bamboo.q4"], device) as llm:
            assert llm.engine.activity.neurons.sum() == 0
            assert llm.engine.activity.first.sum() == 0
            logits.append(run_sequences(llm.engine, sequences_of(2, llm.config.n_vocab)))
    assert len(probes) == 1
    assert np.array_equal(*logits)


def test_layers_alike(models: dict[str, Path]) -> None:
    with open_gguf(models["relu-llama"]) as file:
        kinds = layer_kinds(file, 12)
    assert len(set(kinds)) == 1
    assert alike(kinds, 3) == range(3)
    a, b = (("x", "F16", (1,)),), (("x", "F32", (1,)),)
    assert alike([b, a, a, b, a, a, a], 2) == range(1, 3)
    assert alike([b, a, a, b, a, a, a], 3) == range(4, 7)
    assert alike([b, a], 5) == range(1)
