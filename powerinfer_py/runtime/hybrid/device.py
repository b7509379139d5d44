"""What the hybrid executor asks of a device beside the CPU. Memory on it is handed out by `device_memory` alone.

Work is enqueued and done in order; what the host may read is known after `Mark.wait` or `synchronise`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.placement.budget import DeviceMemory
from powerinfer_py.runtime.hybrid.device_memory import AllocateTensor

if TYPE_CHECKING:
    from torch import Tensor


class Mark(Protocol):
    """A point in the order of a device's work."""

    def wait(self) -> None:
        """Returns when everything enqueued before the mark is done. From any thread."""

    def seconds_since(self, earlier: Mark) -> float:
        """The device's time from one mark of its own to this one; both must have been reached."""


class Device(ABC):
    """One device. Its kernels take tensors that lie on it."""

    name: str

    @abstractmethod
    def memory(self) -> DeviceMemory:
        """Its memory as the driver reports it, before this process uses any."""

    @abstractmethod
    def context_bytes(self) -> int:
        """What the process holds on it besides what `allocate` gives: context, modules, the driver's own."""

    @abstractmethod
    def open(self, n_bytes: int) -> None:
        """Makes room for `n_bytes` in all, of which `allocate` then gives parts. Called once, before any of them."""

    @abstractmethod
    def allocate(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes) on the device, at a multiple of 256."""

    @abstractmethod
    def make_kernels(self, allocate: AllocateTensor) -> Kernels:
        """The device's kernels, whose matrices and results are in memory that `allocate` gives."""

    @abstractmethod
    def host_buffer(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes) on the host, page-locked where copies need that to be asynchronous."""

    @abstractmethod
    def copy(self, target: Tensor, source: Tensor) -> None:
        """Enqueues a copy between any two places of the same shape and dtype, one of them a `host_buffer` or both not
        on the host."""

    @abstractmethod
    def mark(self) -> Mark:
        """A mark behind everything enqueued so far."""

    @abstractmethod
    def synchronise(self) -> None:
        """Waits for everything enqueued. Raises DeviceError where the device has failed."""

    def read(self, tensor: Tensor) -> Tensor:
        """A copy on the host, once everything enqueued is done."""
        self.synchronise()
        return tensor.to("cpu", copy=True)
