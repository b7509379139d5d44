"""Compares how fast `powerinfer-bench` and `powerinfer-run` decode, in turns within one process.

    python tools/compare_bench_and_run.py m.powerinfer.gguf --json docs/results/bench_and_run.json

The model is loaded once. A round decodes `--n` tokens as the benchmark does, and as many with the loop of
`powerinfer-run`, from its own parser to the text that goes to standard output (here: nowhere); which comes first
changes from round to round. Rates are those of forwards, as both commands print them. A ratio is the benchmark's rate
over the other's. The last line is one JSON object with every round.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

from result_header import header

from powerinfer_py import LLM
from powerinfer_py.cli.command import run_command
from powerinfer_py.cli.run.parser import parse
from powerinfer_py.cli.run.settings import sampling_params
from powerinfer_py.cli.run.signals import Signals
from powerinfer_py.cli.run.texts import run_texts
from powerinfer_py.generation.benchmark import BenchmarkTest, Phase, measure
from powerinfer_py.gguf import TensorInfo, open_gguf
from powerinfer_py.predictor.files import write_json

SCRIPT = "compare_bench_and_run"
PROMPT = "The"


def run_rate(llm: LLM, n: int, seed: int) -> float:
    """Tokens a second of the loop of powerinfer-run; its text goes nowhere."""
    # The first token comes out of the prompt's forward.
    args = parse(["-p", PROMPT, "-n", str(n + 1), "--ignore-eos", "-s", str(seed)])
    llm.stats.clear()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), Signals() as signals:
        run_texts(llm, [PROMPT], sampling_params(args), args, signals)
    if llm.stats.decode_tokens != n:
        raise AssertionError(f"{llm.stats.decode_tokens} tokens were decoded, expected {n}")
    return llm.stats.decode_rate


def bench_rate(llm: LLM, tensors: Mapping[str, TensorInfo], n: int, *, warm_up: bool) -> float:
    """Tokens a second as powerinfer-bench measures them."""
    return measure(llm, tensors, BenchmarkTest(Phase.DECODE, n), warm_up=warm_up).rates[0]


def compare(model: Path, n: int, rounds: int, threads: int, sparsity: str) -> dict[str, Any]:
    """Rates of every round and the spread of the ratios. Raises PowerInferError for a model that cannot run."""
    samples: dict[str, list[float]] = {"bench": [], "run": []}
    with (
        open_gguf(model) as file,
        LLM(model, threads=threads, sparsity=sparsity, max_batch=1, context_length=n + 64) as llm,
    ):
        bench_rate(llm, file.tensors, n, warm_up=True)
        run_rate(llm, n, 0)
        for number in range(rounds):
            for who in ("bench", "run")[:: 1 if number % 2 else -1]:
                is_bench = who == "bench"
                rate = bench_rate(llm, file.tensors, n, warm_up=False) if is_bench else run_rate(llm, n, number)
                samples[who].append(rate)
    ratios = [bench / run for bench, run in zip(samples["bench"], samples["run"], strict=True)]
    spread = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
    return {"tokens": n, "rounds": rounds, "bench_against_run": spread, "samples": samples}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--n", type=int, default=32, help="tokens of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sparsity", default="auto", choices=("auto", "predictor", "exact", "dense"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)

    def run() -> int:
        head = header(f"tools/{SCRIPT}.py", argv)
        measured = compare(options.model, options.n, options.rounds, options.threads, options.sparsity)
        result = {**head, "model": options.model.name, "threads": options.threads, **measured}
        if options.json is not None:
            write_json(options.json, result)
        print(json.dumps(result))
        return 0

    return run_command(SCRIPT, run)


if __name__ == "__main__":
    sys.exit(main())
