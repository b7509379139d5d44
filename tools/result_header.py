"""What stands at the head of every result file: machine, versions, commit, date and command of a measurement.

Not a measurement itself. Every tool that writes a JSON file into a folder `results` puts `header` before its figures;
tests/documents/test_result_files.py holds each file against `REQUIRED`. Nothing in it tells where on the machine files
lie: of an absolute path the last component stays.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from powerinfer_py import __version__
from powerinfer_py.cli.inspect.system import cpu_model

ROOT = Path(__file__).parent.parent
# Keys of a header, and of its parts.
REQUIRED: dict[str, tuple[str, ...]] = {
    "machine": ("cpu", "cpu_signature", "instruction_sets", "logical_cores", "ram_bytes", "gpus", "system"),
    "versions": ("powerinfer-py", "python", "torch", "numpy", "triton"),
    "commit": (),
    "date": (),
    "command": (),
}
# What a measurement may depend on. Documents and results change while results are written.
CODE = ("powerinfer_py", "predictors", "profiling", "tools", "tests", "pyproject.toml", "constraints.txt")
NOT_CODE = (":(exclude)*.md", ":(exclude)*/results/*")


def header(script: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """The keys of REQUIRED. script: the tool's path in the checkout; argv: its arguments; None: the process's."""
    arguments = sys.argv[1:] if argv is None else argv
    return {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [script, *map(without_folders, arguments)],
    }


def machine() -> dict[str, Any]:
    """CPU, cores, bytes of memory, GPUs (an empty list where there are none) and system.

    instruction_sets: those of the native kernels that this CPU can run, best last.
    """
    return {
        "cpu": cpu_model(),
        "cpu_signature": cpu_signature(),
        "instruction_sets": instruction_sets(),
        "logical_cores": os.cpu_count(),
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus(),
        "system": platform.platform(),
    }


def cpu_signature() -> str:
    """Family and model of an x86-64 CPU; in virtual machines one name stands for many generations."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return f"family {fields.get('cpu family', 'unknown')}, model {fields.get('model', 'unknown')}"


def instruction_sets() -> list[str]:
    """Empty where the extension was not compiled."""
    try:
        from powerinfer_py import _native
    except ImportError:
        return []
    return list(_native.available_isas())


def gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU; empty where the driver's tool finds none or does not exist."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def versions() -> dict[str, str | None]:
    """Of this package, Python and what the kernels stand on; None for what is not installed."""
    found: dict[str, str | None] = {"powerinfer-py": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit(root: Path = ROOT) -> str | None:
    """The checkout's commit, with `-dirty` where code differs from it; None where there is no checkout."""
    head = _git(root, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    present = [name for name in CODE if (root / name).exists()]
    changed = _git(root, "status", "--porcelain", "--", *present, *NOT_CODE)
    return f"{head}-dirty" if changed else head


def without_folders(argument: str) -> str:
    """The argument; of an absolute path, behind an equals sign too, the last component alone."""
    name, equals, value = argument.partition("=")
    if equals and value.startswith("/"):
        return f"{name}={Path(value).name}"
    return Path(argument).name if argument.startswith("/") else argument


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, None where it fails or does not exist."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
