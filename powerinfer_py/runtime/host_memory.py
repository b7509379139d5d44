"""Pinning weights in memory, for `--mlock`."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import numpy.typing as npt

from powerinfer_py.errors import DeviceError


def lock_in_memory(data: npt.NDArray[np.uint8]) -> None:
    """Keeps the pages of `data` from being swapped or dropped. Raises DeviceError where the system refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes)) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise DeviceError(f"cannot lock {data.nbytes} bytes in memory ({reason}): raise `ulimit -l` or drop --mlock")
