"""Steps captured once and replayed: the device's part of a decode step without any Python in between.

What is captured is the executor's own step over buffers with fixed addresses; only the CPU's side is another. It is
started and awaited by host functions in the stream's order (`_native.cold_host_functions`), in one of two arrangements:

- two nodes: submit, which returns at once, then the hot kernels, then wait, all in one stream;
- side stream: copy down, compute, copy up in a stream of its own beside the hot kernels.

A host function blocks what is behind it in its own stream alone. It sleeps, never throws, never calls the device, never
takes the GIL; an error is read from the worker's flag after the step, and the step's result is then not handed out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from powerinfer_py.errors import DeviceError
from powerinfer_py.kernels.blocks import FeedForwardBlock, FeedForwardResult
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.runtime.hybrid.cold_side import Exchange
from powerinfer_py.runtime.hybrid.device import Arrangement, Device

if TYPE_CHECKING:
    from torch import Tensor


class CapturedColdSide:
    """A `ColdSide` whose calls enqueue host functions. Every capture makes jobs of its own, kept for its replays.

    exchange: None where no layer is split.
    """

    def __init__(self, device: Device, exchange: Exchange | None, arrangement: Arrangement) -> None:
        from powerinfer_py.kernels.cold_jobs import host_functions, make_worker

        self._device = device
        self._buffers = exchange
        self._arrangement = arrangement
        self._worker = make_worker()
        self._submit, self._wait, self._run = host_functions()
        self._job: Any = None
        self._n_tokens = 0
        self._sums: Tensor | None = None

    def start(
        self, kernels: Kernels, block: FeedForwardBlock, h: Tensor, bits: Tensor | None, *, observe: bool = False
    ) -> None:
        """Enqueues the copies down and the start of the CPU's part."""
        if observe:
            raise ValueError("nobody can watch a captured step")
        self._n_tokens = h.shape[0]
        if self._arrangement is Arrangement.TWO_NODES:
            self._job = self._make_job(kernels, block, *self._exchange.bring_down(h, bits))
            self._device.launch(self._submit, self._job.address)
            return
        with self._device.beside():
            self._job = self._make_job(kernels, block, *self._exchange.bring_down(h, bits))
            self._device.launch(self._run, self._job.address)
            self._sums = self._exchange.bring_up(self._n_tokens)

    def finish(self) -> tuple[Tensor, FeedForwardResult | None]:
        """Enqueues the wait for the CPU's part, and the copy up where that is not under way."""
        if self._arrangement is Arrangement.TWO_NODES:
            self._device.launch(self._wait, self._job.address)
            return self._exchange.bring_up(self._n_tokens), None
        self._device.rejoin()
        if self._sums is None:
            raise RuntimeError("no cold part is under way")
        return self._sums, None

    def take_job(self) -> Any:
        """The job of the layer that was finished last; whoever replays it keeps it."""
        job, self._job = self._job, None
        return job

    def require_success(self) -> None:
        """Raises DeviceError where a job has failed since the last call."""
        if self._worker.take_error():
            raise DeviceError("the CPU's part of a step has failed: out of memory, or steps that overlapped")

    @property
    def _exchange(self) -> Exchange:
        if self._buffers is None:
            raise ValueError("no layer is split, so nothing is exchanged")
        return self._buffers

    def _make_job(self, kernels: Kernels, block: FeedForwardBlock, h: Tensor, bits: Tensor | None) -> Any:
        from powerinfer_py.kernels.cold_jobs import make_job

        return make_job(self._worker, kernels, block, h, bits, self._exchange.sums_here(h.shape[0]))


@dataclass(frozen=True, eq=False)
class CapturedStep:
    """One captured segment. replay: enqueues it. result: on the host, where its result lies once the device is done.

    jobs: of the split layers, by the engine's numbering. predictor_s: what the predictors took when it was captured; a
    replay cannot be asked.
    """

    replay: Callable[[], None]
    result: Tensor
    jobs: dict[int, Any]
    predictor_s: float
