"""Which implementation of the CPU kernels runs. What was asked for runs, or an error says what was tried."""

from __future__ import annotations

from powerinfer_py import env
from powerinfer_py.errors import DeviceError, OptionError
from powerinfer_py.kernels.interface import Kernels


def make_kernels(threads: int, *, name: str | None = None, isa: str | None = None) -> Kernels:
    """CPU kernels with `threads` threads of their own.

    name: `native` or `torch`; None for `POWERINFER_KERNELS`, else native. isa: `scalar`, `avx2` or `avx512`; None for
    `POWERINFER_ISA`, else the best this CPU has (only the native kernels look at it).
    Raises OptionError for other values and DeviceError where the choice cannot run here.
    """
    name = name or env.forced_kernels() or "native"
    isa = isa or env.forced_isa()
    if name not in env.KERNEL_NAMES:
        raise OptionError(f"kernels must be one of {', '.join(env.KERNEL_NAMES)}, not {name!r}")
    if isa is not None and isa not in env.ISA_NAMES:
        raise OptionError(f"the instruction set must be one of {', '.join(env.ISA_NAMES)}, not {isa!r}")
    return _reference() if name == "torch" else _native(threads, isa)


def _reference() -> Kernels:
    from powerinfer_py.kernels.reference import ReferenceKernels

    return ReferenceKernels()


def _native(threads: int, isa: str | None) -> Kernels:
    try:
        from powerinfer_py.kernels.cpu import NativeKernels
    except ImportError as error:
        raise DeviceError(
            f"the native kernels cannot be loaded ({error}); reinstall the package with a C++ compiler present, "
            "or set POWERINFER_KERNELS=torch for the slow ones"
        ) from error
    try:
        return NativeKernels(threads, isa)
    except ValueError as error:
        raise DeviceError(str(error)) from error
