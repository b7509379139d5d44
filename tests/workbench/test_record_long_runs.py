"""tools/record_long_runs.py, make played by a script that says what make would say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from helpers_scripts import last_line, script

RECORD = script("tools/record_long_runs.py")
SAID = {
    "fuzz": "stat::number_of_executed_units: 1200\nDone\nstat::number_of_executed_units: 34\n",
    "soak": "....\n13 passed in 71.20s (0:01:11)\n",
    "mutants": "killed   a.b:1 raise\n79 checks disabled, 2 went unnoticed\n",
}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of what `make TARGET` says, first in PATH with a make that says it; no such file: it fails."""
    program = tmp_path / "make"
    program.write_text(f'#!/bin/sh\nfor target; do :; done\ncat "{tmp_path}/$target"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for target, said in SAID.items():
        (tmp_path / target).write_text(said)
    return tmp_path


def test_figures_are_read_and_other_targets_kept(make: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = make / "runs.json"
    first = last_line(RECORD, ["fuzz", "mutants", "--json", output], capsys)
    assert first["runs"]["fuzz"]["inputs"] == 1234
    assert (first["runs"]["mutants"]["disabled"], first["runs"]["mutants"]["unnoticed"]) == (79, 2)
    second = last_line(RECORD, ["soak", "--json", output], capsys)
    assert second == json.loads(output.read_text())
    assert second["runs"]["fuzz"] == first["runs"]["fuzz"]
    assert second["runs"]["soak"]["passed"] == 13
    assert second["runs"]["soak"]["elapsed_s"] > 0


def test_a_run_that_fails_is_not_kept(make: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = make / "runs.json"
    (make / "soak").unlink()
    assert "make soak ended with exit code 1" in one_line_error_at_end(["soak", "--json", output], capsys)
    (make / "soak").write_text("no tests ran\n")
    assert "make soak says nothing of what was passed" in one_line_error_at_end(["soak", "--json", output], capsys)
    assert not output.exists()


def one_line_error_at_end(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert RECORD.main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]
