"""Steps captured once and replayed: the device's part of a decode step without any Python in between.

What is captured is the executor's own step over buffers with fixed addresses; only the CPU's side is another. Its jobs
are prepared beforehand, and the device begins and awaits them in one of three arrangements:

- two nodes: a host function that submits and returns at once, the hot kernels, and one that waits, all in one stream;
- side stream: copy down, a host function that computes, copy up, in a stream of its own beside the hot kernels;
- flags: the stream writes a flag in page-locked memory, goes on with the hot kernels, and waits for another flag. A
  thread follows the step on the CPU (`_native.ColdFollower`). No thread of the driver's is in between.

A host function or a flag blocks what is behind it in its own stream alone. None throws, calls the device or takes the
GIL; an error is read from the thread's own mark after the step, and the step's result is then not handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from powerinfer_py.errors import DeviceError
from powerinfer_py.kernels.blocks import FeedForwardBlock, FeedForwardResult
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.mask_bits import bytes_of_bits
from powerinfer_py.runtime.hybrid.cold_side import Exchange
from powerinfer_py.runtime.hybrid.device import Arrangement, Device

if TYPE_CHECKING:
    from torch import Tensor

# Two flags must not share a cache line: each is written by one side while the other looks at it.
_LINE_BYTES = 64


@dataclass(frozen=True)
class ColdPart:
    """A split layer's part of a step. block: of its cold neurons. is_masked: whether bits tell which are computed."""

    block: FeedForwardBlock
    is_masked: bool


@dataclass(frozen=True, eq=False)
class StepJobs:
    """The CPU's part of one captured step: jobs by the engine's numbering of layers, in order.

    flags: of each job, by which it is begun and by which it is done. sequence: of the jobs with their flags; None where
    host functions begin them.
    """

    parts: tuple[ColdPart, ...]
    jobs: Mapping[int, Any]
    flags: tuple[tuple[Tensor, Tensor], ...] = ()
    sequence: Any = None

    def take_counts(self) -> dict[int, tuple[int, int, int, int]]:
        """What each job has counted since the last call, by layer."""
        return {local: job.take_counts() for local, job in self.jobs.items()}


