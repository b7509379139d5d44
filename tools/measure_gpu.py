"""Measures a model on this machine's GPU: speed at several budgets, against the CPU alone, and the memory it takes.

    python tools/measure_gpu.py m.powerinfer.gguf --json docs/results/gpu.json
    python tools/measure_gpu.py m.powerinfer.gguf --whole --json docs/results/gpu-70b.json

One model after the other in one process, each time decoding `--n` tokens a few times and running a prompt of
`--prompt` tokens: on the CPU alone; whole on the GPU, sparse and dense; with 10, 30 and 60 % of the bytes of all FFNs
beside everything else, the 30 % in every arrangement of the step; and at budgets down to the smallest, of which only
memory is reported. What the process holds is read from the driver every 2 ms by another process, from loading to the
end of each case. The device's bandwidth is that of reading and writing 1 GiB. The last line is one JSON object, and
every case is printed when it is done. --whole: the whole model on the GPU alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from gpu_memory_watch import Watch
from result_header import header

from powerinfer_py import LLM
from powerinfer_py.config import RuntimeOptions
from powerinfer_py.generation.benchmark import BenchmarkTest, Phase, measure
from powerinfer_py.gguf import open_gguf
from powerinfer_py.placement.budget import GIB
from powerinfer_py.runtime.devices import find_device
from powerinfer_py.runtime.hybrid.device import Arrangement

SHARES = (0.1, 0.3, 0.6)
# Of the FFNs' bytes, beside everything else; below 0 of everything else.
SWEPT = (0.8, 0.45, 0.2, 0.05, 0.0, -0.3, -0.6)


def device_bandwidth() -> float:
    """Bytes a second that a copy within the device reads and writes: the best of some."""
    source = torch.empty(1 << 29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        best = max(best, 2 * source.numel() / (begin.elapsed_time(end) / 1e3))
    del source, target
    torch.cuda.empty_cache()
    return best


@contextmanager
def _step(arrangement: Arrangement | None) -> Iterator[None]:
    """Inside, models are loaded for steps of this arrangement; None for the package's own."""
    if arrangement is None:
        yield
        return
    os.environ["POWERINFER_STEP"] = str(arrangement)
    try:
        yield
    finally:
        del os.environ["POWERINFER_STEP"]


