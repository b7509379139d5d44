"""The header of result files, and powerinfer-bench's results with it."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from helpers_scripts import ROOT, last_line, script

MODEL = ROOT / "tests/fixtures/relu-llama.q4.powerinfer.gguf"


@pytest.fixture
def header(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("result_header")


@pytest.fixture
def git(tmp_path: Path) -> Callable[..., None]:
    def run(*arguments: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    run("init")
    return run


def test_of_this_process(header: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["/somewhere/tools/x.py", "--json", "/home/me/a.json", "--out=/home/me/b", "-n", "8"]
    )
    result = header.header("tools/x.py", None)
    assert set(result) == set(header.REQUIRED)
    for name, parts in header.REQUIRED.items():
        assert not parts or set(result[name]) == set(parts)
    assert result["command"] == ["tools/x.py", "--json", "a.json", "--out=b", "-n", "8"]
    assert result["machine"]["logical_cores"] >= 1
    assert result["machine"]["instruction_sets"][0] == "scalar"
    assert result["versions"]["numpy"]
    assert header.header("tools/x.py", ["m.gguf"])["command"] == ["tools/x.py", "m.gguf"]


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("m.gguf", "m.gguf"),
        ("build/main", "build/main"),
        ("/a/b", "b"),
        ("f16=/a/b.json", "f16=b.json"),
        ("a=b", "a=b"),
    ],
)
def test_folders_of_the_machine_are_left_out(header: ModuleType, argument: str, kept: str) -> None:
    assert header.without_folders(argument) == kept


def test_a_commit_says_whether_code_was_changed(header: ModuleType, git: Callable[..., None], tmp_path: Path) -> None:
    assert header.commit(tmp_path / "nowhere") is None
    for name in ("tools/a.py", "docs/results/a.json", "tools/results/b.json", "tools/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    clean = header.commit(tmp_path)
    assert len(clean) == 12
    # Results that are being written, and the documents that show them, are not what is measured.
    for name in ("docs/results/a.json", "tools/results/b.json", "tools/README.md"):
        (tmp_path / name).write_text("2")
    assert header.commit(tmp_path) == clean
    (tmp_path / "tools/new.py").write_text("1")
    assert header.commit(tmp_path) == f"{clean}-dirty"


def test_record_bench(header: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bench.json"
    record = script("tools/record_bench.py")
    options = ["-m", MODEL, "-p", "8", "-n", "4", "-r", "2", "-t", "1", "--probe-mib", "1", "--sparsity", "exact,dense"]
    result = last_line(record, ["--json", output, *options], capsys)
    assert result == json.loads(output.read_text())
    assert set(header.REQUIRED) < set(result)
    assert result["command"][:4] == ["tools/record_bench.py", "--json", "bench.json", "-m"]
    assert [(row["sparsity"], row["test"]) for row in result["rows"]] == [
        (mode, test) for mode in ("exact", "dense") for test in ("pp8", "tg4")
    ]
    assert {row["model"] for row in result["rows"]} == {MODEL.name}
    assert {len(row["seconds"]) for row in result["rows"]} == {2}


def test_record_bench_of_a_bench_that_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = script("tools/record_bench.py")
    assert record.main(["--json", str(tmp_path / "x.json"), "-m", str(tmp_path / "none.gguf")]) == 1
    assert "powerinfer-bench ended with exit code 1" in capfd.readouterr().err
    assert not (tmp_path / "x.json").exists()
