"""Runs `powerinfer-bench` and keeps what it measured as a result file, with the header that it cannot know of.

    python tools/record_bench.py --json docs/results/bench-NAME.json -m m.powerinfer.gguf -p 128 -n 48 -r 3 -t 2

Every flag but --json goes to the command, whose table is shown as it grows. An installed package does not know its
commit; this checkout does. The last line is one JSON object, the same as in the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from result_header import header, without_folders

from powerinfer_py.cli.command import run_command
from powerinfer_py.errors import PowerInferError
from powerinfer_py.predictor.files import write_json

SCRIPT = "record_bench"


def record(arguments: Sequence[str], argv: Sequence[str] | None) -> dict[str, Any]:
    """The result file's content. arguments: of the command. Raises PowerInferError where it fails; it says why."""
    head = header(f"tools/{SCRIPT}.py", argv)
    command = [sys.executable, "-m", "powerinfer_py.cli.bench", *arguments]
    lines = []
    # The table goes to the screen as rows come; the last line alone is the result.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("|"):
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode or not lines:
        raise PowerInferError(f"powerinfer-bench ended with exit code {process.returncode}")
    measured = json.loads(lines[-1])
    rows = [{**row, "model": without_folders(row["model"])} for row in measured["rows"]]
    return {**head, "benchmark": measured["benchmark"], "kernels": measured["machine"]["kernels"], "rows": rows}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    own, arguments = parser.parse_known_args(argv)

    def run() -> int:
        result = record(arguments, argv)
        write_json(own.json, result)
        print(json.dumps(result))
        return 0

    return run_command(SCRIPT, run)


if __name__ == "__main__":
    raise SystemExit(main())