class Cases:
    """Cases of one model, and what was found of those that have run, saved after each."""

    def __init__(self, args: argparse.Namespace, watch: Watch, bandwidth: float, save: Callable[[Cases], None]) -> None:
        self._args = args
        self._save = save
        self._watch = watch
        self._bandwidth = bandwidth
        self.found: list[dict[str, Any]] = []

    def run(self, name: str, *, prompt: bool = True, decode: bool = True, **options: Any) -> dict[str, Any]:
        """Loads the model, runs it, and reports; options: of `LLM`. vram_budget in bytes."""
        args = self._args
        arrangement = options.pop("arrangement", None)
        budget = options.pop("budget_bytes", None)
        if budget is not None:
            options["vram_budget"] = budget / GIB
        self._watch.peak_bytes()
        started = perf_counter()
        with _step(arrangement):
            llm = LLM(args.model, context_length=args.prompt + 64, max_batch=1, threads=args.threads, **options)
        with llm, open_gguf(args.model) as file:
            case: dict[str, Any] = {"case": name, "sparsity": str(llm.sparsity), "load_s": perf_counter() - started}
            if arrangement is not None:
                case["arrangement"] = str(arrangement)
            if decode:
                # Half-way into the context, as the solver expects of a token.
                test = BenchmarkTest(Phase.DECODE, args.n, args.prompt // 2)
                found = measure(llm, file.tensors, test, repeats=args.repeats, temperature=0.0).to_dict()
                found["share_of_bandwidth"] = found["gb_per_s"] * 1e9 / self._bandwidth
                case["decode"] = found
            if prompt:
                test = BenchmarkTest(Phase.PROMPT, args.prompt)
                case["prompt"] = measure(llm, file.tensors, test, warm_up=decode).to_dict()
            if llm.engine.hybrid is not None:
                self._add_memory(case, llm)
            case["notices"] = [notice for notice in llm.notices if "activation statistics" in notice]
        del llm
        gc.collect()
        self.found.append(case)
        self._save(self)
        print(_brief(case), flush=True)
        return case

    def _add_memory(self, case: dict[str, Any], llm: LLM) -> None:
        plan, vram = llm.engine.hybrid.plan, llm.stats.vram  # type: ignore[union-attr]
        expected = vram["expected_s"]
        case |= {
            "budget_bytes": vram["budget_bytes"],
            "driver_peak_bytes": self._watch.peak_bytes(),
            "ledger": {line.name: line.reserved_bytes for line in plan.ledger.table()},
            "neurons_on_gpu": vram["neurons_on_gpu_share"],
            "captured": vram["captured_share"],
            "blocks_on_gpu": vram["blocks_on_gpu"],
            "head_on_gpu": vram["head_on_gpu"],
            "prompt_chunk": vram["prompt_chunk"],
            "expected_tokens_per_s": None if expected is None else 1 / expected,
        }
        sizes, fixed = plan.sizes, plan.fixed
        context = next(line.reserved_bytes for line in plan.ledger.table() if line.name == "context and modules")
        blocks = sum(layer.block_bytes for layer in sizes.layers)
        case["sizes"] = {
            "ffn": sum(layer.hot_bytes(sizes.config.n_ff) for layer in sizes.layers),
            "rest": context + fixed.total + fixed.head_extra + sizes.head_bytes + blocks,
            "staging": fixed.staging,
        }


def run_all(cases: Cases, args: argparse.Namespace) -> None:
    """Every case in turn."""
    if not args.no_dense:
        cases.run("whole, dense", vram_budget=-1, sparsity="dense")
    sizes = cases.run("whole", vram_budget=-1)["sizes"]
    if args.whole:
        return
    cases.run("CPU alone")
    rest = sizes["rest"] + sizes["staging"]
    for share in SHARES:
        cases.run(f"{share:.0%} of the FFN", budget_bytes=rest + share * sizes["ffn"])
    for arrangement in (Arrangement.SIDE_STREAM, Arrangement.FLAGS, Arrangement.EAGER):
        cases.run("30% of the FFN", budget_bytes=rest + 0.3 * sizes["ffn"], arrangement=arrangement, prompt=False)
    if args.sweep:
        for share in SWEPT:
            part = share * (sizes["ffn"] if share > 0 else sizes["rest"])
            cases.run(f"swept {share:+.0%}", budget_bytes=rest + part, decode=False)


def _title(case: dict[str, Any]) -> str:
    return " ".join([case["case"], *filter(None, [case.get("arrangement")])])


def _brief(case: dict[str, Any]) -> str:
    parts = [_title(case), case["sparsity"], f"load {case['load_s']:.1f} s"]
    if "decode" in case:
        found = case["decode"]
        share = found["share_of_bandwidth"]
        parts.append(f"decode {found['tokens_per_s']['median']:.1f}/s, {found['gb_per_s']:.0f} GB/s, {share:.0%}")
    if "prompt" in case:
        parts.append(f"prompt {case['prompt']['tokens_per_s']['median']:.0f}/s")
    if case.get("expected_tokens_per_s"):
        parts.append(f"expected {case['expected_tokens_per_s']:.1f}/s")
    if "budget_bytes" in case:
        parts.append(f"holds {case['driver_peak_bytes'] / GIB:.3f} of {case['budget_bytes'] / GIB:.3f} GiB")
        parts.append(f"neurons {case['neurons_on_gpu']:.0%}, captured {case['captured'] or 0:.0%}")
    return " | ".join(parts)


def main(argv: list[str] | None = None) -> int:
    """The command. Exit code 1 without a GPU, or where the driver saw more than a budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--n", type=int, default=48, help="tokens to decode (default: 48)")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prompt (default: 2048)")
    parser.add_argument("--repeats", type=int, default=3, help="of a decode (default: 3)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: the package's)")
    parser.add_argument("--sweep", action="store_true", help="also budgets down to the smallest, for memory alone")
    parser.add_argument("--whole", action="store_true", help="the whole model on the GPU alone")
    parser.add_argument("--no-dense", action="store_true", help="not in dense mode")
    parser.add_argument("--commit", help="the checkout's, where its history is not here")
    args = parser.parse_args(argv)
    device, _ = find_device(RuntimeOptions(vram_budget=1.0)) if torch.cuda.is_available() else (None, [])
    if device is None:
        print("error: no CUDA device was found", file=sys.stderr)
        return 1
    bandwidth = device_bandwidth()
    head = header("tools/measure_gpu.py", argv)
    head |= {"commit": args.commit or head["commit"], "device": device.name, "bytes_per_s": bandwidth}

    def save(cases: Cases) -> None:
        report = {**head, "repeats": args.repeats, "cases": cases.found}
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    with Watch(os.getpid()) as watch:
        cases = Cases(args, watch, bandwidth, save)
        run_all(cases, args)
    decoded = [case for case in cases.found if "budget_bytes" in case]
    over = [_title(case) for case in decoded if case["driver_peak_bytes"] > case["budget_bytes"]]
    seconds = {_title(case): median(case["decode"]["seconds"]) for case in cases.found if "decode" in case}
    print(json.dumps({"device": device.name, "cases": len(cases.found), "over_budget": over, "seconds": seconds}))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
