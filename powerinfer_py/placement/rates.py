"""How fast this machine runs a model's layers on either side: measured once, kept a machine, or given, or stated.

Not a benchmark: at most two seconds. With a model at hand it is its own layers that are timed (`LayerProbe`), and the
figures are kept for every model of such layers; without one it is memory being read and copied, which tells the ratio
of the two sides and no more. Invariant: figures that were not measured on the machine at hand, or not with the model's
layers, say so in `Rates.source`.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from powerinfer_py import env
from powerinfer_py.errors import OptionError, PowerInferError
from powerinfer_py.output_files import make_folder, write_bytes
from powerinfer_py.placement.layer_times import LayerTimes, rates_from
from powerinfer_py.placement.problem import Rates

# Of a consumer GPU where there is none to measure: 360 GB/s is what the memory of an RTX 3060 (12 GB) is sold with, of
# which sparse rows reach about four fifths.
ASSUMED_GPU_BYTES_PER_S = 288e9
ASSUMED_CPU_BYTES_PER_S = 40e9
# Handing work to a host thread and back through pinned memory, and launching the kernels of a layer from a graph.
ASSUMED_SYNCHRONISE_S = 20e-6
ASSUMED_LAYER_S = 20e-6
# A CUDA context with a few modules loaded.
ASSUMED_CONTEXT_BYTES = 400 << 20

CACHE_NAME = "rates.json"
# `Rates.source` where nothing was assumed but the time of launches, and where nothing was.
MEASURED = "measured"
MEASURED_WITH_LAYERS = "measured with layers like this model's"
_CPU_PROBE_BYTES = 256 << 20
_PROBE_S = 0.5
_MAX_CACHE_BYTES = 1 << 20


def given_rates(
    base: Rates,
    *,
    gpu_gb_per_s: float | None = None,
    cpu_gb_per_s: float | None = None,
    synchronise_us: float | None = None,
    layer_us: float | None = None,
    gpu_rows_gb_per_s: float | None = None,
    cpu_rows_gb_per_s: float | None = None,
    rows_us: float | None = None,
    change_us: float | None = None,
) -> Rates:
    """`base` with those figures replaced that are given, in 10^9 bytes a second and microseconds.

    The first four stand for the others too: a bandwidth for that of rows, `synchronise_us` for a change of side,
    `layer_us` for all kernels of a layer. Raises OptionError for a rate that is not finite and above 0, and for a time
    that is not finite and 0 or more.
    """
    whole = {"gpu_bytes_per_s": (gpu_gb_per_s, 1e9), "cpu_bytes_per_s": (cpu_gb_per_s, 1e9)}
    whole |= {"synchronise_s": (synchronise_us, 1e-6), "layer_s": (layer_us, 1e-6)}
    parts = {"gpu_rows_bytes_per_s": (gpu_rows_gb_per_s, 1e9), "cpu_rows_bytes_per_s": (cpu_rows_gb_per_s, 1e9)}
    parts |= {"change_s": (change_us, 1e-6), "rows_s": (rows_us, 1e-6)}
    given = {name: value * unit for name, (value, unit) in (whole | parts).items() if value is not None}
    for name, value in given.items():
        if not math.isfinite(value) or value < 0 or (value == 0 and name.endswith("per_s")):
            raise OptionError(f"a machine with {name} {value:g} cannot be")
    if not given:
        return base
    source = "given" if whole.keys() <= given.keys() else f"given in part; else {base.source}"
    changed: dict[str, Any] = {
        part: 0.0 if part == "rows_s" else None for name, part in zip(whole, parts, strict=True) if name in given
    }
    return replace(base, source=source, **{**changed, **given})


def assumed_rates() -> Rates:
    """A machine of which nothing was measured."""
    return Rates(ASSUMED_GPU_BYTES_PER_S, ASSUMED_CPU_BYTES_PER_S, ASSUMED_SYNCHRONISE_S, ASSUMED_LAYER_S, "assumed")


@dataclass(frozen=True)
class GpuProbe:
    """How a GPU is measured. name: of the GPU. measure: (bytes a second that it moves, seconds to change sides), or
    None where it was given too little of its memory for that.
    """

    name: str
    measure: Callable[[], tuple[float, float] | None]


@dataclass(frozen=True)
class LayerProbe:
    """How a model's layers are timed on both sides. kind: all that their times depend on besides GPU and CPU. measure:
    the times, or why there are none.
    """

    kind: str
    measure: Callable[[], LayerTimes | str]


def machine_rates(n_threads: int, gpu: GpuProbe | None = None, layers: LayerProbe | None = None) -> Rates:
    """The rates of this machine with `n_threads` CPU threads: from the user's cache folder, else measured and put
    there. gpu: None where there is none, or none that can be used; its figures are then those of the assumed one, as
    where it could not be measured, and `source` says so. layers: None where no model is at hand.
    """
    machine = f"{platform.machine()} {_cpu_name()} {n_threads} threads, {'no GPU' if gpu is None else gpu.name}"
    if gpu is None or layers is None:
        return _without_layers(machine, n_threads, gpu)
    key = f"{machine}, {layers.kind}"
    if (kept := _kept(key)) is not None:
        return kept
    found = _with_layers(layers, lambda rates: _keep(key, rates))
    if isinstance(found, Rates):
        return found
    rates = _without_layers(machine, n_threads, gpu)
    return replace(rates, source=f"{rates.source}, but not with layers like this model's: {found}")


def _with_layers(layers: LayerProbe, keep: Callable[[Rates], None]) -> Rates | str:
    """What is measured now, or why nothing could be. Kept is what a larger budget would not change."""
    try:
        times = layers.measure()
    except PowerInferError as error:
        return str(error)
    except MemoryError:
        return "the host has no memory for copies of layers"
    if isinstance(times, str):
        return times
    rates = rates_from(times, MEASURED_WITH_LAYERS)
    if not _is_sound(rates):
        return "their times make no sense"
    if times.is_whole:
        keep(rates)
    return rates


def _without_layers(key: str, n_threads: int, gpu: GpuProbe | None) -> Rates:
    if (kept := _kept(key)) is not None:
        return kept
    rates = measure(n_threads, gpu)
    if gpu is None or rates.source == MEASURED:
        _keep(key, rates)
    return rates


def _kept(key: str) -> Rates | None:
    return _rates_of(_read_cache(env.cache_folder() / CACHE_NAME).get(key))


def _keep(key: str, rates: Rates) -> None:
    path = env.cache_folder() / CACHE_NAME
    with suppress(PowerInferError):  # a cache that cannot be written costs a probe each time, and nothing else
        make_folder(path.parent)
        write_bytes(path, json.dumps({**_read_cache(path), key: rates.to_dict()}, indent=1).encode())


def measure(n_threads: int, gpu: GpuProbe | None) -> Rates:
    """Probes the machine, in at most two seconds."""
    cpu = cpu_bandwidth(n_threads)
    found = None if gpu is None else gpu.measure()
    if found is None:
        reason = "none here" if gpu is None else "the budget leaves too little to measure it with"
        source = f"CPU measured; GPU assumed: {reason}"
        return Rates(ASSUMED_GPU_BYTES_PER_S, cpu, ASSUMED_SYNCHRONISE_S, ASSUMED_LAYER_S, source)
    return Rates(found[0], cpu, found[1], ASSUMED_LAYER_S, MEASURED)


def cpu_bandwidth(n_threads: int, n_bytes: int = _CPU_PROBE_BYTES, seconds: float = _PROBE_S) -> float:
    """Bytes a second that so many threads read from memory: the best of several passes over `n_bytes`."""
    data = np.ones(n_bytes // 8, np.int64)
    parts: list[npt.NDArray[np.int64]] = np.array_split(data, n_threads)
    best, started = math.inf, perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        # numpy lets go of the interpreter's lock while it adds.
        while perf_counter() - started < seconds or math.isinf(best):
            begun = perf_counter()
            if sum(int(total) for total in pool.map(np.add.reduce, parts)) != data.size:
                raise AssertionError("the probe read something else than it wrote")
            best = min(best, perf_counter() - begun)
    return data.nbytes / best


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _read_cache(path: Path) -> dict[str, Any]:
    """What the cache holds; nothing where it is absent or no such file."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_CACHE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _rates_of(value: object) -> Rates | None:
    if not isinstance(value, dict):
        return None
    try:
        rates = Rates(**value)
    except TypeError:
        return None
    return rates if _is_sound(rates) else None


def _is_sound(rates: Rates) -> bool:
    """Whether such a machine can be."""
    speeds = (rates.gpu_bytes_per_s, rates.cpu_bytes_per_s, rates.gpu_rows, rates.cpu_rows)
    numbers = (*speeds, rates.synchronise_s, rates.layer_s, rates.rows_s, rates.change)
    sound = all(isinstance(number, float) and math.isfinite(number) and number >= 0 for number in numbers)
    return sound and min(speeds) > 0 and isinstance(rates.source, str)
