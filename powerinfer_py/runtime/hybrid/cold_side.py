"""The CPU's part of a split layer, computed by a thread of its own while the device computes its part.

One layer is under way at a time. What the two sides exchange goes through buffers made once: down the FFN's input and
the mask of the cold neurons as bits, in one copy where they are neighbours; up the partial sum. `ThreadedColdSide` is
the definition, for any kernels: the host waits for the copies down and hands over to a Python thread. In a captured
step `captured.CapturedColdSide` takes its place.

Order: the partial sum is written only after the layer's copies down are done; those were enqueued behind the upload of
the layer before, so that nothing is overwritten that is still being read.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Protocol

import numpy as np

from powerinfer_py.kernels.blocks import FeedForwardBlock, FeedForwardResult
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.mask_bits import bytes_of_bits
from powerinfer_py.placement.device_bytes import aligned
from powerinfer_py.runtime.hybrid.device import Device, Mark
from powerinfer_py.runtime.hybrid.device_memory import Region, take_tensor

if TYPE_CHECKING:
    from torch import Tensor


class ColdSide(Protocol):
    """What the executor asks of the CPU's side."""

    def start(
        self, kernels: Kernels, block: FeedForwardBlock, h: Tensor, bits: Tensor | None, *, observe: bool = False
    ) -> None:
        """Begins a layer's part, behind what is enqueued on the device.

        h: (T, n_embd) on the device. bits: the mask of the block's neurons (`Kernels.pack_mask`), None for all.
        """

    def finish(self) -> tuple[Tensor, FeedForwardResult | None]:
        """(the partial sum on the device, (T, n_embd), valid until the next layer's; what the CPU counted, None where
        that comes later)."""


class Exchange:
    """The buffers of both directions for at most `n_tokens` tokens of `n_embd` values and `n_ff` neurons.

    staging: device memory where partial sums arrive.
    """

    def __init__(self, device: Device, staging: Region, n_tokens: int, n_embd: int, n_ff: int) -> None:
        import torch

        self._device = device
        self._n_embd = n_embd
        vector_bytes = aligned(4 * n_tokens * n_embd)
        self._down = device.host_buffer(vector_bytes + n_tokens * bytes_of_bits(n_ff))
        self._up = device.host_buffer(4 * n_tokens * n_embd).view(torch.float32).view(n_tokens, n_embd)
        self._sums = take_tensor(staging, (n_tokens, n_embd), torch.float32)

    def input_here(self, n_tokens: int, bits_bytes: int | None) -> tuple[Tensor, Tensor | None]:
        """Where h (T, n_embd) and the mask (T, bits_bytes; None: none) arrive on the host."""
        import torch

        n_bytes = 4 * n_tokens * self._n_embd
        h_here = self._down[:n_bytes].view(torch.float32).view(n_tokens, self._n_embd)
        if bits_bytes is None:
            return h_here, None
        begin = aligned(n_bytes)
        return h_here, self._down[begin : begin + n_tokens * bits_bytes].view(n_tokens, bits_bytes)

    def bring_down(self, h: Tensor, bits: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Enqueues the copies of h (T, n_embd) and bits (T, bytes); where they arrive on the host."""
        h_here, bits_here = self.input_here(len(h), None if bits is None else bits.shape[1])
        if bits is None or bits_here is None:
            self._device.copy(h_here, h)
            return h_here, None
        joined = _joined(h, bits)
        if joined is None:
            self._device.copy(h_here, h)
            self._device.copy(bits_here, bits)
        else:
            self._device.copy(self._down[: joined.numel()], joined)
        return h_here, bits_here

    def sums_here(self, n_tokens: int) -> Tensor:
        """Where the CPU writes the partial sum: (T, n_embd)."""
        return self._up[:n_tokens]

    def bring_up(self, n_tokens: int) -> Tensor:
        """Enqueues the copy of the partial sum; where it arrives on the device."""
        sums = self._sums[:n_tokens]
        self._device.copy(sums, self._up[:n_tokens])
        return sums


class ThreadedColdSide:
    """A `ColdSide` over a Python thread, for any kernels."""

    def __init__(self, device: Device, exchange: Exchange) -> None:
        self._device = device
        self._exchange = exchange
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="powerinfer-cold")
        self._pending: Future[FeedForwardResult] | None = None
        self._n_tokens = 0

    def start(
        self, kernels: Kernels, block: FeedForwardBlock, h: Tensor, bits: Tensor | None, *, observe: bool = False
    ) -> None:
        """Enqueues the copies down and hands the rest to the thread."""
        if self._pending is not None:
            # A forward that failed half-way has left it behind; the buffers are its own until it is done.
            wait([self._pending])
        h_here, bits_here = self._exchange.bring_down(h, bits)
        self._n_tokens = h.shape[0]
        mark = self._device.mark()
        self._pending = self._thread.submit(self._compute, kernels, block, mark, h_here, bits_here, observe)

    def finish(self) -> tuple[Tensor, FeedForwardResult | None]:
        """Waits for the thread and enqueues the copy up. Raises what the thread raised."""
        if self._pending is None:
            raise RuntimeError("no cold part is under way")
        pending, self._pending = self._pending, None
        result = pending.result()
        return self._exchange.bring_up(self._n_tokens), result

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=True)

    def _compute(
        self,
        kernels: Kernels,
        block: FeedForwardBlock,
        mark: Mark,
        h: Tensor,
        bits: Tensor | None,
        observe: bool,
    ) -> FeedForwardResult:
        import torch

        mark.wait()
        mask = None
        if bits is not None:
            n = block.weights.up.rows
            unpacked = np.unpackbits(bits.numpy(), axis=1, count=n, bitorder="little")
            mask = torch.from_numpy(unpacked).view(torch.bool)
        result = kernels.feed_forward_part(block, h, mask, observe=observe)
        self._exchange.sums_here(h.shape[0]).copy_(result.y)
        return result


def _joined(h: Tensor, bits: Tensor) -> Tensor | None:
    """The bytes of h and of bits, with the gap between, as one tensor; None where bits does not follow h."""
    import torch

    storage = h.untyped_storage()
    begin = h.storage_offset() * h.element_size()
    behind = begin + aligned(4 * h.numel())
    if storage.data_ptr() != bits.untyped_storage().data_ptr() or bits.storage_offset() != behind:
        return None
    n_bytes = behind - begin + bits.numel()
    joined = torch.empty(0, dtype=torch.uint8, device=h.device)
    joined.set_(storage, begin, (n_bytes,), (1,))
    return joined
