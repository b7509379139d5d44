"""One run of `powerinfer-bench`: probes the bandwidth, loads each combination, measures its tests, prints its rows."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from powerinfer_py import __version__
from powerinfer_py.cli.bench.combinations import Combination, combinations, wanted_tests
from powerinfer_py.cli.bench.rows import csv_head, csv_row, markdown_head, markdown_row, row_dict
from powerinfer_py.cli.inspect.system import inspect_system
from powerinfer_py.cli.streams import remark
from powerinfer_py.errors import printable
from powerinfer_py.generation.benchmark import BenchmarkTest, measure
from powerinfer_py.generation.llm import LLM
from powerinfer_py.gguf import open_gguf
from powerinfer_py.runtime.memory_bandwidth import read_bandwidth
from powerinfer_py.runtime.peak_memory import forget_peaks
from powerinfer_py.runtime.threads import default_threads


def execute(arguments: argparse.Namespace, argv: Sequence[str] | None) -> int:
    """The exit code. Raises the package's errors for models and options that cannot run."""
    told: set[str] = set()
    rows: list[dict[str, Any]] = []
    wanted = wanted_tests(arguments)
    for combination in combinations(arguments, default_threads()):
        # What the last model held must be gone before the peak of the next one is taken.
        gc.collect()
        passes = read_bandwidth(combination.threads, arguments.probe_mib << 20)
        for row in _rows(combination, wanted, passes, arguments, told):
            _print_row(row, arguments.output, first=not rows)
            rows.append(row)
    result = {
        "benchmark": "powerinfer-bench",
        "version": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv if argv is None else ["powerinfer-bench", *argv]),
        "machine": asdict(inspect_system()),
        "rows": rows,
    }
    print(json.dumps(result, allow_nan=False))
    return 0


def _rows(
    combination: Combination,
    wanted: Sequence[BenchmarkTest],
    passes: list[float],
    arguments: argparse.Namespace,
    told: set[str],
) -> Iterator[dict[str, Any]]:
    """A row for every test, as it is measured. passes: GB/s of the probe. told: notices that were shown already."""
    forget_peaks()
    started = perf_counter()
    context_length = max(test.context_length for test in wanted)
    options = combination.llm_options(context_length)
    with LLM(combination.model, **options) as llm, open_gguf(combination.model) as file:
        load_s = perf_counter() - started
        for notice in llm.notices:
            if notice not in told:
                told.add(notice)
                remark(printable(notice, 400))
        for test in wanted:
            measured = measure(llm, file.tensors, test, repeats=arguments.repetitions, warm_up=not arguments.no_warmup)
            yield row_dict(combination, measured, passes, load_s)


def _print_row(row: dict[str, Any], form: str, *, first: bool) -> None:
    if form == "json":
        return
    if first:
        print(markdown_head() if form == "md" else csv_head(row))
    print(markdown_row(row) if form == "md" else csv_row(row), flush=True)