class CapturedColdSide:
    """A `ColdSide` whose calls enqueue what begins and awaits jobs that `prepare` has made.

    exchange: None where no layer is split.
    """

    def __init__(self, device: Device, exchange: Exchange | None, arrangement: Arrangement) -> None:
        from powerinfer_py.kernels.cold_jobs import host_functions, make_follower, make_worker

        self._device = device
        self._buffers = exchange
        self._arrangement = arrangement
        self._worker = make_worker()
        self._follower = make_follower() if arrangement is Arrangement.FLAGS else None
        self._submit, self._wait, self._run = host_functions()
        self._step = StepJobs((), {})
        self._number = 0
        self._n_tokens = 0
        self._sums: Tensor | None = None

    def prepare(self, kernels: Kernels, parts: Mapping[int, ColdPart], n_tokens: int) -> StepJobs:
        """Jobs for a step of `n_tokens` tokens; whoever replays it keeps them. parts: of its split layers, in order."""
        from powerinfer_py.kernels.cold_jobs import make_job, make_sequence

        jobs = {}
        for local, part in parts.items():
            bits_bytes = bytes_of_bits(part.block.weights.up.rows) if part.is_masked else None
            here = self._exchange.input_here(n_tokens, bits_bytes)
            jobs[local] = make_job(self._worker, kernels, part.block, *here, self._exchange.sums_here(n_tokens))
        if self._follower is None or not jobs:
            return StepJobs(tuple(parts.values()), jobs)
        flags = self._new_flags(len(jobs))
        sequence = make_sequence(self._follower, list(jobs.values()), flags)
        return StepJobs(tuple(parts.values()), jobs, flags, sequence)

    @contextmanager
    def running(self, step: StepJobs) -> Iterator[None]:
        """A run of a step, which is enqueued inside.

        On leaving, the device and the CPU are done with it, also where it failed half-way or was interrupted.
        """
        self._begin(step)
        try:
            yield
        finally:
            # What was enqueued is answered and comes to its end. Only then may layers that never came be given up.
            self._device.synchronise()
            if self._follower is not None:
                self._follower.abandon()

    def _begin(self, step: StepJobs) -> None:
        """Makes the CPU ready; what a run that failed left behind is not this one's."""
        self._step, self._number = step, 0
        self._worker.wait()
        if self._follower is not None and step.sequence is not None and not self._follower.follow(step.sequence):
            # An interrupt came before the run was one that is left in order.
            self._device.synchronise()
            self._follower.abandon()
            if not self._follower.follow(step.sequence):
                raise RuntimeError("another step is followed")
        step.take_counts()
        self._take_error()

    def end(self) -> None:
        """Lets go of the step that was run last, and of what an interrupt may have left of it."""
        with suppress(DeviceError):
            self._device.synchronise()
        if self._follower is not None:
            self._follower.abandon()
        self._step = StepJobs((), {})

    def start(
        self,
        kernels: Kernels,  # noqa: ARG002  the jobs have them
        block: FeedForwardBlock,
        h: Tensor,
        bits: Tensor | None,
        *,
        observe: bool = False,
    ) -> None:
        """Enqueues the copies down and the start of the CPU's part."""
        if observe:
            raise ValueError("nobody can watch a captured step")
        if block is not self._step.parts[self._number].block:
            raise ValueError("another layer's turn was prepared")
        self._n_tokens = len(h)
        if self._arrangement is Arrangement.SIDE_STREAM:
            with self._device.beside():
                self._exchange.bring_down(h, bits)
                self._device.launch(self._run, self._job.address)
                self._sums = self._exchange.bring_up(self._n_tokens)
            return
        self._exchange.bring_down(h, bits)
        if self._arrangement is Arrangement.FLAGS:
            self._device.raise_flag(self._step.flags[self._number][0])
        else:
            self._device.launch(self._submit, self._job.address)

    def finish(self) -> tuple[Tensor, FeedForwardResult | None]:
        """Enqueues the wait for the CPU's part, and the copy up where that is not under way."""
        if self._arrangement is Arrangement.SIDE_STREAM:
            self._device.rejoin()
            if self._sums is None:
                raise RuntimeError("no cold part is under way")
            sums = self._sums
        else:
            if self._arrangement is Arrangement.FLAGS:
                self._device.await_flag(self._step.flags[self._number][1])
            else:
                self._device.launch(self._wait, self._job.address)
            sums = self._exchange.bring_up(self._n_tokens)
        # A device that captures is given the calls twice.
        self._number = (self._number + 1) % len(self._step.parts)
        return sums, None

    def require_success(self) -> None:
        """Raises DeviceError where a job has failed since the last call."""
        if self._take_error():
            raise DeviceError("the CPU's part of a step has failed: out of memory, or steps that overlapped")

    def _take_error(self) -> bool:
        failed = self._worker.take_error()
        return self._follower.take_error() or failed if self._follower is not None else failed

    @property
    def _exchange(self) -> Exchange:
        if self._buffers is None:
            raise ValueError("no layer is split, so nothing is exchanged")
        return self._buffers

    @property
    def _job(self) -> Any:
        return list(self._step.jobs.values())[self._number]

    def _new_flags(self, n: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Two flags for each of `n` jobs, int32 (1)."""
        import torch

        lines = self._device.host_buffer(2 * n * _LINE_BYTES).view(torch.int32).view(n, 2, -1)
        return tuple((begun[:1], done[:1]) for begun, done in lines)


@dataclass(frozen=True, eq=False)
class CapturedStep:
    """One captured segment. replay: enqueues it. result: on the host, where its result lies once the device is done.

    cold: the CPU's part. predictor_s: what the predictors took when it was captured; a replay cannot be asked.
    """

    replay: Callable[[], None]
    result: Tensor
    cold: StepJobs
    predictor_s: float
