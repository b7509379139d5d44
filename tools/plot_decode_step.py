"""Measures and draws where the time of one decoded token goes: per operation, in native code and in Python.

    python tools/plot_decode_step.py MODEL --png step.png --json step.json

Two runs over the same tokens. "As it runs" times the calls a step really makes, one for layers of up to 1 GiB. "Taken
apart" runs the same arithmetic as single operations (`kernels/composition.py`), more calls and so more Python, to say
what those consist of. Native time is that inside the extension's calls; Python's is the rest, torch's small tensor
operations included. Timing a call costs 0.3 us, which counts as Python.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from result_header import header

from powerinfer_py import LLM, SamplingParams
from powerinfer_py.errors import PowerInferError
from powerinfer_py.generation.benchmark import random_ids
from powerinfer_py.kernels import composition
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.profiler.plot import require_picture

CONTEXT = 16
LABELS = {
    "attn_q": "q, k, v",
    "attn_k": "q, k, v",
    "attn_v": "q, k, v",
    "attn_qkv": "q, k, v",
    "attn_output": "attention output",
    "fc1": "predictor",
    "fc2": "predictor",
    "ffn_gate": "gate rows",
    "ffn_up": "up rows",
    "ffn_down": "down rows",
    "ffn_down_t": "down rows",
    "output": "head",
    "token_embd": "head",
}
OPERATIONS = {
    "rows": "embedding",
    "rms_norm": "norms",
    "layer_norm": "norms",
    "rope": "rope",
    "attention": "attention",
    "attention_block": "attention block",
    "feed_forward_block": "FFN block",
    "run_layers": "layers",
}
BETWEEN, SAMPLING, LOOP = "between operations", "sampling", "decode loop"


class NativeClock:
    """The extension's kernels with a clock around each call."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernels, name)
        if not callable(function):
            return function

        def timed(*arguments: Any) -> Any:
            started = perf_counter()
            result = function(*arguments)
            self.seconds += perf_counter() - started
            return result

        return timed


