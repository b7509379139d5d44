"""What is missing for the GPU kernels is told in one line, before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from powerinfer_py.kernels.triton import availability
from powerinfer_py.kernels.triton.availability import missing_requirement


def compiler(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_compiler_on_the_path_suffices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path, "clang")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert missing_requirement() is None


def test_no_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("sysconfig.get_config_var", lambda _: "cc -pthread")
    line = missing_requirement()
    assert line is not None
    assert "C compiler" in line
    assert "\n" not in line
    compiler(tmp_path, "cc")
    assert missing_requirement() is None


def test_cc_is_what_counts_where_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path, "gcc")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert missing_requirement() is not None
    monkeypatch.setenv("CC", str(compiler(tmp_path, "mycc")))
    assert missing_requirement() is None


def test_missing_triton_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "find_spec", lambda _: None)
    assert missing_requirement() == "the GPU kernels need Triton, which is not installed: pip install triton"


def test_asking_imports_neither_torch_nor_triton() -> None:
    code = (
        "import sys; from powerinfer_py.kernels.triton.availability import missing_requirement; missing_requirement();"
        "print('torch' in sys.modules or 'triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
