"""Whether Triton's kernels can run on this machine's GPU, found out at start and told in one line.

Triton compiles kernels when they are first launched, and a small launcher beside each, for which it runs a C compiler.
"""

from __future__ import annotations

import shutil
import sysconfig
from importlib.util import find_spec

from powerinfer_py import env


def missing_requirement() -> str | None:
    """One line that says what is missing, or None. Imports neither Triton nor torch."""
    if find_spec("triton") is None:
        return "the GPU kernels need Triton, which is not installed: pip install triton"
    if not _c_compiler():
        return (
            "the GPU kernels need a C compiler when they are first run, and none was found: install gcc or clang, "
            "or set CC to one"
        )
    return None


def _c_compiler() -> str | None:
    """The compiler Triton would run: `CC`, or else gcc, clang or the one Python was built with."""
    chosen = env.c_compiler()
    names = [chosen] if chosen else ["gcc", "clang", (sysconfig.get_config_var("CC") or "cc").split()[0]]
    return next((path for name in names if (path := shutil.which(name)) is not None), None)