class TimedKernels:
    """Kernels with a clock around each operation. apart: blocks are composed of single operations."""

    def __init__(self, kernels: NativeKernels, *, apart: bool) -> None:
        self._kernels = kernels
        self._clock = NativeClock(kernels._native)
        self._apart = apart
        # Operation -> seconds in native code and in all.
        self.parts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def __getattr__(self, name: str) -> Any:
        if self._apart and name == "run_layers":
            return lambda *arguments, **options: Kernels.run_layers(self, *arguments, **options)  # type: ignore[arg-type]
        if self._apart and name == "attention_block":
            return lambda *arguments: composition.attend(self, *arguments)  # type: ignore[arg-type]
        if self._apart and name == "feed_forward_block":
            return lambda block, x, residual, observe=False: composition.run_feed_forward(
                self,  # type: ignore[arg-type]
                block,
                x,
                residual,
                observe,
            )
        operation = getattr(self._kernels, name)
        return self._timed(name, operation) if callable(operation) else operation

    def _timed(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            label = OPERATIONS[name] if name in OPERATIONS else LABELS[arguments[0].name.split(".")[-2]]
            native, self._kernels._native = self._kernels._native, self._clock
            before, started = self._clock.seconds, perf_counter()
            try:
                return operation(*arguments, **options)
            finally:
                self._kernels._native = native
                part = self.parts[label]
                part[0] += self._clock.seconds - before
                part[1] += perf_counter() - started

        return timed


def profile(llm: LLM, n: int, *, apart: bool) -> dict[str, Any]:
    """Milliseconds a token by part, over n decoded tokens after as many that warm up; and each forward's seconds."""
    kernels = llm.engine.kernels
    if not isinstance(kernels, NativeKernels):
        raise PowerInferError("there is no native code to time: the torch kernels run")
    timed = TimedKernels(kernels, apart=apart)
    forward = llm.engine.forward
    forwards: list[tuple[int, float]] = []

    def timed_forward(batch: ForwardBatch, *arguments: Any, **options: Any) -> Any:
        started = perf_counter()
        result = forward(batch, *arguments, **options)
        forwards.append((len(batch), perf_counter() - started))
        return result

    llm.engine.kernels = timed  # type: ignore[assignment]
    llm.engine.forward = timed_forward  # type: ignore[method-assign]
    try:
        for _ in ("warm up", "measure"):
            llm.engine.cache.truncate(0, 0)
            llm.stats.clear()
            timed.parts.clear()
            forwards.clear()
            started = perf_counter()
            # The prompt, of more tokens than there are sequences, runs on the kernels for prompts, without clocks.
            prompt = random_ids(llm.config.n_vocab, CONTEXT, 0)
            llm.generate([prompt], SamplingParams(max_tokens=n + 1, seed=1, ignore_eos=True))
            elapsed = perf_counter() - started
    finally:
        llm.engine.kernels = kernels
        del llm.engine.forward
    prompt_s = sum(seconds for tokens, seconds in forwards if tokens > 1)
    steps = [seconds for tokens, seconds in forwards if tokens == 1]
    return _account(timed.parts, steps, llm.stats.sample_s, elapsed - prompt_s)


def _account(parts: dict[str, list[float]], steps: list[float], sample_s: float, elapsed: float) -> dict[str, Any]:
    n = len(steps)
    rows = [
        {"part": name, "native_ms": 1e3 * native / n, "python_ms": 1e3 * (total - native) / n}
        for name, (native, total) in parts.items()
    ]
    rows.sort(key=lambda row: -row["native_ms"] - row["python_ms"])
    between = sum(steps) - sum(total for _, total in parts.values())
    rows += [
        {"part": BETWEEN, "native_ms": 0.0, "python_ms": 1e3 * between / n},
        {"part": SAMPLING, "native_ms": 0.0, "python_ms": 1e3 * sample_s / n},
        {"part": LOOP, "native_ms": 0.0, "python_ms": 1e3 * (elapsed - sum(steps) - sample_s) / n},
    ]
    return {
        "ms_per_token": 1e3 * elapsed / n,
        "median_forward_ms": 1e3 * median(steps),
        "parts": rows,
        "steps_s": steps,
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """A bar a part, native and Python time stacked; one panel a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = result["runs"]
    figure, panels = pyplot.subplots(1, len(runs), figsize=(12, 4), layout="constrained")
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        parts = run["parts"][::-1]
        names = [part["part"] for part in parts]
        native = [part["native_ms"] for part in parts]
        axes.barh(names, native, label="native")
        axes.barh(names, [part["python_ms"] for part in parts], left=native, label="Python")
        axes.set(xlabel="milliseconds a token", title=f"{name}: {run['ms_per_token']:.2f} ms a token")
        axes.legend(loc="lower right")
    figure.suptitle(f"{result['model']}, {result['sparsity']}, {result['threads']} threads, {result['isa']}")
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    """Runs the measurement and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sparsity", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=48, help="tokens to decode")
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    loading = {"sparsity": options.sparsity, "threads": options.threads, "max_batch": 1}
    try:
        if options.png is not None:
            require_picture(options.png)
        with LLM(options.model, context_length=CONTEXT + options.n + 1, **loading) as llm:
            runs = {
                "as it runs": profile(llm, options.n, apart=False),
                "taken apart": profile(llm, options.n, apart=True),
            }
            result = {
                **header("tools/plot_decode_step.py", argv),
                "model": Path(options.model).name,
                "sparsity": str(llm.sparsity),
                "threads": options.threads,
                "isa": getattr(llm.engine.kernels, "isa", None),
                "runs": runs,
            }
    except PowerInferError as error:
        print(f"plot_decode_step: {error}", file=sys.stderr)
        return 1
    if options.png is not None:
        draw(result, options.png)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
