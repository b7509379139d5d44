"""The native test program builds without a warning and passes; `make sanitize` runs it under sanitizers as well."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from powerinfer_py import _native

ROOT = Path(__file__).parents[2]
# Kept between runs: only what has changed is compiled again.
BUILD = ROOT / "build" / "native-plain"


def tool(name: str) -> str:
    """A build tool of this environment, else of the system."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def program() -> Path:
    options = ["-DPOWERINFER_NATIVE_TESTS=ON", "-DPOWERINFER_WERROR=ON", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    run(tool("cmake"), "-S", ROOT / "powerinfer_py" / "csrc", "-B", BUILD, "-G", "Ninja", *options)
    run(tool("cmake"), "--build", BUILD)
    return BUILD / "kernels_test"


def test_every_operation_for_any_number_of_threads_and_callers(program: Path) -> None:
    lines = run(program).splitlines()
    assert lines == [f"{isa}: 13 weight types" for isa in _native.available_isas()]


def test_random_shapes_index_lists_and_alignments(program: Path) -> None:
    lines = run(program.with_name("kernels_fuzz"), "40").splitlines()
    assert lines == [f"{isa}: 40 rounds" for isa in _native.available_isas()]


def test_a_weight_type_that_does_not_exist_is_refused(program: Path) -> None:
    done = subprocess.run([program, "Q9_9"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no such weight type" in done.stderr
