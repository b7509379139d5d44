"""Which implementation of the CPU kernels runs. What was asked for runs, or an error says what was tried.

Where nothing was asked for and the package was installed without its native extension, the torch kernels run, and
`fallback_notices` says so. An extension that is there but cannot be loaded is an error, never a reason to be slow.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from powerinfer_py import env
from powerinfer_py.errors import DeviceError, OptionError
from powerinfer_py.kernels.interface import Kernels

_EXTENSION = "powerinfer_py._native"
_REMEDY = "install a compiler, then the package again (pip install --force-reinstall --no-cache-dir)"
_NOTICE = (
    "the package was installed without its native kernels, which need a C++20 compiler: slower torch kernels run, "
    f"-t/--threads has no effect, and a token's last digits may depend on its batch; {_REMEDY}"
)


def make_kernels(threads: int, *, name: str | None = None, isa: str | None = None) -> Kernels:
    """CPU kernels with `threads` threads of their own.

    name: `native` or `torch`; None for `POWERINFER_KERNELS`, else native where the extension was built, else torch.
    isa: one of `env.ISA_NAMES`; None for `POWERINFER_ISA`, else the best this CPU has. The torch kernels do not look at
    it, but an instruction set that was asked for needs the extension.
    Raises OptionError for other values and DeviceError where the choice cannot run here.
    """
    name = name or env.forced_kernels()
    isa = isa or env.forced_isa()
    if name is not None and name not in env.KERNEL_NAMES:
        raise OptionError(f"kernels must be one of {', '.join(env.KERNEL_NAMES)}, not {name!r}")
    if isa is not None and isa not in env.ISA_NAMES:
        raise OptionError(f"the instruction set must be one of {', '.join(env.ISA_NAMES)}, not {isa!r}")
    if name == "torch":
        return _reference(None)
    if native_extension() is None:
        if name is None and isa is None:
            return _reference(_NOTICE)
        raise DeviceError(
            f"the native kernels cannot run: the package was installed without them; {_REMEDY}, "
            "or set POWERINFER_KERNELS=torch for the slow ones"
        )
    return _native(threads, isa)


def native_extension() -> ModuleType | None:
    """The extension module, or None where the package was installed without it. DeviceError where it does not load."""
    try:
        return import_module(_EXTENSION)
    except ModuleNotFoundError as error:
        if error.name == _EXTENSION:
            return None
        raise _broken(error) from error
    except ImportError as error:
        raise _broken(error) from error


def fallback_notices(kernels: Kernels) -> list[str]:
    """What the user is to be told of kernels that run because the native ones are missing."""
    from powerinfer_py.kernels.reference import ReferenceKernels

    return [kernels.notice] if isinstance(kernels, ReferenceKernels) and kernels.notice is not None else []


def _broken(error: ImportError) -> DeviceError:
    return DeviceError(
        f"the native kernels cannot be loaded ({error}); reinstall the package, or set POWERINFER_KERNELS=torch for "
        "the slow ones"
    )


def _reference(notice: str | None) -> Kernels:
    from powerinfer_py.kernels.reference import ReferenceKernels

    return ReferenceKernels(notice)


def _native(threads: int, isa: str | None) -> Kernels:
    from powerinfer_py.kernels.cpu import NativeKernels

    try:
        return NativeKernels(threads, isa)
    except ValueError as error:
        raise DeviceError(str(error)) from error
    except RuntimeError as error:
        raise DeviceError(f"{threads} threads cannot be started: {error}") from error
