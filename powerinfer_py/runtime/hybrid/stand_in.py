"""A device that is none: CPU memory in the place of a GPU's, so that every split of a model runs anywhere.

Its kernels are the product's own: torch's (the definition), the native ones, or Triton's under its interpreter. Memory,
transfers and the order of work are those of the executor, which does not know the difference. It is never faster than
the CPU alone: both are the same processor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING

from powerinfer_py.errors import DeviceError, OptionError
from powerinfer_py.kernels.cold_jobs import await_flag, raise_flag
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.placement.budget import DeviceMemory
from powerinfer_py.placement.problem import Rates
from powerinfer_py.placement.rates import GpuProbe, LayerProbe, assumed_rates, machine_rates
from powerinfer_py.runtime.hybrid.device import Arrangement, Device, Held, Mark, PromptRates
from powerinfer_py.runtime.hybrid.device_memory import AllocateTensor
from powerinfer_py.runtime.hybrid.device_rates import probe_device

if TYPE_CHECKING:
    from torch import Tensor

KERNEL_NAMES = ("torch", "native", "triton")
NEVER_STREAMED = PromptRates(0.0, 1.0, 0.0)
_LONGEST_WAIT_S = 60.0


class StandIn(Device):
    """A stand-in for a GPU.

    kernels: `torch`, `native` (one thread), or `triton`, which needs `TRITON_INTERPRET=1` in the environment before
    Triton is imported. total_bytes: memory it claims to have. context_bytes: what it claims a context to take.
    allocate: gives uint8 tensors; for tests that count them. arrangement: a captured step is the same calls again, with
    the CPU's part started and awaited through C. warms_up: runs what a GPU would load its kernels and measure its rates
    of prompts with. prompt_rates: stated ones, by default such that nothing is streamed. measures_rates: measures what
    the solver is told as on a GPU. Raises OptionError for other kernels.
    """

    name = "a stand-in for a GPU (CPU memory)"

    def __init__(
        self,
        kernels: str = "torch",
        *,
        total_bytes: int = 1 << 40,
        context_bytes: int = 0,
        allocate: Callable[[int], Tensor] | None = None,
        arrangement: Arrangement = Arrangement.EAGER,
        warms_up: bool = False,
        prompt_rates: PromptRates = NEVER_STREAMED,
        measures_rates: bool = False,
    ) -> None:
        if kernels not in KERNEL_NAMES:
            raise OptionError(f"a stand-in's kernels must be one of {', '.join(KERNEL_NAMES)}, not {kernels!r}")
        self._kernels = kernels
        self.arrangement = arrangement
        self._warms_up = warms_up
        self._prompt_rates = prompt_rates
        self._measures_rates = measures_rates
        self._memory = DeviceMemory(total_bytes, total_bytes)
        self._context_bytes = context_bytes
        self._give = allocate
        self.n_synchronised = 0

    def memory(self) -> DeviceMemory:
        """What it claims to have, all of it free."""
        return self._memory

    def rates(self, n_threads: int, free_bytes: int, layers: LayerProbe | None = None) -> Rates:
        """Those of a GPU and a CPU that were not measured: a stand-in is solved for as for the GPU it stands for.

        Measured where a test asked for that.
        """
        if not self._measures_rates:
            return assumed_rates()
        return machine_rates(n_threads, GpuProbe(self.name, lambda: probe_device(self, free_bytes)), layers)

    def prompt_rates(self, measure: Callable[[], PromptRates]) -> PromptRates:
        """Those it was made with; measured where it warms up as a GPU does."""
        return measure() if self._warms_up else self._prompt_rates

    def context_bytes(self, warm_up: Callable[[Held], None]) -> int:
        """What it claims a context to take; it runs `warm_up` where a test asked for that."""
        if self._warms_up:
            warm_up(Held(self._context_bytes, 0))
        return self._context_bytes

    def open(self, n_bytes: int) -> None:
        """Nothing: each part is allocated on its own, so that a debugger or a test sees where it ends."""

    def release(self) -> None:
        """Nothing: each part goes with its last reference."""

    def allocate(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes)."""
        if self._give is not None:
            return self._give(n_bytes)
        return self._new_host_buffer(n_bytes)

    def make_kernels(self, allocate: AllocateTensor) -> Kernels:
        """The kernels that were asked for."""
        if self._kernels == "triton":
            import torch

            from powerinfer_py.kernels.triton.kernels import TritonKernels

            return TritonKernels(torch.device("cpu"), allocate)
        if self._kernels == "native":
            from powerinfer_py.kernels.cpu import NativeKernels

            return NativeKernels(1)
        from powerinfer_py.kernels.reference import ReferenceKernels

        return ReferenceKernels()

    def _new_host_buffer(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes)."""
        import torch

        return torch.empty(n_bytes, dtype=torch.uint8)

    def enqueuing(self) -> AbstractContextManager[object]:
        """There is no queue."""
        return nullcontext()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copies at once."""
        target.copy_(source)

    def mark(self) -> Mark:
        """A mark that has been reached: nothing is ever outstanding."""
        return _Reached()

    def wait_for(self, mark: Mark) -> None:
        """Nothing is outstanding."""

    def launch(self, function: int, data: int) -> None:
        """Calls the function at once, without the GIL."""
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(data)

    def raise_flag(self, flag: Tensor) -> None:
        """Raises it at once."""
        raise_flag(flag)

    def await_flag(self, flag: Tensor) -> None:
        """Waits at once, without the GIL. Raises DeviceError where nobody raises it, for which a GPU would wait on."""
        if not await_flag(flag, _LONGEST_WAIT_S):
            raise DeviceError(f"the CPU's side has not answered for {_LONGEST_WAIT_S:g} s")

    def beside(self, after: Mark | None = None) -> AbstractContextManager[None]:  # noqa: ARG002
        """Everything is done in the order of the calls."""
        return nullcontext()

    def rejoin(self) -> None:
        """Nothing is outstanding."""

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """The function itself, called once as a real capture would."""
        enqueue()
        return enqueue

    def synchronise(self) -> None:
        """Counts how often the host would have waited."""
        self.n_synchronised += 1


class _Reached:
    def __init__(self) -> None:
        self._at = perf_counter()

    def wait(self) -> None:
        """Returns at once."""

    def seconds_since(self, earlier: Mark) -> float:
        """Time between the two."""
        if not isinstance(earlier, _Reached):
            raise TypeError("the mark is another device's")
        return self._at - earlier._at
