"""The machine as this package sees it: processors, kernels, memory, devices, versions.

Invariant: nothing that is wrong with the machine ends the command; it is part of what is described.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from powerinfer_py.errors import PowerInferError
from powerinfer_py.kernels import fallback_notices, make_kernels, native_extension
from powerinfer_py.runtime.host_memory import available_bytes
from powerinfer_py.runtime.threads import find_processors


@dataclass(frozen=True)
class ProcessorReport:
    """model: the name the CPU gives itself. logical, physical: of the machine; None where hidden. The rest is what this
    process may use, see `runtime.threads.Processors`; threads: what runs by default.
    """

    model: str
    machine: str
    logical: int | None
    physical: int | None
    usable_logical: int
    usable_cores: int
    performance_cores: int
    quota: float | None
    threads: int


@dataclass(frozen=True)
class KernelReport:
    """extension: whether the native extension loads; problem: why nothing would run, or why not what is usual.

    instruction_sets: those of the extension that this CPU can run, best last. running: `torch`, one of them, or None
    where nothing would run.
    """

    extension: bool
    instruction_sets: list[str]
    running: str | None
    problem: str | None


@dataclass(frozen=True)
class DeviceReport:
    """A CUDA device. n_bytes: its memory."""

    name: str
    n_bytes: int


@dataclass(frozen=True)
class SystemReport:
    """Everything `powerinfer-inspect --system` shows; memory in bytes."""

    processor: ProcessorReport
    kernels: KernelReport
    memory_total_bytes: int
    memory_available_bytes: int
    devices: list[DeviceReport]
    versions: dict[str, str]


def inspect_system() -> SystemReport:
    """Looks at the machine. Takes the seconds that importing torch takes."""
    memory = psutil.virtual_memory()
    return SystemReport(
        processor=_processor(),
        kernels=inspect_kernels(),
        memory_total_bytes=int(memory.total),
        memory_available_bytes=available_bytes(),
        devices=_devices(),
        versions=_versions(),
    )


def inspect_kernels() -> KernelReport:
    """Which kernels would run now, `POWERINFER_KERNELS` and `POWERINFER_ISA` included."""
    extension = None
    try:
        extension = native_extension()
        instruction_sets = [] if extension is None else list(extension.available_isas())
        kernels = make_kernels(1)
    except PowerInferError as error:
        sets = [] if extension is None else list(extension.available_isas())
        return KernelReport(extension is not None, sets, None, str(error))
    running: str = getattr(kernels, "isa", kernels.name)
    problem = next(iter(fallback_notices(kernels)), None)
    if running == "scalar" == instruction_sets[-1]:
        problem = scalar_problem(platform.machine())
    return KernelReport(extension is not None, instruction_sets, running, problem)


def scalar_problem(machine: str) -> str:
    """Why the best there is on a `machine` is scalar code."""
    if machine.lower() in ("x86_64", "amd64"):
        return "this CPU lacks AVX2, FMA or F16C: the scalar kernels run, several times slower than vector code"
    return f"there are no vector kernels for {machine}: the scalar kernels run, several times slower than vector code"


def cpu_model(root: Path = Path("/")) -> str:
    """The CPU's own name. root: where the tree `proc` hangs."""
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return platform.processor() or "unknown"


def _processor() -> ProcessorReport:
    usable = find_processors()
    return ProcessorReport(
        model=cpu_model(),
        machine=platform.machine(),
        logical=psutil.cpu_count(),
        physical=psutil.cpu_count(logical=False),
        usable_logical=usable.logical,
        usable_cores=usable.cores,
        performance_cores=usable.performance_cores,
        quota=usable.quota,
        threads=usable.threads,
    )


def _devices() -> list[DeviceReport]:
    import torch

    devices = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        devices.append(DeviceReport(str(properties.name), int(properties.total_memory)))
    return devices


def _versions() -> dict[str, str]:
    import torch

    from powerinfer_py import __version__

    return {
        "powerinfer-py": __version__,
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": version("numpy"),
    }
