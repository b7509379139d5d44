"""Without a working compiler a wheel is built all the same, of Python alone; or not at all, where that is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build_wheel(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    command += ["-C", f"build-dir={folder / 'build'}", str(ROOT)]
    environment = os.environ | {"PIP_NO_INDEX": "1", "CXX": "false"} | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_wheel_of_python_alone(tmp_path: Path) -> None:
    done = build_wheel(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")]
    assert "powerinfer_py/kernels/reference.py" in names
    assert "WITHOUT its native kernels" in done.stdout + done.stderr


def test_an_error_where_native_kernels_are_required(tmp_path: Path) -> None:
    done = build_wheel(tmp_path, POWERINFER_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert not list(tmp_path.glob("*.whl"))
