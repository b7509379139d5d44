"""A wheel holds the package alone, and runs in a fresh environment on a machine without a compiler.

`make wheel` runs this with --wheel FILE on the wheel that it made; else one is built here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++")
GREEDY = ("-p", "My dear sister", "-n", "12", "--temp", "0", "-t", "1")

# Compiling every instruction set takes minutes on a slow machine.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("--wheel")
    if given is not None:
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    # A build folder of its own: the checkout's belongs to the installed extension.
    command += ["-C", f"build-dir={folder / 'build'}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PIP_NO_INDEX": "1"})
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_it_holds_the_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"powerinfer_py"}
    assert any(name.startswith("powerinfer_py/_native") and name.endswith(".so") for name in names)
    assert "powerinfer_py/_native.pyi" in names
    assert "powerinfer_py/py.typed" in names
    assert not any(name.startswith("powerinfer_py/csrc") for name in names)


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; what it depends on is found in this one, where nothing is looked for first."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *_site_folders()}
    # Lines of a .pth file come after the environment's own folder, and .pth files in the folders named are not read.
    (Path(own.stdout.strip()) / "dependencies.pth").write_text("\n".join(sorted(dependencies)) + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def _site_folders() -> list[str]:
    return [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]


def run(folder: Path, name: str, *arguments: str, cwd: Path) -> str:
    """What a command of the environment prints, where nothing but the environment's programs can be found."""
    assert not [name for name in COMPILERS if shutil.which(name, path=str(folder))]
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [folder / name, *arguments], capture_output=True, text=True, cwd=cwd, env={**kept, "PATH": str(folder)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_what_runs_and_its_native_kernels_too(fresh: Path, tmp_path: Path) -> None:
    code = "import powerinfer_py, powerinfer_py._native as n; print(powerinfer_py.__file__); print(n.__file__)"
    for file in run(fresh, "python", "-c", code, cwd=tmp_path).split():
        assert Path(file).is_relative_to(fresh.parent)
    report = json.loads(run(fresh, "powerinfer-inspect", "--system", "--json", cwd=tmp_path))
    assert report["kernels"]["extension"] is True
    assert report["kernels"]["running"] not in ("torch", None)


def test_the_model_in_the_box_says_what_it_says_here(fresh: Path, tmp_path: Path) -> None:
    ours = subprocess.run(
        [sys.executable, "-m", "powerinfer_py.cli.run", *GREEDY], capture_output=True, text=True, check=True, cwd=ROOT
    )
    text = run(fresh, "powerinfer-run", *GREEDY, cwd=tmp_path)
    assert len(text.split()) > 8
    assert text == ours.stdout
