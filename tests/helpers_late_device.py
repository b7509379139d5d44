"""A device with two streams that does nothing before somebody waits for it, and then no more than that needs.

So whatever is not waited for happens too late: a copy after its source was overwritten, or after its result was used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from powerinfer_py.kernels.blocks import FeedForwardBlock
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.runtime.hybrid.device_memory import Workspace


@dataclass(frozen=True)
class LateMark:
    device: LateDevice
    stream: str
    place: int

    def reach(self) -> None:
        self.device.run(self.stream, self.place)

    def wait(self) -> None:
        if self.device.without != "host":
            self.reach()


class LateDevice:
    """without: which wait it forgets: the "host"'s for a mark or for everything, the "side" stream's, or the "main"
    stream's. buffers: all those of the host."""

    def __init__(self, without: str | None = None) -> None:
        self.without = without
        self.calls: dict[str, list[Callable[[], Any]]] = {"main": [], "side": []}
        self.done = {"main": 0, "side": 0}
        self.current = "main"
        self.buffers: list[Tensor] = []

    def enqueue(self, call: Callable[[], Any]) -> None:
        self.calls[self.current].append(call)

    def run(self, stream: str, end: int) -> None:
        while self.done[stream] < end:
            self.done[stream] += 1
            self.calls[stream][self.done[stream] - 1]()

    def finish(self) -> None:
        for stream in ("main", "side"):
            self.run(stream, len(self.calls[stream]))

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.enqueue(lambda: target.copy_(source))

    def host_buffer(self, n_bytes: int) -> Tensor:
        self.buffers.append(torch.full((n_bytes,), 255, dtype=torch.uint8))
        return self.buffers[-1]

    def synchronise(self) -> None:
        if self.without != "host":
            self.finish()

    def mark(self) -> LateMark:
        return LateMark(self, self.current, len(self.calls[self.current]))

    def wait_for(self, mark: LateMark) -> None:
        if self.without != "main":
            self.enqueue(mark.reach)

    @contextmanager
    def beside(self, after: LateMark | None = None) -> Iterator[None]:
        mark = after or self.mark()
        self.current = "side"
        if self.without != "side":
            self.enqueue(mark.reach)
        yield
        self.current = "main"


class LateKernels:
    """Some of the operations, whose results are there when the device has come to them."""

    def __init__(self, kernels: Kernels, device: LateDevice, workspace: Workspace) -> None:
        self._kernels = kernels
        self._device = device
        self._workspace = workspace
        self.fill_rows = kernels.fill_rows
        self.filled_matrix = kernels.filled_matrix
        self.prepare_feed_forward = kernels.prepare_feed_forward

    def feed_forward_part(self, block: FeedForwardBlock, h: Tensor, mask: Tensor | None, **_: Any) -> Any:
        y = self._workspace.take(4 * h.numel()).view(h.dtype).view(h.shape)
        self._device.enqueue(lambda: y.copy_(self._kernels.feed_forward_part(block, h, mask).y))
        return SimpleNamespace(y=y)


class LateSum:
    """A tensor that is added to when the device has come to that."""

    def __init__(self, device: LateDevice, values: Tensor) -> None:
        self._device = device
        self.values = values

    def add_(self, other: Tensor) -> None:
        self._device.enqueue(lambda: self.values.add_(other))
