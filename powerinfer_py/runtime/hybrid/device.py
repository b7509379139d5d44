"""What the hybrid executor asks of a device beside the CPU. Memory on it is handed out by `device_memory` alone.

Work is enqueued and done in order; what the host may read is known after `Mark.wait` or `synchronise`.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.placement.budget import DeviceMemory
from powerinfer_py.placement.problem import Rates
from powerinfer_py.placement.rates import LayerProbe
from powerinfer_py.runtime.hybrid.device_memory import AllocateTensor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PromptRates:
    """What decides where the cold part of a prompt is computed.

    stream_bytes_per_s: rows from the file to the device. cpu_products_per_s, device_products_per_s: (token, weight)
    products of an FFN. A stream or a device with a rate of 0 is not to be used, nor is a CPU where the others are not.
    """

    stream_bytes_per_s: float
    cpu_products_per_s: float
    device_products_per_s: float


@dataclass(frozen=True)
class Held:
    """What a process holds of a device besides what `Device.open` makes room for, before its kernels are loaded.

    growth_bytes: most that loading them is expected to add.
    """

    n_bytes: int
    growth_bytes: int


class Arrangement(StrEnum):
    """How a decode step is run: call by call, or captured, with the CPU's part as two host functions in the device's
    stream, as one in a stream of its own, or begun and awaited through flags in memory (`captured`)."""

    EAGER = "eager"
    TWO_NODES = "two-nodes"
    SIDE_STREAM = "side-stream"
    FLAGS = "flags"


class Mark(Protocol):
    """A point in the order of a device's work."""

    def wait(self) -> None:
        """Returns when everything enqueued before the mark is done. From any thread."""

    def seconds_since(self, earlier: Mark) -> float:
        """The device's time from one mark of its own to this one; both must have been reached."""


class Device(ABC):
    """One device. Its kernels take tensors that lie on it.

    arrangement: how its decode steps are run. busy_cores: of the CPU, which its driver keeps busy. host_bytes: of the
    host's memory, in buffers that are alive.
    """

    name: str
    arrangement: Arrangement
    busy_cores = 0
    host_bytes = 0

    @abstractmethod
    def memory(self) -> DeviceMemory:
        """Its memory as the driver reports it, before this process uses any."""

    @abstractmethod
    def rates(self, n_threads: int, free_bytes: int, layers: LayerProbe | None = None) -> Rates:
        """What it and the CPU with `n_threads` threads do, for the solver.

        free_bytes: what may be held on it meanwhile, besides the context; all of it is free again on return. layers:
        times those of the model at hand, by running them on the device.
        """

    @abstractmethod
    def prompt_rates(self, measure: Callable[[], PromptRates]) -> PromptRates:
        """What prompts run at: what `measure` finds by running on the device and the CPU, or what is stated."""

    @abstractmethod
    def context_bytes(self, warm_up: Callable[[Held], None]) -> int:
        """What the process holds on it besides what `open` makes room for: context, modules, the driver's own.

        warm_up: is given what the process holds so far; it loads and runs every kernel that the model needs, at its
        largest shape, in memory of the device that is free again when it returns. A device that has nothing to measure
        does not call it.
        """

    @abstractmethod
    def open(self, n_bytes: int) -> None:
        """Makes room for `n_bytes` in all, of which `allocate` then gives parts; what it gave before is void."""

    @abstractmethod
    def release(self) -> None:
        """Gives up what `open` made room for. Nothing of it may be in use any more."""

    @abstractmethod
    def allocate(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes) on the device, at a multiple of 256."""

    @abstractmethod
    def make_kernels(self, allocate: AllocateTensor) -> Kernels:
        """The device's kernels, whose results are in memory that `allocate` gives."""

    def host_buffer(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes) on the host, page-locked where copies need that to be asynchronous."""
        buffer = self._new_host_buffer(n_bytes)
        taken = self._taken_for(n_bytes)
        self.host_bytes += taken
        weakref.finalize(buffer.untyped_storage(), self._host_buffer_gone, taken)
        return buffer

    def _taken_for(self, n_bytes: int) -> int:
        """What a host buffer of `n_bytes` takes of the host's memory."""
        return n_bytes

    @abstractmethod
    def _new_host_buffer(self, n_bytes: int) -> Tensor:
        """What `host_buffer` gives."""

    def _host_buffer_gone(self, n_bytes: int) -> None:
        self.host_bytes -= n_bytes

    @abstractmethod
    def enqueuing(self) -> AbstractContextManager[object]:
        """Whoever makes the device work does so inside: its kernels' launches and torch's go to its own queue."""

    @abstractmethod
    def copy(self, target: Tensor, source: Tensor) -> None:
        """Enqueues a copy between any two places of the same shape and dtype, one of them a `host_buffer` or both not
        on the host."""

    @abstractmethod
    def mark(self) -> Mark:
        """A mark behind everything enqueued so far; inside `beside`, behind everything enqueued there."""

    @abstractmethod
    def wait_for(self, mark: Mark) -> None:
        """What is enqueued from now on is done only after the mark has been reached. The host does not wait."""

    @abstractmethod
    def launch(self, function: int, data: int) -> None:
        """Enqueues a call of the C function `void (*)(void*)` at address `function` on the host, with `data`."""

    @abstractmethod
    def raise_flag(self, flag: Tensor) -> None:
        """Enqueues writing 1 into a flag: int32 (1) in a `host_buffer`. Who sees it there sees what was copied to the
        host before."""

    @abstractmethod
    def await_flag(self, flag: Tensor) -> None:
        """Makes what is enqueued from now on wait until a flag is 1. The host does not wait."""

    @abstractmethod
    def beside(self, after: Mark | None = None) -> AbstractContextManager[None]:
        """Inside, work is enqueued behind what was enqueued before `after` (None: before now), and runs beside the
        rest, until `rejoin`."""

    @abstractmethod
    def rejoin(self) -> None:
        """Makes what is enqueued from now on wait for the work of the last `beside`."""

    @abstractmethod
    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """A function that enqueues at once all that `enqueue` enqueues, over the same memory.

        `enqueue` is called one or more times, allocates nothing, and must not wait for the device.
        """

    @abstractmethod
    def synchronise(self) -> None:
        """Waits for everything enqueued. Raises DeviceError where the device has failed."""

    def read(self, tensor: Tensor) -> Tensor:
        """A copy on the host, once everything enqueued is done."""
        self.synchronise()
        return tensor.to("cpu", copy=True)
