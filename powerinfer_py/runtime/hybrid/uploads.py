"""Brings a file's weights to the device when a model is loaded, through two page-locked buffers of the host.

The CPU's threads write a band of rows into one buffer as the device holds them, gathering those that are wanted, while
the device copies the other. Loading alone: what is streamed later has places of its own (`bands`).

Order, for bands b and b + 2, which share a buffer:

    host:      wait for C(b)   write b + 2   enqueue the copies of b + 2, mark C(b + 2)
    device:    copy b          copy b + 1    copy b + 2     ..   whatever uses the weights

- The host writes b + 2 over b only when the copies of b have read it: it waits for C(b).
- The weights are used in the order of the stream that they were copied in: nobody waits for that.
- The buffers are given up only when everything has been copied, even where loading ends with an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from powerinfer_py.gguf.types import GGMLType, row_bytes
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix
from powerinfer_py.placement.device_bytes import device_type
from powerinfer_py.runtime.hybrid.device import Device, Mark
from powerinfer_py.runtime.hybrid.device_memory import Source
from powerinfer_py.runtime.hybrid.neuron_order import Ids

if TYPE_CHECKING:
    from torch import Tensor

# Of a buffer, unless a row is longer.
BUFFER_BYTES = 8 << 20


@dataclass(eq=False)
class _Buffer:
    """memory: uint8, a `host_buffer`, None before its first use. copied: behind the last copies from it."""

    memory: Tensor | None = None
    copied: Mark | None = None


class Uploader:
    """Lays out matrices of a file in memory of the device. To be used as a context, inside `device.enqueuing`.

    kernels: of the device; host: of the CPU. On leaving the context everything has been copied.
    """

    def __init__(self, device: Device, kernels: Kernels, host: Kernels) -> None:
        self._device = device
        self._kernels = kernels
        self._host = host
        self._buffers = (_Buffer(), _Buffer())
        self._n_bands = 0

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Not for the marks alone: an error may have come between a copy and its mark.
            self._device.synchronise()
        finally:
            self._buffers = (_Buffer(), _Buffer())

    def matrix(
        self,
        name: str,
        ggml_type: GGMLType,
        rows: int,
        cols: int,
        data: npt.NDArray[np.uint8],
        ids: Ids | None,
        target: Source,
    ) -> Matrix:
        """Rows `ids` (None: all) of a matrix (rows, cols) as the device holds them, in memory that `target` gives.

        data: uint8 (rows * row_bytes), which has been read on return. What is enqueued next on the device may use the
        matrix. Raises BudgetError beyond what is reserved, UnsupportedError as `Kernels.fill_rows`.
        """
        stored = data.reshape(rows, row_bytes(ggml_type, cols))
        n = rows if ids is None else ids.size
        parts = self._kernels.row_parts(ggml_type, cols)
        place, known = target.take(n * sum(parts)), 0.0
        for begin, end in _bands(n, sum(parts)):
            buffer, here = self._free((end - begin) * sum(parts))
            of, some = (stored[begin:end], None) if ids is None else (stored, ids[begin:end])
            known = max(known, self._kernels.fill_rows(ggml_type, cols, of, some, here.numpy(), self._host))
            part_place = part_here = 0
            for width in parts:
                n_bytes = (end - begin) * width
                there = place[part_place + begin * width : part_place + end * width]
                self._device.copy(there, here[part_here : part_here + n_bytes])
                part_place, part_here = part_place + n * width, part_here + n_bytes
            buffer.copied = self._device.mark()
        return self._kernels.filled_matrix(name, device_type(ggml_type), n, cols, place, known)

    def _free(self, n_bytes: int) -> tuple[_Buffer, Tensor]:
        """The next buffer, and as much of it, which may be written."""
        buffer = self._buffers[self._n_bands % 2]
        self._n_bands += 1
        if buffer.copied is not None:
            buffer.copied.wait()
        if buffer.memory is None or buffer.memory.numel() < n_bytes:
            buffer.memory = self._device.host_buffer(max(n_bytes, BUFFER_BYTES))
        return buffer, buffer.memory[:n_bytes]


def _bands(n: int, n_row: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of n rows that fit a buffer, or of one row; none where rows have no bytes."""
    step = max(1, BUFFER_BYTES // max(n_row, 1))
    for begin in range(0, n if n_row else 0, step):
        yield begin, min(begin + step, n)
