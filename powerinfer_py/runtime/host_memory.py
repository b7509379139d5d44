"""How much memory there is for weights, and pinning them in it (`--mlock`)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from powerinfer_py.errors import DeviceError
from powerinfer_py.runtime.system_files import as_integer, control_groups, read_text

# Left to the system and to everything that is not weights: of what is available at most this share, so that a small
# model runs in a small container.
_MARGIN_BYTES = 1 << 30
_MARGIN_SHARE = 8


def fits_in_memory(n_bytes: int) -> bool:
    """Whether a copy of `n_bytes` of weights fits what is available now, with a margin."""
    available = available_bytes()
    return n_bytes + min(_MARGIN_BYTES, available // _MARGIN_SHARE) <= available


def available_bytes(root: Path = Path("/")) -> int:
    """What this process may still take without swapping: of the machine's memory, and of what its control groups grant.

    root: where the trees `sys` and `proc` hang.
    """
    groups = control_groups("memory", root)
    rooms = [int(psutil.virtual_memory().available)]
    for group in groups.unified:
        # Beyond `high` the system does not end a process but slows it down to the speed of its disk.
        limits = [group / "memory.max", group / "memory.high"]
        rooms += _rooms(limits, group / "memory.current", group / "memory.stat", prefix="")
    for group in groups.separate:
        # Its plain counters leave out the groups below, whose memory counts towards the limit.
        usage = group / "memory.usage_in_bytes"
        rooms += _rooms([group / "memory.limit_in_bytes"], usage, group / "memory.stat", prefix="total_")
    return max(0, min(rooms))


def lock_in_memory(data: npt.NDArray[np.uint8]) -> None:
    """Keeps the pages of `data` from being swapped or dropped. Raises DeviceError where the system refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes)) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise DeviceError(f"cannot lock {data.nbytes} bytes in memory ({reason}): raise `ulimit -l` or drop --mlock")


def _rooms(limits: Sequence[Path], usage: Path, statistics: Path, prefix: str) -> list[int]:
    """Bytes that a group has left under each of its limits, cached pages of files counting as free: they are dropped
    when memory is wanted. Those of a locked file are neither active nor inactive.
    """
    used = as_integer(read_text(usage))
    known = [limit for limit in (as_integer(read_text(path)) for path in limits) if limit is not None]
    if used is None or not known:
        return []
    cached = (f"{prefix}inactive_file", f"{prefix}active_file")
    lines = (line.partition(" ") for line in (read_text(statistics) or "").splitlines())
    droppable = sum(as_integer(number) or 0 for name, _, number in lines if name in cached)
    return [limit - used + min(used, droppable) for limit in known]
