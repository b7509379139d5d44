"""Runs `make fuzz`, `make soak` and `make mutants` and keeps what came of them: docs/results/long_runs.json.

    python tools/record_long_runs.py fuzz soak mutants --json docs/results/long_runs.json

What the targets print goes to stderr as it comes. Figures are read from it: inputs that were tried and finds of the
fuzzers, tests that passed, checks that were disabled and went unnoticed. A target that is not named keeps its last run.
A run that fails is not kept, and the exit code is 1. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from result_header import ROOT, header

from powerinfer_py.cli.command import run_command
from powerinfer_py.errors import PowerInferError
from powerinfer_py.predictor.files import read_json, write_json

SCRIPT = "record_long_runs"
TARGETS = ("fuzz", "soak", "mutants")
# What a target prints, and the names of the numbers in it; numbers of several lines are added up.
FIGURES = {
    "fuzz": {"inputs": r"^stat::number_of_executed_units:\s+(\d+)"},
    "soak": {"passed": r"(\d+) passed"},
    "mutants": {"disabled": r"^(\d+) checks disabled", "unnoticed": r"checks disabled, (\d+) went unnoticed"},
}


def figures(target: str, output: str) -> dict[str, int]:
    """The figures in a target's output. Raises PowerInferError where one of them is missing."""
    result = {}
    for name, pattern in FIGURES[target].items():
        numbers = [int(number) for number in re.findall(pattern, output, re.MULTILINE)]
        if not numbers:
            raise PowerInferError(f"make {target} says nothing of what was {name}")
        result[name] = sum(numbers)
    return result


def run_target(target: str) -> tuple[str, float]:
    """What `make TARGET` prints, and its seconds. Raises PowerInferError where it fails."""
    lines, started = [], perf_counter()
    command = ["make", "--no-print-directory", "-C", str(ROOT), target]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        raise PowerInferError(f"make {target} ended with exit code {process.returncode}")
    return "".join(lines), perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", choices=TARGETS)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    options = parser.parse_args(argv)

    def run() -> int:
        head = header(f"tools/{SCRIPT}.py", argv)
        runs: dict[str, Any] = read_json(options.json)["runs"] if options.json.exists() else {}
        for target in options.targets:
            output, seconds = run_target(target)
            when = {name: head[name] for name in ("commit", "date")}
            runs[target] = {**when, "elapsed_s": seconds, **figures(target, output)}
            write_json(options.json, {**head, "runs": runs})
        print(json.dumps({**head, "runs": runs}))
        return 0

    return run_command(SCRIPT, run)


if __name__ == "__main__":
    sys.exit(main())
