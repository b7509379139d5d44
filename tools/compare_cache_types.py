"""Compares KV caches in float16 and Q8_0: tokens a second and bytes, at several depths, in turns within one process.

    python tools/compare_cache_types.py SmolLM2-135M-Instruct.Q4_1.gguf --json docs/results/cache_types.json

The model is loaded once with each type. At each depth the caches hold as many random tokens, and each round decodes
`--n` tokens with either; rates are those of forwards, as `powerinfer-bench` measures them. The last line is one JSON
object with the seconds of every round.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from result_header import header

from powerinfer_py import LLM
from powerinfer_py.cli.command import run_command
from powerinfer_py.config import CacheType
from powerinfer_py.generation.benchmark import BenchmarkTest, Phase, cache_position_bytes, measure
from powerinfer_py.gguf import open_gguf
from powerinfer_py.predictor.files import write_json

SCRIPT = "compare_cache_types"


def compare(model: Path, depths: Sequence[int], n: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """A row for each depth and type. Raises PowerInferError for a model or a depth that cannot run."""
    with ExitStack() as stack:
        tensors = stack.enter_context(open_gguf(model)).tensors
        tests = [BenchmarkTest(Phase.DECODE, n, depth) for depth in depths]
        options = {"threads": threads, "max_batch": 1, "context_length": max(test.context_length for test in tests)}
        llms = {
            str(kind): stack.enter_context(LLM(model, cache_type_k=kind, cache_type_v=kind, **options))
            for kind in CacheType
        }
        rows = []
        for test in tests:
            seconds: dict[str, list[float]] = {kind: [] for kind in llms}
            for number in range(rounds):
                for kind, llm in llms.items():
                    seconds[kind] += measure(llm, tensors, test, warm_up=not number).seconds
            for kind, passes in seconds.items():
                rates = [n / elapsed for elapsed in passes]
                spread = {"median": median(rates), "min": min(rates), "max": max(rates)}
                cache_bytes = cache_position_bytes(llms[kind]) * (max(1, test.depth) + n)
                row = {"depth": test.depth, "type": kind, "tokens": n, "tokens_per_s": spread}
                rows.append({**row, "cache_bytes": cache_bytes, "seconds": passes})
        return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 2000])
    parser.add_argument("--n", type=int, default=32, help="tokens of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)

    def run() -> int:
        head = header(f"tools/{SCRIPT}.py", argv)
        rows = compare(options.model, options.depths, options.n, options.rounds, options.threads)
        result = {**head, "model": options.model.name, "threads": options.threads, "rows": rows}
        if options.json is not None:
            write_json(options.json, result)
        print(json.dumps(result))
        return 0

    return run_command(SCRIPT, run)


if __name__ == "__main__":
    sys.exit(main())
