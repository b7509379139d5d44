"""What the options say about GPUs, held against the machine.

This version computes on the CPU alone; nothing here initialises CUDA unless an option names a GPU.
"""

from __future__ import annotations

from powerinfer_py.config import RuntimeOptions
from powerinfer_py.errors import DeviceError
from powerinfer_py.runtime.hybrid.device import Device


def find_device(options: RuntimeOptions) -> tuple[Device | None, list[str]]:
    """The device that the options want, and lines that tell the user what became of them.

    Raises DeviceError for a GPU number that does not exist.
    """
    asks_for_gpu = options.vram_budget not in (None, 0.0)
    if options.main_gpu is None and not asks_for_gpu and options.gpu_index is None:
        return None, []
    import torch

    n_devices = torch.cuda.device_count()
    if options.main_gpu is not None and options.main_gpu >= n_devices:
        raise DeviceError(f"no such device: GPU {options.main_gpu} (CUDA devices found: {n_devices})")
    reason = "no CUDA device was found" if n_devices == 0 else "this version computes on the CPU only"
    notices = []
    if asks_for_gpu:
        notices.append(f"VRAM budget: {reason}, so it has nothing to apply to; everything runs on the CPU")
    if options.gpu_index is not None:
        notices.append(f"GPU index: {reason}, so no neurons are placed by it")
    return None, notices
