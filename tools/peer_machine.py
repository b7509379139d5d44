"""What the machine is, and how fast it reads memory: the yardstick beside which speeds are reported.

The probe is a lower bound of what memory gives, not a benchmark of it: each thread adds up the 64-bit words of its own
part of a buffer far larger than the caches, with numpy, which lets go of the interpreter's lock. Run as a script, it
prints one JSON line.

    python tools/peer_machine.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

BUFFER_BYTES = 2 << 30
PASSES = 7


def read_bandwidth(threads: int, buffer_bytes: int = BUFFER_BYTES) -> list[float]:
    """GB/s (10^9 bytes) of each pass over the buffer."""
    words = np.ones(buffer_bytes // 8, np.int64)
    parts = np.array_split(words, threads)
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.sum, parts))
        for _ in range(PASSES):
            started = perf_counter()
            total = sum(int(part) for part in pool.map(np.sum, parts))
            rates.append(words.nbytes / (perf_counter() - started) / 1e9)
            if total != len(words):
                raise AssertionError("the sum is wrong")
    return rates


def describe() -> dict[str, object]:
    """CPU, cores, memory and system."""
    return {
        "cpu": cpu_model(),
        "logical_cores": os.cpu_count(),
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def cpu_model() -> str:
    """The processor's name, as /proc has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(argv: list[str] | None = None) -> int:
    """Prints the probe's result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mib", type=int, default=BUFFER_BYTES >> 20, help="size of the buffer (default: %(default)s)")
    options = parser.parse_args(argv)
    rates = read_bandwidth(options.threads, options.mib << 20)
    print(json.dumps({"engine": "read bandwidth", "gb_per_s": max(rates), "passes": rates}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
