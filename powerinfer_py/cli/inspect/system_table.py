"""A `SystemReport` as a table for a terminal."""

from __future__ import annotations

from rich.console import Console

from powerinfer_py.cli.inspect.system import KernelReport, ProcessorReport, SystemReport
from powerinfer_py.cli.tables import key_value_table, make_console, size_text


def print_system(report: SystemReport) -> None:
    """Prints to stdout."""
    console: Console = make_console()
    console.print(key_value_table(system_rows(report)))


def system_rows(report: SystemReport) -> list[tuple[str, str]]:
    """What is shown, a name and a text each."""
    memory = f"{size_text(report.memory_available_bytes)} available of {size_text(report.memory_total_bytes)}"
    rows = _processor_rows(report.processor) + _kernel_rows(report.kernels) + [("memory", memory)]
    if not report.devices:
        rows.append(("CUDA devices", "none: everything runs on the CPU"))
    for number, device in enumerate(report.devices):
        rows.append((f"CUDA device {number}", f"{device.name}, {size_text(device.n_bytes)} (not used by this version)"))
    return rows + list(report.versions.items())


def _processor_rows(processor: ProcessorReport) -> list[tuple[str, str]]:
    cores = f"{_known(processor.physical)} physical, {_known(processor.logical)} logical"
    usable = f"{processor.usable_cores} physical, {processor.usable_logical} logical"
    if processor.performance_cores != processor.usable_cores:
        usable += f"; {processor.performance_cores} performance cores"
    if processor.quota is not None:
        usable += f"; a quota of {processor.quota:g} processors"
    return [
        ("CPU", f"{processor.model} ({processor.machine})"),
        ("cores", cores),
        ("usable here", usable),
        ("default threads", str(processor.threads)),
    ]


def _kernel_rows(kernels: KernelReport) -> list[tuple[str, str]]:
    rows = [("native kernels", ", ".join(kernels.instruction_sets) if kernels.extension else "not available")]
    rows.append(("running", kernels.running or "nothing"))
    if kernels.problem is not None:
        rows.append(("note" if kernels.running else "error", kernels.problem))
    return rows


def _known(count: int | None) -> str:
    return "unknown" if count is None else str(count)
