"""The only reader of environment variables. Nothing else in the package looks at `os.environ`.

| variable | meaning |
|---|---|
| `CC` | the C compiler that Triton runs, as it reads the variable itself |
| `LLAMA_SPARSE_PRED_THRESHOLD` | overrides the file's `powerinfer.sparse_threshold` (PowerInfer's own name) |
| `POWERINFER_ISA` | `scalar`, `avx2`, `avx512` or `avx512vnni`: forces one instruction set of the native kernels |
| `POWERINFER_KERNELS` | `native` (default) or `torch`: which implementation of the CPU kernels runs |
| `POWERINFER_STEP` | `two-nodes` (default), `side-stream`, `flags` or `eager`: how decode steps run on a GPU |
| `XDG_CACHE_HOME` | where the user's cache folder is, `~/.cache` where it is not set |
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from powerinfer_py.errors import OptionError

ISA_NAMES = ("scalar", "avx2", "avx512", "avx512vnni")
KERNEL_NAMES = ("native", "torch")
STEP_NAMES = ("two-nodes", "side-stream", "flags", "eager")


def sparse_threshold_override() -> float | None:
    """Value of `LLAMA_SPARSE_PRED_THRESHOLD`, or None where it is not set. OptionError unless a finite number."""
    text = os.environ.get("LLAMA_SPARSE_PRED_THRESHOLD")
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise OptionError(f"LLAMA_SPARSE_PRED_THRESHOLD must be a finite number, not {text!r}")
    return value


def c_compiler() -> str | None:
    """Value of `CC`, or None where it is not set."""
    return os.environ.get("CC") or None


def forced_isa() -> str | None:
    """Value of `POWERINFER_ISA`, or None where it is not set. Raises OptionError for a name outside `ISA_NAMES`."""
    return _choice("POWERINFER_ISA", ISA_NAMES)


def forced_kernels() -> str | None:
    """Value of `POWERINFER_KERNELS`, or None where it is not set. Raises OptionError outside `KERNEL_NAMES`."""
    return _choice("POWERINFER_KERNELS", KERNEL_NAMES)


def forced_step() -> str | None:
    """Value of `POWERINFER_STEP`, or None where it is not set. Raises OptionError for a name outside `STEP_NAMES`."""
    return _choice("POWERINFER_STEP", STEP_NAMES)


def cache_folder() -> Path:
    """This package's folder in the user's cache folder; it need not exist. A relative XDG_CACHE_HOME is ignored."""
    value = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(value) if value.startswith("/") else Path("~/.cache").expanduser()
    return base / "powerinfer-py"


def _choice(name: str, allowed: tuple[str, ...]) -> str | None:
    value = os.environ.get(name)
    if value is None or value == "":
        return None
    if value not in allowed:
        raise OptionError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    return value
