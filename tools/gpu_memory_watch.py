"""Watches what another process holds on a GPU, as the driver reports it. `measure_gpu.py` runs it beside itself.

A process of its own, so that watching takes no turns from what is watched. A line on its standard input asks for the
most bytes since the line before; it answers with that number.
"""

from __future__ import annotations

import argparse
import select
import subprocess
import sys
from types import TracebackType

from powerinfer_py.runtime.hybrid.cuda_driver import CudaDriver, Monitor

INTERVAL_S = 0.002


class Watch:
    """The watching process, for `pid` on GPU number `index`."""

    def __init__(self, pid: int, index: int = 0) -> None:
        command = [sys.executable, __file__, str(pid), str(index)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peak_bytes()

    def peak_bytes(self) -> int:
        """The most bytes since the last call."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("the watching process has no pipes")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()


def main(argv: list[str] | None = None) -> int:
    """Answers until its standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pid", type=int)
    parser.add_argument("index", type=int)
    args = parser.parse_args(argv)
    monitor, peak = Monitor(CudaDriver().bus_id(args.index)), 0
    while True:
        peak = max(peak, monitor.process_bytes(args.pid) or 0)
        if select.select([sys.stdin], [], [], INTERVAL_S)[0]:
            if not sys.stdin.readline():
                return 0
            print(peak, flush=True)
            peak = 0


if __name__ == "__main__":
    sys.exit(main())
