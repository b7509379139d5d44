"""What single layers of a model took on both sides, and the rates that follow; it measures nothing.

A step over some layers takes what a step over none does, and of each layer what `problem` says: the rates are those for
which that holds, so that only what differs between the layers measured and the others is left to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from powerinfer_py.placement.problem import Rates

# Two amounts nearer to each other than this tell noise, and no rate.
_LEAST_RATIO = 1.2
# Where the rows of a layer on the CPU seem to take more of its time than this, little is left to say of its block.
_MOST_ROWS = 0.9


@dataclass(frozen=True)
class LayerSample:
    """A layer within a step, in seconds, and the bytes of its neurons' rows that each side read, as `Problem.work`
    counts them."""

    seconds: float
    hot_bytes: float = 0.0
    cold_bytes: float = 0.0


@dataclass(frozen=True)
class LayerTimes:
    """step_s: a step on the device over no layer. product_bytes_per_s: a matrix as large as the head, None where there
    was no room for it. block_bytes: what a token reads of a layer's block. block_s: a layer on the device without its
    neurons. hot: with hot neurons, and nothing to do for the CPU. split: with cold ones, hot ones or none. host: wholly
    on the CPU. is_whole: whether a larger budget would have let no more be measured.
    """

    step_s: float
    product_bytes_per_s: float | None
    block_bytes: float
    block_s: float
    hot: tuple[LayerSample, ...]
    split: tuple[LayerSample, ...]
    host: LayerSample
    is_whole: bool = True


def rates_from(times: LayerTimes, source: str) -> Rates:
    """Rates by which layers take what they took."""
    gpu, layer_s = times.product_bytes_per_s, 0.0
    if gpu is not None:
        layer_s = times.block_s - times.block_bytes / gpu
    if gpu is None or layer_s < 0:
        gpu, layer_s = times.block_bytes / times.block_s, 0.0
    hot = [(sample.hot_bytes, sample.seconds - times.block_s) for sample in times.hot]
    rows_s, gpu_rows = _line(hot, gpu)
    synchronise_s, cpu_rows = _hand_over(
        times, lambda n_bytes: rows_s + n_bytes / (gpu_rows or gpu) if n_bytes else 0.0
    )
    host = times.host
    rows_on_cpu_s = 0.0 if cpu_rows is None else host.cold_bytes / cpu_rows
    if rows_on_cpu_s < _MOST_ROWS * host.seconds:
        cpu = times.block_bytes / (host.seconds - rows_on_cpu_s)
    else:
        cpu = (times.block_bytes + host.cold_bytes) / host.seconds
    return Rates(
        gpu_bytes_per_s=gpu,
        cpu_bytes_per_s=cpu,
        synchronise_s=synchronise_s,
        layer_s=layer_s,
        source=source,
        gpu_rows_bytes_per_s=gpu_rows,
        cpu_rows_bytes_per_s=cpu_rows,
        rows_s=rows_s,
        change_s=times.step_s / 2,
    )


def _hand_over(times: LayerTimes, hot_s: Callable[[float], float]) -> tuple[float, float | None]:
    """(seconds to hand over and back, bytes a second of cold rows). hot_s: of so many bytes of hot rows."""
    points = [(sample.cold_bytes, sample.seconds - times.block_s) for sample in times.split]
    synchronise_s, rate = _line(points, None)
    if rate is None:
        return synchronise_s, None
    least = min(times.split, key=lambda sample: sample.cold_bytes)
    beside_s = hot_s(least.hot_bytes)
    if least.cold_bytes / rate >= beside_s:
        return synchronise_s, rate
    # There the CPU is waited for no longer than the device takes, and what is left is handing over.
    synchronise_s = max(0.0, least.seconds - times.block_s - beside_s)
    most, most_s = max(points)
    return (synchronise_s, most / (most_s - synchronise_s)) if most_s > synchronise_s else (0.0, rate)


def _line(points: Sequence[tuple[float, float]], fastest: float | None) -> tuple[float, float | None]:
    """(seconds whatever is read, bytes a second) through points of (bytes, seconds), the largest among them.

    fastest: bytes a second that rows cannot exceed. None for a rate of which the points say nothing.
    """
    ordered = sorted((n_bytes, max(seconds, 0.0)) for n_bytes, seconds in points)
    if not ordered:
        return 0.0, None
    (least, least_s), (most, most_s) = ordered[0], ordered[-1]
    if most <= 0 or most_s <= 0:
        return most_s, None
    per_byte = (most_s - least_s) / (most - least) if most > _LEAST_RATIO * least else most_s / most
    if fastest is not None:
        per_byte = max(per_byte, 1 / fastest)
    if per_byte <= 0 or per_byte * most > most_s:
        # As slow as with the most bytes: of those there is most to tell.
        return 0.0, most / most_s
    return most_s - per_byte * most, 1 / per_byte
