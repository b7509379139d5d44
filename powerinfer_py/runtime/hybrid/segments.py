"""A model's layers as stretches on one side each: what runs between two copies of the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from powerinfer_py.runtime.hybrid.layers import DeviceLayer, Head, HostLayer


@dataclass(frozen=True, eq=False)
class Segment:
    """Layers of one side, by the engine's own numbers, and the head where it follows on the same side."""

    on_device: bool
    layers: tuple[tuple[int, DeviceLayer | HostLayer], ...]
    head: Head | None = None


def segments_of(layers: Sequence[DeviceLayer | HostLayer], head: Head | None) -> tuple[Segment, ...]:
    """The stretches in order; the head is a stretch of its own where it is on the other side than the last layer."""
    groups = groupby(enumerate(layers), key=lambda numbered: isinstance(numbered[1], DeviceLayer))
    segments = [Segment(on_device, tuple(numbered)) for on_device, numbered in groups]
    if head is None:
        return tuple(segments)
    last = segments[-1]
    if last.on_device == head.on_device:
        return (*segments[:-1], Segment(last.on_device, last.layers, head))
    return (*segments, Segment(head.on_device, (), head))
