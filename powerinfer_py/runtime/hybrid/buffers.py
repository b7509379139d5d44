"""Device memory that outlives a block: the residual stream, where the tokens stand, what was counted, the workspace.

Two residual streams take turns, since a layer reads one while it writes the other. What is copied from the host goes
through buffers of its own, written again only after the device has been waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.placement.fixed_bytes import COUNTS
from powerinfer_py.runtime.hybrid.device import Device
from powerinfer_py.runtime.hybrid.device_memory import Region, Workspace, take_tensor

if TYPE_CHECKING:
    from torch import Tensor


class Buffers:
    """Memory of `activations` for at most `n_tokens` tokens; what is left of it is the workspace."""

    def __init__(self, device: Device, activations: Region, n_tokens: int, n_embd: int, n_layer: int) -> None:
        import torch

        self.n_tokens = n_tokens
        self._device = device
        shape = (n_tokens, n_embd)
        self._streams = [take_tensor(activations, shape, torch.float32) for _ in range(2)]
        # Both rows begin at a multiple of 16 bytes, whatever the number of tokens: kernels are compiled for that.
        n_places = n_tokens + n_tokens % 2
        self._places = take_tensor(activations, (2, n_places), torch.int64)
        self._counts = take_tensor(activations, (n_layer, COUNTS), torch.int64)
        self.workspace = Workspace(activations.take(activations.left_bytes))
        self._stream_here = device.host_buffer(4 * n_tokens * n_embd).view(torch.float32).view(shape)
        self._places_here = device.host_buffer(16 * n_places).view(torch.int64).view(2, n_places)
        self._counts_here = device.host_buffer(8 * COUNTS * n_layer).view(torch.int64).view(n_layer, COUNTS)
        self._at = 0
        self._n = 0

    def begin(self, batch: ForwardBatch, n_slots: int, n_ctx: int) -> None:
        """Notes where the tokens stand, for `send`. The device must be idle.

        Raises IndexError for a place outside of the cache, which a device does not check, and ValueError for more
        tokens than there is room for.
        """
        if len(batch) > self.n_tokens:
            raise ValueError(f"{len(batch)} tokens at once, the buffers hold {self.n_tokens}")
        for name, values, end in (("slot", batch.slots, n_slots), ("position", batch.positions, n_ctx)):
            outside = values[(values < 0) | (values >= end)]
            if outside.numel():
                raise IndexError(f"{name} {int(outside[0])} is not in [0, {end})")
        self._n = len(batch)
        self._places_here[0, : self._n] = batch.positions
        self._places_here[1, : self._n] = batch.slots

    def hold(self, x: Tensor) -> None:
        """Takes a residual stream (T, n_embd) of the host, for `send`. The device must be idle."""
        self._stream_here[: self._n].copy_(x)

    def send(self) -> Tensor:
        """Enqueues what `begin` and `hold` took, and clears what was counted; returns the stream on the device."""
        self._at = 0
        self._device.copy(self._places, self._places_here)
        stream = self._streams[0][: self._n]
        self._device.copy(stream, self._stream_here[: self._n])
        self._counts.zero_()
        return stream

    @property
    def positions(self) -> Tensor:
        """(T; int64) on the device."""
        return self._places[0, : self._n]

    @property
    def slots(self) -> Tensor:
        """(T; int64) on the device."""
        return self._places[1, : self._n]

    def counts(self, layer: int) -> Tensor:
        """(4; int64) on the device: what a layer has counted in this forward."""
        return self._counts[layer]

    def next_stream(self) -> Tensor:
        """(T, n_embd) on the device, to be written: not the one that is being read."""
        self._at = 1 - self._at
        return self._streams[self._at][: self._n]

    def send_counts(self) -> None:
        """Enqueues the copy that `counted` reads."""
        self._device.copy(self._counts_here, self._counts)

    def counted(self) -> list[list[int]]:
        """What each layer has counted, once the device has been waited for after `send_counts`."""
        numbers: list[list[int]] = self._counts_here.tolist()
        return numbers
