"""The most memory this process held, on the host as Linux counts it and on a GPU as CUDA does.

On the host: pages in memory, those of mapped files included, since `forget_peaks`. Where /proc cannot be read or its
peak not be reset the answer is None and never a figure of something else.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_SELF = Path("/proc/self")
# Written into clear_refs it sets the peak to what is resident now (Linux 4.0 and newer).
_RESET_PEAK = "5"


def forget_peaks() -> bool:
    """Starts a new period; returns whether the host's peak could be set back."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        (_SELF / "clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def host_peak_bytes() -> int | None:
    """Most bytes resident since `forget_peaks`; None where the system does not say."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", (_SELF / "status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def device_peak_bytes() -> int:
    """Most bytes of GPU memory that torch reserved since `forget_peaks`; 0 where CUDA was never initialised."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_reserved())
