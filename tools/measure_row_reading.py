"""Measures how fast the kernels read rows of weights: a share of them that lies apart, and all of them side by side.

    python tools/measure_row_reading.py --json docs/results/row_reading.json

One token times matrices that exceed the caches together, for each weight type, number of threads and share; a fresh
random set of rows for each matrix. GB/s are the bytes of the rows that were computed; beside them stands a bare read of
a buffer by as many threads (`powerinfer_py.runtime.memory_bandwidth`). Shares take turns, so that a slow moment meets
all of them. The last line is one JSON object with the seconds of every pass. It measures; it asserts nothing but that
the rows asked for were computed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from result_header import header

from powerinfer_py.cli.command import run_command
from powerinfer_py.gguf.types import GGMLType, row_bytes
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.matrix import Matrix
from powerinfer_py.predictor.files import write_json
from powerinfer_py.runtime.memory_bandwidth import read_bandwidth

SCRIPT = "measure_row_reading"
TYPES = ("Q4_0", "Q8_0", "Q6_K", "F16")
SHARES = (0.05, 0.1, 0.3, 0.8, 1.0)


def make_matrices(kernels: NativeKernels, ggml_type: GGMLType, rows: int, cols: int, total_bytes: int) -> list[Matrix]:
    """As many matrices as come to `total_bytes`, of random bytes below 60, which are finite numbers in every type."""
    n_bytes = rows * row_bytes(ggml_type, cols)
    data = np.random.default_rng(1).integers(0, 60, n_bytes, dtype=np.uint8)
    n = max(1, -(-total_bytes // n_bytes))
    return [kernels.matrix("rows", ggml_type, rows, cols, data.copy(), pack=True) for _ in range(n)]


def time_pass(kernels: NativeKernels, matrices: Sequence[Matrix], share: float, generator: torch.Generator) -> float:
    """Seconds of one token times every matrix, `share` of its rows. AssertionError: others were computed."""
    x = torch.randn(1, matrices[0].cols, generator=generator)
    n = round(share * matrices[0].rows)
    masks = [torch.zeros(1, matrix.rows, dtype=torch.bool) for matrix in matrices]
    for mask in masks:
        mask[0, torch.randperm(mask.shape[1], generator=generator)[:n]] = True
    started = perf_counter()
    if share == 1.0:
        for matrix in matrices:
            kernels.linear(matrix, x)
        return perf_counter() - started
    n_rows = sum(kernels.linear_masked(matrix, x, mask)[1] for matrix, mask in zip(matrices, masks, strict=True))
    elapsed = perf_counter() - started
    if n_rows != n * len(matrices):
        raise AssertionError(f"the kernels computed {n_rows} rows, {n * len(matrices)} were asked for")
    return elapsed


def measure(
    kernels: NativeKernels, ggml_type: GGMLType, rows: int, cols: int, total_bytes: int, repeats: int
) -> list[dict[str, Any]]:
    """A row for each share: GB/s, and seconds of each pass after one that is not counted."""
    matrices = make_matrices(kernels, ggml_type, rows, cols, total_bytes)
    generator = torch.Generator().manual_seed(1)
    seconds: dict[float, list[float]] = {share: [] for share in SHARES}
    for number in range(repeats + 1):
        for share, passes in seconds.items():
            elapsed = time_pass(kernels, matrices, share, generator)
            if number:
                passes.append(elapsed)
    result = []
    for share, passes in seconds.items():
        n_bytes = len(matrices) * round(share * rows) * row_bytes(ggml_type, cols)
        rates = [n_bytes / elapsed / 1e9 for elapsed in passes]
        spread = {"median": median(rates), "min": min(rates), "max": max(rates)}
        row = {"type": ggml_type.name, "threads": kernels.threads, "share": share, "bytes": n_bytes}
        result.append({**row, "gb_per_s": spread, "seconds": passes})
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=11008)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--mib", type=int, default=256, help="of a type's matrices together (default: %(default)s)")
    parser.add_argument("--probe-mib", type=int, default=1024, help="the bare read's buffer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)

    def run() -> int:
        head = header(f"tools/{SCRIPT}.py", argv)
        # torch's own threads spin for a while after they made a mask and would take cores from the kernels under test.
        torch.set_num_threads(1)
        rows, probes, isa = [], [], ""
        for threads in options.threads:
            passes = read_bandwidth(threads, options.probe_mib << 20)
            probes.append({"threads": threads, "gb_per_s": {"median": median(passes)}, "samples": passes})
            kernels = NativeKernels(threads)
            isa = kernels.isa
            for name in TYPES:
                shape = (options.rows, options.cols, options.mib << 20, options.repeats)
                rows += measure(kernels, GGMLType[name], *shape)
        result = {**head, "shape": [options.rows, options.cols], "isa": isa, "bare_reads": probes, "rows": rows}
        if options.json is not None:
            write_json(options.json, result)
        print(json.dumps(result))
        return 0

    return run_command(SCRIPT, run)


if __name__ == "__main__":
    sys.exit(main())
