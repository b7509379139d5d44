"""powerinfer-inspect --system: what it says of this machine, of others, and of what cannot run."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import psutil
import pytest
import torch

from powerinfer_py import _native
from powerinfer_py.cli import inspect
from powerinfer_py.cli.inspect import system
from powerinfer_py.cli.inspect.system import DeviceReport, cpu_model, inspect_kernels, inspect_system, scalar_problem
from powerinfer_py.cli.inspect.system_table import system_rows
from powerinfer_py.kernels import selection
from powerinfer_py.runtime.threads import Processors, default_threads


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POWERINFER_KERNELS", raising=False)
    monkeypatch.delenv("POWERINFER_ISA", raising=False)


def rows() -> dict[str, str]:
    return dict(system_rows(inspect_system()))


def test_json_describes_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(["--system", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["processor"]["logical"] == psutil.cpu_count()
    assert report["processor"]["machine"] == platform.machine()
    assert report["processor"]["threads"] == default_threads()
    assert report["kernels"] == {
        "extension": True,
        "instruction_sets": _native.available_isas(),
        "running": _native.available_isas()[-1],
        "problem": None if len(_native.available_isas()) > 1 else scalar_problem(platform.machine()),
    }
    assert 0 < report["memory_available_bytes"] < report["memory_total_bytes"] == psutil.virtual_memory().total
    assert len(report["devices"]) == torch.cuda.device_count()
    assert set(report["versions"]) == {"powerinfer-py", "Python", "torch", "numpy"}


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(["--system"]) == 0
    out = capsys.readouterr().out
    for text in ("CPU", "default threads", "native kernels", "running", "memory", torch.__version__):
        assert text in out


def test_variables_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERINFER_ISA", "scalar")
    assert inspect_kernels().running == "scalar"
    monkeypatch.setenv("POWERINFER_KERNELS", "torch")
    assert inspect_kernels().running == "torch"


def test_what_cannot_run_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERINFER_ISA", "sse9")
    report = inspect_kernels()
    assert (report.extension, report.running) == (True, None)
    assert report.problem is not None
    assert "sse9" in report.problem
    shown = rows()
    assert shown["running"] == "nothing"
    assert shown["error"] == report.problem


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_EXTENSION", "powerinfer_py._not_built")
    report = inspect_kernels()
    assert (report.extension, report.instruction_sets, report.running) == (False, [], "torch")
    assert report.problem is not None
    assert "compiler" in report.problem


def test_an_old_cpu_is_told_that_scalar_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldKernels:
        isa = "scalar"
        threads = 1

    monkeypatch.setattr(_native, "available_isas", lambda: ["scalar"])
    monkeypatch.setattr(_native, "CpuKernels", lambda isa, threads: OldKernels())  # noqa: ARG005
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    shown = rows()
    assert shown["native kernels"] == shown["running"] == "scalar"
    assert "lacks AVX2" in shown["note"]
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "no vector kernels for aarch64" in rows()["note"]


def test_scalar_code_that_was_asked_for_needs_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "available_isas", lambda: ["scalar", "avx2"])
    monkeypatch.setenv("POWERINFER_ISA", "scalar")
    assert inspect_kernels().problem is None


def test_devices_and_processors_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_devices", list)
    assert "everything runs on the CPU" in rows()["CUDA devices"]
    monkeypatch.setattr(system, "_devices", lambda: [DeviceReport("A card", 24 << 30)])
    monkeypatch.setattr(system, "find_processors", lambda: Processors(20, 14, 6, 4.5))
    shown = rows()
    assert "A card, 24.00 GiB" in shown["CUDA device 0"]
    assert shown["usable here"] == "14 physical, 20 logical; 6 performance cores; a quota of 4.5 processors"
    assert shown["default threads"] == "4"


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor\t: 0\nmodel name\t: A CPU @ 3 GHz\nmodel name\t: A CPU @ 3 GHz\n", "A CPU @ 3 GHz"),
        ("processor\t: 0\nModel\t\t: A board\n", "A board"),
    ],
)
def test_the_cpus_own_name(tmp_path: Path, text: str, model: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(text)
    assert cpu_model(tmp_path) == model
    assert cpu_model(tmp_path / "none")


@pytest.mark.parametrize("arguments", [[], ["--system", "model.gguf"], ["--system", "--tensors"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        inspect.main(arguments)
    assert caught.value.code == 2
    assert "--system" in capsys.readouterr().err
