"""The memory of a device, handed out under the ledger: the only place where anything on a device is allocated.

A region is the memory of one reservation; tensors are taken out of it and stay. A workspace is one tensor of a region,
taken anew by every block: its parts are valid until the next `reset`. Invariant: what has been taken agrees with the
ledger's used bytes, and no region gives more than was reserved for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from powerinfer_py.placement.budget import BudgetError, Ledger, Reservation
from powerinfer_py.placement.device_bytes import aligned

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Gives a tensor of a shape and dtype on the device.
AllocateTensor = Callable[[tuple[int, ...], "torch.dtype"], "Tensor"]


class Source(Protocol):
    """Where device memory comes from."""

    def take(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes), at a multiple of 256. Raises BudgetError where nothing is left."""


class Region:
    """The memory of one reservation; each tensor takes whole multiples of 256 bytes."""

    def __init__(self, ledger: Ledger, reservation: Reservation, allocate: Callable[[int], Tensor]) -> None:
        self._ledger = ledger
        self._reservation = reservation
        self._allocate = allocate

    def take(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes). Raises BudgetError beyond what is reserved."""
        self._ledger.take(self._reservation, aligned(n_bytes))
        return self._allocate(aligned(n_bytes))[:n_bytes]

    @property
    def left_bytes(self) -> int:
        """Bytes reserved and not taken yet."""
        return self._reservation.n_bytes - self._reservation.used_bytes


class Workspace:
    """Memory for results that live until the next `reset`; its tensors follow each other in the order of the calls."""

    def __init__(self, buffer: Tensor) -> None:
        self._buffer = buffer
        self._used = 0
        self.peak_bytes = 0

    def take(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes), at a multiple of 256. Raises BudgetError where the workspace is full."""
        end = self._used + aligned(n_bytes)
        if end > self._buffer.numel():
            raise BudgetError(
                f"the workspace of {self._buffer.numel()} bytes is full: {n_bytes} more are wanted after {self._used}"
            )
        part = self._buffer[self._used : self._used + n_bytes]
        self._used = end
        self.peak_bytes = max(self.peak_bytes, end)
        return part

    def reset(self) -> None:
        """Ends the life of everything taken so far."""
        self._used = 0

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Ends the life of what is taken inside."""
        before = self._used
        try:
            yield
        finally:
            self._used = before


class DeviceMemory:
    """A ledger and the memory behind it. `allocate` serves kernels: from the source that `into` names."""

    def __init__(self, ledger: Ledger, allocate: Callable[[int], Tensor]) -> None:
        self.ledger = ledger
        self._allocate = allocate
        self._source: Source | None = None

    def region(self, name: str, n_bytes: int, layer: int | None = None) -> Region:
        """Reserves bytes for tensors to be taken. Raises BudgetError where the budget has not that many left."""
        return Region(self.ledger, self.ledger.reserve(name, n_bytes, layer), self._allocate)

    @contextmanager
    def into(self, source: Source) -> Iterator[None]:
        """Inside, `allocate` takes from `source`."""
        before, self._source = self._source, source
        try:
            yield
        finally:
            self._source = before

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with undefined content."""
        if self._source is None:
            raise BudgetError("device memory was asked for outside of any reservation")
        return take_tensor(self._source, shape, dtype)


def take_tensor(source: Source, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of `source` with undefined content."""
    return source.take(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
