"""Which kernels run: what is asked for by name or by variable, or an error that says what was tried."""

from __future__ import annotations

import subprocess
import sys

import pytest

from powerinfer_py import _native
from powerinfer_py.errors import DeviceError, OptionError
from powerinfer_py.kernels import make_kernels
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.reference import ReferenceKernels


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POWERINFER_KERNELS", raising=False)
    monkeypatch.delenv("POWERINFER_ISA", raising=False)


def test_native_with_the_best_instruction_set_by_default() -> None:
    kernels = make_kernels(2)
    assert isinstance(kernels, NativeKernels)
    assert (kernels.isa, kernels.threads) == (_native.available_isas()[-1], 2)


def test_variables_decide_and_arguments_override_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERINFER_ISA", "scalar")
    kernels = make_kernels(1)
    assert isinstance(kernels, NativeKernels)
    assert kernels.isa == "scalar"
    monkeypatch.setenv("POWERINFER_KERNELS", "torch")
    assert isinstance(make_kernels(1), ReferenceKernels)
    assert isinstance(make_kernels(1, name="native"), NativeKernels)


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


def test_a_missing_extension_is_an_error_that_names_the_way_out() -> None:
    code = (
        "import sys; sys.modules['powerinfer_py._native'] = None\n"
        "from powerinfer_py.errors import DeviceError\n"
        "from powerinfer_py.kernels import make_kernels\n"
        "try: make_kernels(1)\n"
        "except DeviceError as error: print(error)\n"
        "print(make_kernels(1, name='torch').name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "POWERINFER_KERNELS=torch" in done.stdout
    assert done.stdout.endswith("torch\n")


def test_choosing_is_cheap_to_import() -> None:
    code = "import sys; import powerinfer_py.kernels; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
