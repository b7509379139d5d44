"""Which kernels run: what is asked for by name or by variable, or an error that says what was tried."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from powerinfer_py import _native
from powerinfer_py.errors import DeviceError, OptionError
from powerinfer_py.kernels import fallback_notices, make_kernels, native_extension
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.reference import ReferenceKernels

# A package whose extension was never built, as importing sees it.
WITHOUT_EXTENSION = """\
import sys
sys.modules['powerinfer_py._native'] = None
from powerinfer_py.errors import DeviceError
from powerinfer_py.kernels import fallback_notices, make_kernels, native_extension
"""


def run(code: str, **variables: str) -> str:
    """What a process of its own prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POWERINFER_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment | variables
    )
    assert not done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POWERINFER_KERNELS", raising=False)
    monkeypatch.delenv("POWERINFER_ISA", raising=False)


def test_native_with_the_best_instruction_set_by_default() -> None:
    kernels = make_kernels(2)
    assert isinstance(kernels, NativeKernels)
    assert (kernels.isa, kernels.threads) == (_native.available_isas()[-1], 2)
    assert fallback_notices(kernels) == []


def test_variables_decide_and_arguments_override_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERINFER_ISA", "scalar")
    kernels = make_kernels(1)
    assert isinstance(kernels, NativeKernels)
    assert kernels.isa == "scalar"
    monkeypatch.setenv("POWERINFER_KERNELS", "torch")
    assert isinstance(make_kernels(1), ReferenceKernels)
    assert isinstance(make_kernels(1, name="native"), NativeKernels)


def test_torch_kernels_that_were_asked_for_need_no_notice() -> None:
    assert fallback_notices(make_kernels(1, name="torch")) == []


def test_names_that_do_not_exist_are_refused() -> None:
    with pytest.raises(OptionError, match="cuda"):
        make_kernels(1, name="cuda")
    with pytest.raises(OptionError, match="sse9"):
        make_kernels(1, isa="sse9")


def test_an_instruction_set_this_cpu_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(isa: str | None, threads: int) -> None:
        raise ValueError(f"this CPU cannot run the kernels for '{isa}', only: scalar ({threads})")

    monkeypatch.setattr(_native, "CpuKernels", lacking)
    with pytest.raises(DeviceError, match="'avx512', only: scalar"):
        make_kernels(1, isa="avx512")


def test_without_the_extension_torch_runs_and_says_so() -> None:
    assert native_extension() is _native
    code = (
        "print(native_extension())\nkernels = make_kernels(1)\nprint(kernels.name)\nprint(*fallback_notices(kernels))\n"
    )
    extension, name, notice = run(WITHOUT_EXTENSION + code).splitlines()
    assert (extension, name) == ("None", "torch")
    assert "compiler" in notice
    assert "slower" in notice


@pytest.mark.parametrize("variables", [{"POWERINFER_KERNELS": "native"}, {"POWERINFER_ISA": "scalar"}])
def test_without_the_extension_asking_for_it_is_an_error_that_names_the_way_out(variables: dict[str, str]) -> None:
    code = "try: make_kernels(1)\nexcept DeviceError as error: print(error)\nprint(make_kernels(1, name='torch').name)"
    error, name = run(WITHOUT_EXTENSION + code, **variables).splitlines()
    assert "compiler" in error
    assert "POWERINFER_KERNELS=torch" in error
    assert name == "torch"


@pytest.mark.parametrize(
    "extension",
    [
        "raise ImportError('libstdc++.so.6: version `GLIBCXX_3.4.99` not found')",
        "import a_module_that_is_not_there",
    ],
)
def test_a_broken_extension_is_an_error_and_no_reason_to_be_slow(tmp_path: Path, extension: str) -> None:
    (tmp_path / "broken.py").write_text(extension, encoding="utf-8")
    code = f"""\
import sys
from importlib.util import spec_from_file_location
class Finder:
    def find_spec(self, name, path, target=None):
        if name == 'powerinfer_py._native':
            return spec_from_file_location(name, {str(tmp_path / "broken.py")!r})
sys.meta_path.insert(0, Finder())
from powerinfer_py.errors import DeviceError
from powerinfer_py.kernels import make_kernels
try: make_kernels(1)
except DeviceError as error: print(error)
"""
    (error,) = run(code).splitlines()
    assert "cannot be loaded" in error
    assert "GLIBCXX_3.4.99" in error or "a_module_that_is_not_there" in error


def test_choosing_is_cheap_to_import() -> None:
    assert run("import sys; import powerinfer_py.kernels; print('torch' in sys.modules)") == "False\n"
