# mypy: disable-error-code="no-untyped-call"
"""A CUDA device through torch: one arena of memory, Triton's kernels, streams, events and graphs.

Nothing here computes or decides. Everything is enqueued in one stream of the device's own; what runs beside it has a
second one. All tensors lie in the arena, a single allocation; what else the process holds (context, kernels' modules)
is measured before the arena is made.

Run on an H200 (`tests/runtime/hybrid/test_cuda_device.py`), flags excepted, which have not run on a GPU. The calls are
plain torch, and those of `cuda_driver`, which a test makes to libraries in the driver's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from powerinfer_py.errors import DeviceError
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.placement.budget import DeviceMemory
from powerinfer_py.placement.problem import Rates
from powerinfer_py.placement.rates import GpuProbe, LayerProbe, machine_rates
from powerinfer_py.runtime.hybrid.cuda_driver import CudaDriver, Monitor
from powerinfer_py.runtime.hybrid.device import Arrangement, Device, Held, Mark, PromptRates
from powerinfer_py.runtime.hybrid.device_memory import AllocateTensor
from powerinfer_py.runtime.hybrid.device_rates import probe_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# torch's allocator takes the arena from the driver in multiples of 2 MiB, and one below 10 MiB as a piece of 20. What
# is rounded up counts as the context's.
_SEGMENT_BYTES = 20 << 20
# For what is loaded only after the measurement: kernels specialised for other sizes, and captured graphs. Not measured.
_MODULES_MARGIN_BYTES = 64 << 20
# What the kernels of a model are taken to need at most where a budget is too small to load them and see: some fifty
# modules, and local memory for kernels that spill, of which a device keeps as much as all its threads could use.
_MODULES_GROWTH_BYTES = 128 << 20


class CudaDevice(Device):
    """GPU number `index`. Raises DeviceError where torch or the driver cannot use it."""

    # The thread that waits for the GPU, and the driver's own, which waits for the CPU's side: with both beside as many
    # threads as cores, a step of a split 7B model took an H200's host half as long again.
    busy_cores = 2

    def __init__(self, index: int, arrangement: Arrangement) -> None:
        import torch

        self.arrangement = arrangement
        self._device = torch.device("cuda", index)
        self._driver = CudaDriver()
        if arrangement is Arrangement.FLAGS:
            self._driver.require_flags()
        self._monitor = Monitor(self._driver.bus_id(index))
        _give_up_unused()
        before = self._monitor.usage()
        self._memory = DeviceMemory(before.total_bytes, before.free_bytes + (self._monitor.process_bytes() or 0))
        self._context_bytes: int | None = None
        self._arena: Tensor | None = None
        self._used = 0
        try:
            torch.cuda.init()
            self.name = torch.cuda.get_device_name(self._device)
            self._stream = torch.cuda.Stream(self._device)
            self._side = torch.cuda.Stream(self._device)
        except RuntimeError as error:
            raise DeviceError(f"GPU {index} cannot be used: {_first_line(error)}") from None

    def memory(self) -> DeviceMemory:
        """As the driver reported it when this was made; what the process held there by then counts as free."""
        return self._memory

    def rates(self, n_threads: int, free_bytes: int, layers: LayerProbe | None = None) -> Rates:
        """Measured on this machine, once."""
        return machine_rates(n_threads, GpuProbe(self.name, lambda: probe_device(self, free_bytes)), layers)

    def prompt_rates(self, measure: Callable[[], PromptRates]) -> PromptRates:
        """Measured."""
        return measure()

    def context_bytes(self, warm_up: Callable[[Held], None]) -> int:
        """What the process holds after `warm_up`, as NVML reports it, else what has gone from the free memory."""
        if self._context_bytes is None:
            warm_up(Held(self._held_bytes(), _MODULES_GROWTH_BYTES))
            self.synchronise()
            self.release()
            self._context_bytes = self._held_bytes()
        return self._context_bytes

    def _held_bytes(self) -> int:
        """What the process holds now, and what it will hold besides an arena."""
        held = self._monitor.process_bytes()
        if held is None:
            held = max(0, self._memory.free_bytes - self._monitor.usage().free_bytes)
        return held + _MODULES_MARGIN_BYTES + _SEGMENT_BYTES

    def open(self, n_bytes: int) -> None:
        """Makes the arena; one that was there is given up."""
        import torch

        self.release()
        try:
            self._arena = torch.empty(n_bytes, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError:
            raise DeviceError(
                f"{n_bytes} bytes of GPU memory could not be had, {self._monitor.usage().free_bytes} are free: another "
                "program has taken some"
            ) from None

    def release(self) -> None:
        """Gives the arena back to the driver: what torch keeps of it would be held beside the next one."""
        self._arena = None
        self._used = 0
        _give_up_unused()

    def allocate(self, n_bytes: int) -> Tensor:
        """The next bytes of the arena."""
        if self._arena is None or self._used + n_bytes > self._arena.numel():
            raise DeviceError(f"the arena has no {n_bytes} bytes left")
        part = self._arena[self._used : self._used + n_bytes]
        self._used += n_bytes
        return part

    def make_kernels(self, allocate: AllocateTensor) -> Kernels:
        """Triton's kernels."""
        from powerinfer_py.kernels.triton.kernels import TritonKernels

        return TritonKernels(self._device, allocate)

    def _new_host_buffer(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes), page-locked; what is given back torch keeps for the next of about its size."""
        import torch

        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)

    def _taken_for(self, n_bytes: int) -> int:
        """torch takes the next power of two from the driver."""
        return 1 << max(n_bytes - 1, 0).bit_length()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Enqueues an asynchronous copy in the current stream."""
        target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        """An event of the current stream, with its time."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return _EventMark(event)

    def wait_for(self, mark: Mark) -> None:
        """The current stream waits for the event."""
        import torch

        torch.cuda.current_stream(self._device).wait_event(_event_of(mark))

    @contextmanager
    def enqueuing(self) -> Iterator[None]:
        """Inside, torch and Triton enqueue in the device's own stream. What they report of the device is a DeviceError;
        after an error of its own the device is lost to this process."""
        import torch

        try:
            with torch.cuda.stream(self._stream):
                yield
        except torch.OutOfMemoryError as error:
            raise DeviceError(f"the GPU is out of memory: {_first_line(error)}") from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] == "triton":
                raise DeviceError(f"a GPU kernel cannot be compiled or loaded: {_first_line(error)}") from None
            if isinstance(error, RuntimeError) and "CUDA error" in str(error):
                raise DeviceError(f"the GPU has failed: {_first_line(error)}") from None
            raise

    def launch(self, function: int, data: int) -> None:
        """A host function in the current stream, or a node of the graph that is being captured."""
        import torch

        self._driver.launch_host_function(torch.cuda.current_stream(self._device).cuda_stream, function, data)

    def raise_flag(self, flag: Tensor) -> None:
        """A write by the stream itself, no kernel, behind a fence over the whole system."""
        import torch

        self._driver.write_value(torch.cuda.current_stream(self._device).cuda_stream, flag.data_ptr(), 1)

    def await_flag(self, flag: Tensor) -> None:
        """A wait of the stream itself: no kernel keeps a multiprocessor busy meanwhile."""
        import torch

        self._driver.wait_value(torch.cuda.current_stream(self._device).cuda_stream, flag.data_ptr(), 1)

    @contextmanager
    def beside(self, after: Mark | None = None) -> Iterator[None]:
        """Inside, the second stream is the current one; it waits for the mark, or what the first was given so far."""
        import torch

        if after is None:
            self._side.wait_stream(torch.cuda.current_stream(self._device))
        else:
            self._side.wait_event(_event_of(after))
        with torch.cuda.stream(self._side):
            yield

    def rejoin(self) -> None:
        """The current stream waits for the second one."""
        import torch

        torch.cuda.current_stream(self._device).wait_stream(self._side)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph. The calls are made once beforehand: kernels must be loaded before a capture begins."""
        import torch

        try:
            enqueue()
        finally:
            # Jobs of a call that failed may go only when nothing that was enqueued will start them any more.
            self.synchronise()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            enqueue()
        return graph.replay

    def synchronise(self) -> None:
        """Waits for the stream. Raises DeviceError for an error of any call before; the device is then lost."""
        try:
            self._stream.synchronize()
        except RuntimeError as error:
            raise DeviceError(f"the GPU has failed: {_first_line(error)}") from None


class _EventMark:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def wait(self) -> None:
        """Blocks the calling thread, without the GIL."""
        self.event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        """Time on the device between the two events."""
        return float(_event_of(earlier).elapsed_time(self.event)) / 1e3


def _event_of(mark: Mark) -> torch.cuda.Event:
    if not isinstance(mark, _EventMark):
        raise TypeError("the mark is another device's")
    return mark.event


def _give_up_unused() -> None:
    """Gives back what torch keeps of models that are gone: one tensor that waits for the collector keeps an arena."""
    import gc

    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
