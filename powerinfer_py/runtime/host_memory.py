"""How much memory there is for weights, and pinning them in it (`--mlock`)."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import numpy.typing as npt
import psutil

from powerinfer_py.errors import DeviceError

# Left to the system and to everything that is not weights.
_MARGIN_BYTES = 1 << 30


def fits_in_memory(n_bytes: int) -> bool:
    """Whether a copy of `n_bytes` of weights fits what is available now, with a margin."""
    return n_bytes + _MARGIN_BYTES <= int(psutil.virtual_memory().available)


def lock_in_memory(data: npt.NDArray[np.uint8]) -> None:
    """Keeps the pages of `data` from being swapped or dropped. Raises DeviceError where the system refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes)) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise DeviceError(f"cannot lock {data.nbytes} bytes in memory ({reason}): raise `ulimit -l` or drop --mlock")
