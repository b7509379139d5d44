"""How fast this machine reads memory: the yardstick beside which speeds are reported.

A lower bound of what memory gives, not a benchmark of it: each thread adds up the 64-bit words of its own part of a
buffer far larger than the caches, with numpy, which lets go of the interpreter's lock. Other access patterns may reach
a little more.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np

from powerinfer_py.errors import OptionError
from powerinfer_py.runtime.host_memory import fits_in_memory

# Larger than any cache in use: the largest EPYC has 1.1 GB of L3, of which one process's threads reach a part.
BUFFER_BYTES = 2 << 30
PASSES = 7


def read_bandwidth(threads: int, buffer_bytes: int = BUFFER_BYTES, passes: int = PASSES) -> list[float]:
    """GB/s (10^9 bytes) of each pass over the buffer, after one that is not counted.

    Raises OptionError where the buffer does not fit the memory that is available.
    """
    if not fits_in_memory(buffer_bytes):
        raise OptionError(f"the bandwidth probe needs {buffer_bytes / 2**30:.1f} GiB, more than is available")
    words = np.ones(max(1, buffer_bytes // 8), np.int64)
    parts = np.array_split(words, threads)
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.sum, parts))
        for _ in range(passes):
            started = perf_counter()
            total = sum(int(part) for part in pool.map(np.sum, parts))
            rates.append(words.nbytes / (perf_counter() - started) / 1e9)
            if total != len(words):
                raise AssertionError("the sum is wrong")
    return rates
