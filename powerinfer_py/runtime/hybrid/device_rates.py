"""Measures a device for the solver, inside the memory that it is given for that, all of which it gives back.

Not of any model: bytes moved within the device's memory, and a small copy down and up that is waited for.
"""

from __future__ import annotations

import math
from time import perf_counter

from powerinfer_py.placement.device_bytes import ALIGNMENT
from powerinfer_py.runtime.hybrid.device import Device

PROBE_BYTES = 256 << 20
# Less would measure a cache: an RTX 5090's holds 96 MiB.
LEAST_PROBE_BYTES = 128 << 20
# What a layer's input and its cold neurons as bits take, for a token of a large model.
_EXCHANGED_BYTES = 16 << 10
_PASSES = 20


def probe_device(device: Device, free_bytes: int) -> tuple[float, float] | None:
    """(bytes a second, seconds to change sides and back): the best of some passes over at most `free_bytes`.

    None where those are fewer than `LEAST_PROBE_BYTES`. Nothing else may lie in the device's memory.
    """
    n_bytes = min(PROBE_BYTES, free_bytes)
    if n_bytes < LEAST_PROBE_BYTES:
        return None
    half = (n_bytes - _EXCHANGED_BYTES) // (2 * ALIGNMENT) * ALIGNMENT
    device.open(2 * half + _EXCHANGED_BYTES)
    try:
        with device.enqueuing():
            return _measured(device, half)
    finally:
        device.release()


def _measured(device: Device, half: int) -> tuple[float, float]:
    first, second = device.allocate(half), device.allocate(half)
    there, here = device.allocate(_EXCHANGED_BYTES), device.host_buffer(_EXCHANGED_BYTES)
    moving = changing = math.inf
    for _ in range(_PASSES):
        device.synchronise()
        begun = perf_counter()
        device.copy(first, second)
        device.synchronise()
        moved = perf_counter()
        device.copy(here, there)
        device.copy(there, here)
        device.synchronise()
        moving, changing = min(moving, moved - begun), min(changing, perf_counter() - moved)
    # Each byte of one half is read, each of the other written.
    return 2 * half / moving, changing
