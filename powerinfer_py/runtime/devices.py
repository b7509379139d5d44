"""What the options say about GPUs, held against the machine. CUDA is initialised only where a budget asks for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from powerinfer_py import env
from powerinfer_py.config import RuntimeOptions
from powerinfer_py.errors import DeviceError
from powerinfer_py.placement.budget import SAFETY_MARGIN_BYTES
from powerinfer_py.placement.problem import Rates
from powerinfer_py.placement.rates import LayerProbe, machine_rates
from powerinfer_py.runtime.hybrid.device import Arrangement, Device


def find_device(options: RuntimeOptions) -> tuple[Device | None, list[str]]:
    """The device that the options want, and lines that tell the user what became of them.

    Raises DeviceError for a GPU number that does not exist, and for a GPU that cannot be used.
    """
    asks_for_gpu = options.vram_budget not in (None, 0.0)
    asks_for_index = options.gpu_index is not None or options.reset_gpu_index or options.disable_gpu_index
    if options.main_gpu is None and not asks_for_gpu and not asks_for_index:
        return None, []
    import torch

    n_devices = torch.cuda.device_count()
    if options.main_gpu is not None and options.main_gpu >= n_devices:
        raise DeviceError(f"no such device: GPU {options.main_gpu} (CUDA devices found: {n_devices})")
    if asks_for_gpu and n_devices:
        return _cuda_device(options.main_gpu or 0), []
    reason = "no CUDA device was found" if n_devices == 0 else "without a VRAM budget no GPU is used"
    notices = []
    if asks_for_gpu:
        notices.append(f"VRAM budget: {reason}, so it has nothing to apply to; everything runs on the CPU")
    if options.gpu_index is not None:
        notices.append(f"GPU index: {reason}, so no neurons are placed by it")
    for name, given in (("reset", options.reset_gpu_index), ("disable", options.disable_gpu_index)):
        if given:
            notices.append(f"--{name}-gpu-index: {reason}, so it changes nothing")
    return None, notices


def rates_of_this_machine(n_threads: int, kind: Callable[[Arrangement], str] | None = None) -> Rates:
    """Of its first GPU, with as much of what is free there as is needed, and of its CPU with so many threads; what
    stands in the way of measuring a GPU that is there becomes the source of figures that are assumed.

    kind: of a model's layers (`probe_kind`); their times are used where such a model has run here, and not measured.
    """
    import torch

    if not torch.cuda.is_available():
        return machine_rates(n_threads)
    try:
        device = _cuda_device(0)
        layers = None if kind is None else LayerProbe(kind(device.arrangement), lambda: "it has not run here yet")
        return device.rates(n_threads, device.memory().free_bytes - SAFETY_MARGIN_BYTES, layers)
    except DeviceError as error:
        return replace(machine_rates(n_threads), source=f"CPU measured; GPU assumed: {error}")


def _cuda_device(index: int) -> Device:
    from powerinfer_py.kernels.triton.availability import missing_requirement
    from powerinfer_py.runtime.hybrid.cuda_device import CudaDevice

    if (missing := missing_requirement()) is not None:
        raise DeviceError(missing)
    return CudaDevice(index, Arrangement(env.forced_step() or Arrangement.TWO_NODES))
