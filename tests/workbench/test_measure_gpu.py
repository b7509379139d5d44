"""tools/measure_gpu.py from end to end, with a stand-in for the GPU and a driver that counts what it is told to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_models import FIXTURES
from helpers_scripts import script

from powerinfer_py import LLM, env
from powerinfer_py.runtime.hybrid.device import Arrangement
from powerinfer_py.runtime.hybrid.stand_in import StandIn

MEASURE = script("tools/measure_gpu.py")
CASES = [
    "whole, dense",
    "whole",
    "CPU alone",
    "10% of the FFN",
    "30% of the FFN",
    "60% of the FFN",
    "30% of the FFN side-stream",
    "30% of the FFN flags",
    "30% of the FFN eager",
]
SWEPT = ["swept +80%", "swept +45%", "swept +20%", "swept +5%", "swept +0%", "swept -30%", "swept -60%"]


class Driver:
    """In the place of the watching process."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.arrangements: list[Arrangement] = []

    def peak_bytes(self) -> int:
        return self.n_bytes

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A machine whose GPU is a stand-in."""
    counting = Driver(0)

    def load(model: Path, **options: Any) -> LLM:
        if "vram_budget" not in options:
            return LLM(model, **options)
        arrangement = Arrangement(env.forced_step() or Arrangement.TWO_NODES)
        counting.arrangements.append(arrangement)
        device = StandIn("native", total_bytes=1 << 30, context_bytes=1 << 20, arrangement=arrangement)
        return LLM(model, **options, device=device)

    monkeypatch.setattr(MEASURE, "LLM", load)
    monkeypatch.setattr(MEASURE, "Watch", lambda _pid: counting)
    monkeypatch.setattr(MEASURE, "device_bandwidth", lambda: 1e9)
    monkeypatch.setattr(MEASURE, "find_device", lambda _options: (SimpleNamespace(name="a stand-in"), []))
    monkeypatch.setattr(MEASURE.torch.cuda, "is_available", lambda: True)
    return counting


def arguments(folder: Path, *more: str) -> list[str]:
    """Of a copy: a GPU index is written beside a model."""
    model = shutil.copy(FIXTURES / "relu-llama.q4.powerinfer.gguf", folder)
    return [str(model), "--json", str(folder / "gpu.json"), "--n", "2", "--prompt", "16", "--repeats", "1", *more]


def test_every_case_is_measured_and_kept(driver: Driver, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert MEASURE.main(arguments(tmp_path, "--sweep", "--commit", "abc")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" | ")[0] for line in lines[:-1]] == CASES + SWEPT
    assert list(json.loads(lines[-1])["seconds"]) == CASES
    others = [Arrangement.SIDE_STREAM, Arrangement.FLAGS, Arrangement.EAGER]
    assert driver.arrangements == [*5 * [Arrangement.TWO_NODES], *others, *len(SWEPT) * [Arrangement.TWO_NODES]]
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert (report["commit"], report["device"], report["bytes_per_s"]) == ("abc", "a stand-in", 1e9)
    by_name = {case["case"]: case for case in report["cases"] if "arrangement" not in case}
    assert by_name["whole"]["neurons_on_gpu"] == 1.0
    tenth, third, most = (by_name[name]["budget_bytes"] for name in CASES[3:6])
    sizes = by_name["whole"]["sizes"]
    ffn, rest = sizes["ffn"], sizes["rest"] + sizes["staging"]
    assert (tenth, third, most) == pytest.approx([rest + share * ffn for share in MEASURE.SHARES], abs=1)
    for case in report["cases"]:
        assert ("decode" in case) == (not case["case"].startswith("swept"))
        assert ("budget_bytes" in case) == (case["case"] != "CPU alone")


def test_a_budget_that_the_driver_saw_exceeded_is_an_error(
    driver: Driver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver.n_bytes = 1 << 40
    assert MEASURE.main(arguments(tmp_path, "--whole", "--no-dense")) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["over_budget"] == ["whole"]
