"""Times this package beside PowerInfer, llama.cpp and transformers on models of the same shape, in turn, in one run.

    python tools/compare_peers.py --model m.powerinfer.gguf --dense-twin dense.gguf \\
        --llama-cpp-python llama/bin/python --powerinfer PowerInfer/build/bin/main --json result.json

Every sample is a process of its own that loads, warms up, times a prompt and a decode, and ends; the engines alternate,
one round after the other, and each ratio is taken within a round. `peer_*.py` say what each one times. Before a sample
the driver waits for an idle machine, at most `--wait-idle` seconds, and during one it counts the processor time that
others took: engines whose threads wait for each other become many times slower when another process takes one core. A
disturbed sample is taken again, at most `--retries` times, whatever it showed; the JSON keeps it apart, and where the
last one was disturbed too, the table says so. It measures; it asserts nothing, but for `--check FILE`, which repeats
the shortest row of a result file with the sizes that the file was made with, and fails where the two do not agree.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

from peer_rows import RATES, Sample, agreement, shortest_row
from result_header import commit, header, machine

from powerinfer_py.errors import FileFormatError, OptionError, PowerInferError, printable
from powerinfer_py.predictor.files import read_json

HERE = Path(__file__).parent
# Processors that others may keep busy before and during a sample.
IDLE_CORES = 0.1
PEERS = ("PowerInfer", "llama.cpp dense", "transformers")


@dataclass(frozen=True)
class Engine:
    """What runs under a name: a command that prints one JSON line."""

    name: str
    command: tuple[str, ...]


def engines_from(options: argparse.Namespace) -> list[Engine]:
    """The engines in the order of a round. Raises OptionError where nothing can be compared."""
    if options.model is None and options.dense_twin is None:
        raise OptionError("name a model: --model for a PWRI file, --dense-twin for a dense GGUF, or both")
    sizes = ("--threads", str(options.threads), "--n", str(options.n), "--prompt", str(options.prompt))
    ours = (sys.executable, str(HERE / "peer_this_package.py"))
    engines = []
    if options.model is not None:
        modes = {mode: (*ours, str(options.model), "--sparsity", mode, *sizes) for mode in options.sparsity}
        engines += [Engine(f"ours {mode}", command) for mode, command in modes.items()]
        if options.powerinfer is not None:
            peer = (sys.executable, str(HERE / "peer_powerinfer.py"), str(options.powerinfer))
            engines.append(Engine("PowerInfer", (*peer, str(options.model), *sizes)))
    if options.dense_twin is not None:
        engines.append(Engine("ours dense", (*ours, str(options.dense_twin), "--sparsity", "dense", *sizes)))
        if options.llama_cpp_python is not None:
            llama = (str(options.llama_cpp_python), str(HERE / "peer_llama_cpp.py"))
            engines.append(Engine("llama.cpp dense", (*llama, str(options.dense_twin), *sizes)))
    if options.checkpoint is not None:
        python = str(options.transformers or sys.executable)
        peer = (python, str(HERE / "peer_transformers.py"), str(options.checkpoint), "--dtype", options.dtype)
        engines.append(Engine("transformers", (*peer, *sizes)))
    probe = (
        sys.executable,
        str(HERE / "peer_machine.py"),
        "--threads",
        str(options.threads),
        "--mib",
        str(options.probe_mib),
    )
    return [*engines, Engine("read bandwidth", probe)]


def run_rounds(
    engines: Sequence[Engine], options: argparse.Namespace
) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]]]:
    """Samples of each engine, one a round, and those that were disturbed and taken again."""
    samples: dict[str, list[Sample]] = {engine.name: [] for engine in engines}
    disturbed: dict[str, list[Sample]] = {engine.name: [] for engine in engines}
    for number in range(options.repeats):
        for engine in engines:
            for retries_left in reversed(range(options.retries + 1)):
                wait_until_idle(options.wait_idle)
                sample = run_sample(engine)
                print(f"round {number + 1}: {engine.name}: {_figures(sample)}", file=sys.stderr)
                if not _was_busy(sample) or not retries_left:
                    samples[engine.name].append(sample)
                    break
                disturbed[engine.name].append(sample)
    return samples, disturbed


def run_sample(engine: Engine) -> Sample:
    """One process from start to end. Raises PowerInferError with its last words where it fails."""
    busy, own, started = _busy_s(), _children_s(), perf_counter()
    done = subprocess.run(engine.command, capture_output=True, text=True, errors="replace", env=_environment())
    elapsed = perf_counter() - started
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        words = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise PowerInferError(f"{engine.name} failed with exit code {done.returncode}: {printable(words)}")
    sample: Sample = json.loads(lines[-1])
    others = (_busy_s() - busy) - (_children_s() - own)
    return {**sample, "elapsed_s": elapsed, "cores_used_by_others": max(0.0, others / elapsed)}


def wait_until_idle(limit_s: float) -> None:
    """Returns when others leave the machine alone for a second, or after `limit_s` seconds."""
    end = perf_counter() + limit_s
    while perf_counter() < end:
        before = _busy_s()
        sleep(1.0)
        if _busy_s() - before < IDLE_CORES:
            return


def compare(samples: dict[str, list[Sample]]) -> list[dict[str, Any]]:
    """Ratios of ours to each peer, for decode and prompt: median, least and most over the rounds."""
    result = []
    for ours in (name for name in samples if name.startswith("ours")):
        for peer in (name for name in samples if name in PEERS):
            if ours == "ours dense" and peer == "PowerInfer":
                continue
            for what, key in RATES.items():
                pairs = zip(samples[ours], samples[peer], strict=True)
                ratios = [a[key] / b[key] for a, b in pairs if a[key] and b[key]]
                if ratios:
                    result.append({"ours": ours, "peer": peer, "what": what, **spread(ratios)})
    return result


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def summarise(samples: dict[str, list[Sample]]) -> dict[str, dict[str, Any]]:
    """Of each engine its rates, and of ours GB/s beside the bandwidth of the same rounds."""
    bandwidth = median(sample["gb_per_s"] for sample in samples["read bandwidth"])
    result: dict[str, dict[str, Any]] = {}
    for name, rows in samples.items():
        row: dict[str, Any] = {"cores_used_by_others": max(sample["cores_used_by_others"] for sample in rows)}
        for what, key in RATES.items():
            rates = [sample[key] for sample in rows if sample.get(key)]
            if rates:
                row[f"{what}_tokens_per_s"] = spread(rates)
        if all("gb_per_s" in sample for sample in rows):
            row["gb_per_s"] = spread([sample["gb_per_s"] for sample in rows])
            row["share_of_bandwidth"] = row["gb_per_s"]["median"] / bandwidth
        if "bytes_per_token" in rows[0]:
            row["bytes_per_token"] = rows[0]["bytes_per_token"]
            row["share_computed"] = median(sample["share_computed"] for sample in rows)
        result[name] = row
    return result


def table(summary: dict[str, dict[str, Any]], ratios: Sequence[dict[str, Any]]) -> list[str]:
    """What a person reads."""
    lines = [f"{'engine':18}{'decode/s':>10}{'prompt/s':>10}{'MB/token':>10}{'GB/s':>8}{'share':>8}{'neurons':>9}"]
    for name, row in summary.items():
        lines.append(
            f"{name:18}"
            + _cell(row.get("decode_tokens_per_s", {}).get("median"), 10, ".2f")
            + _cell(row.get("prompt_tokens_per_s", {}).get("median"), 10, ".1f")
            + _cell(sum(row["bytes_per_token"].values()) / 1e6 if "bytes_per_token" in row else None, 10, ".1f")
            + _cell(row.get("gb_per_s", {}).get("median"), 8, ".1f")
            + _cell(row.get("share_of_bandwidth"), 8, ".0%")
            + _cell(row.get("share_computed"), 9, ".1%")
            + (f"  others used up to {row['cores_used_by_others']:.1f} cores" if _was_busy(row) else "")
        )
    for ratio in ratios:
        label = f"{ratio['ours']} / {ratio['peer']}, {ratio['what']}"
        lines.append(f"{label:44}{ratio['median']:6.2f}x  ({ratio['min']:.2f} to {ratio['max']:.2f})")
    return lines


def _was_busy(row: dict[str, Any]) -> bool:
    return bool(row["cores_used_by_others"] > IDLE_CORES)


def _cell(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"


def _figures(sample: Sample) -> str:
    parts = [f"{what} {sample[key]:.2f} tokens/s" for what, key in RATES.items() if sample.get(key)]
    if "gb_per_s" in sample:
        parts.append(f"{sample['gb_per_s']:.1f} GB/s")
    return ", ".join([*parts, f"others {sample['cores_used_by_others']:.2f} cores"])


def _busy_s() -> float:
    """Processor seconds that all processes have used since the start of the machine; 0 where /proc does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    fields = [int(field) for field in stat.read_text().splitlines()[0].split()[1:]]
    # user, nice, system, idle, iowait, irq, softirq; time stolen by other guests is not ours to count.
    return sum(fields[i] for i in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _environment() -> dict[str, str]:
    """The caller's, with this checkout's package in reach."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--model", type=Path, help="a PWRI file, for this package and PowerInfer")
    result.add_argument("--dense-twin", type=Path, help="a dense GGUF, for this package and llama.cpp")
    result.add_argument("--sparsity", nargs="+", default=["predictor"], choices=["predictor", "exact", "dense"])
    result.add_argument("--llama-cpp-python", type=Path, metavar="PYTHON", help="a Python that has llama_cpp")
    result.add_argument("--powerinfer", type=Path, metavar="MAIN", help="PowerInfer's binary")
    result.add_argument("--checkpoint", type=Path, metavar="DIR", help="a Hugging Face folder, for transformers")
    result.add_argument("--transformers", type=Path, metavar="PYTHON", help="a Python that has it (default: this one)")
    result.add_argument("--dtype", default="bfloat16", help="type that transformers computes in (default: bfloat16)")
    result.add_argument("--check", type=Path, metavar="FILE", help="repeat the shortest row of this result file")
    result.add_argument("--threads", type=int, default=2)
    result.add_argument("--n", type=int, default=32, help="tokens to decode")
    result.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that is timed; 0 for none")
    result.add_argument("--repeats", type=int, default=5)
    result.add_argument("--wait-idle", type=float, default=60.0, metavar="SECONDS")
    result.add_argument("--retries", type=int, default=2, metavar="N", help="of a sample that others disturbed")
    result.add_argument("--probe-mib", type=int, default=2048, help="buffer of the bandwidth probe, larger than caches")
    result.add_argument("--json", type=Path, metavar="FILE", help="also write everything there, raw samples included")
    return result


def check(options: argparse.Namespace) -> int:
    """Repeats the shortest row of a result file; 0 where it agrees. Models and engines are those given now, if any.

    Raises FileFormatError for a file that is no such result, or of which nothing can be repeated.
    """
    recorded = read_json(options.check)
    try:
        made_with = parser().parse_args([str(argument) for argument in recorded["command"][1:]])
        samples, cpu = recorded["samples"], recorded["machine"]["cpu"]
        signature = recorded["machine"].get("cpu_signature")
    except (KeyError, TypeError, AttributeError, SystemExit):
        raise FileFormatError("is no result of compare_peers.py", path=options.check) from None
    for name in ("model", "dense_twin", "llama_cpp_python", "powerinfer", "checkpoint", "transformers"):
        given = getattr(options, name)
        path = getattr(made_with, name) if given is None else given
        setattr(made_with, name, path if path is not None and path.exists() else None)
    for name in ("repeats", "wait_idle", "retries"):
        setattr(made_with, name, getattr(options, name))
    engines = {engine.name: engine for engine in engines_from(made_with)}
    name = shortest_row(samples, list(engines))
    repeated, disturbed = run_rounds([engines[name]], made_with)
    here = machine()
    if here["cpu"] != cpu or signature not in (None, here["cpu_signature"]):
        described = str(cpu) if signature is None else f"{cpu}, {signature}"
        print(f"the file is of another CPU, {printable(described)}", file=sys.stderr)
    found = agreement(samples[name], repeated[name])
    for what, row in found.items():
        ranges = (f"{row[when][0]:.2f} to {row[when][1]:.2f} tokens/s {when}" for when in ("recorded", "repeated"))
        print(f"{name}, {what}: {', '.join(ranges)}: {'agrees' if row['agrees'] else 'DIFFERS'}")
    agrees = all(row["agrees"] for row in found.values())
    result = {"row": name, "agrees": agrees, **found, "samples": repeated, "disturbed": disturbed}
    print(json.dumps({"machine": here, "commit": commit(), "checked": str(options.check), **result}))
    return 0 if agrees else 1


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; the last line printed is one JSON object."""
    options = parser().parse_args(argv)
    try:
        if (
            min(options.threads, options.n, options.repeats, options.probe_mib) < 1
            or min(options.prompt, options.retries) < 0
        ):
            raise OptionError(
                "--threads, --n, --repeats and --probe-mib must be 1 or more, --prompt and --retries 0 or more"
            )
        if options.check is not None:
            return check(options)
        context = header("tools/compare_peers.py", argv)
        samples, disturbed = run_rounds(engines_from(options), options)
    except PowerInferError as error:
        print(f"compare_peers: {error}", file=sys.stderr)
        return 1
    summary, ratios = summarise(samples), compare(samples)
    result = {"summary": summary, "ratios": ratios}
    if options.json is not None:
        options.json.write_text(
            json.dumps({**context, **result, "samples": samples, "disturbed": disturbed}, indent=1) + "\n"
        )
    print("\n".join(table(summary, ratios)))
    print(json.dumps({**context, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
