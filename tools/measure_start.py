"""Measures how long a model file takes from open to first token, and the memory that it then holds.

    python tools/measure_start.py m.powerinfer.gguf --threads 2 --json start.json

Each start is a process of its own, which imports everything first and starts its clock then; the file is read once
beforehand, so that it lies in the page cache where it fits. Memory is the system's count of resident pages at the first
token: those of the process alone (weights that were packed, caches, libraries' data), and those of files (weights that
stay where they lie, libraries' code). The last line is one JSON object. It measures; it asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

from result_header import header

from powerinfer_py.errors import PowerInferError, printable

CHUNK_BYTES = 16 << 20
FIGURES = ("imports_s", "load_s", "first_token_s", "start_to_first_token_s", "resident_bytes", "anonymous_bytes")
# Everything that a run uses: what is imported inside functions would count as loading.
IMPORTS = ("torch", "powerinfer_py.generation.llm", "powerinfer_py.kernels.cpu", "powerinfer_py.kernels.reference")


def start_once(model: Path, threads: int, sparsity: str) -> dict[str, object]:
    """One start in this process: seconds of each part, and resident bytes after the first token."""
    import importlib

    started = perf_counter()
    for name in IMPORTS:
        importlib.import_module(name)
    from powerinfer_py import LLM, SamplingParams

    imported = perf_counter()
    with LLM(model, threads=threads, sparsity=sparsity) as llm:
        loaded = perf_counter()
        prompt = [llm.config.n_vocab - 1]
        llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
        first_token = perf_counter()
        memory = resident()
        return {
            "imports_s": imported - started,
            "load_s": loaded - imported,
            "first_token_s": first_token - loaded,
            "start_to_first_token_s": first_token - imported,
            **memory,
            "n_ctx": llm.context_length,
            "sparsity": str(llm.sparsity),
        }


def resident() -> dict[str, int]:
    """Resident bytes of this process, and those of them that belong to no file."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    total, anonymous = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon"))
    return {"resident_bytes": total, "anonymous_bytes": anonymous}


def start_apart(model: Path, threads: int, sparsity: str) -> dict[str, object]:
    """One start in a process of its own. Raises PowerInferError with its last words where it fails."""
    command = [sys.executable, __file__, str(model), "--threads", str(threads), "--sparsity", sparsity, "--once"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise PowerInferError(f"the start failed with exit code {done.returncode}: {printable(words)}")
    sample: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return sample


def read_whole(path: Path) -> None:
    """Brings a file into the page cache."""
    with path.open("rb") as file:
        while file.read(CHUNK_BYTES):
            pass


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sparsity", default="auto", choices=("auto", "predictor", "exact", "dense"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", action="store_true", help="one start in this process, as the others are made")
    options = parser.parse_args(argv)
    try:
        if options.once:
            print(json.dumps(start_once(options.model, options.threads, options.sparsity)))
            return 0
        read_whole(options.model)
        starts = [start_apart(options.model, options.threads, options.sparsity) for _ in range(options.repeats)]
    except (OSError, PowerInferError) as error:
        print(f"measure_start.py: error: {error}", file=sys.stderr)
        return 1
    file_bytes = options.model.stat().st_size
    medians = {name: median(float(str(start[name])) for start in starts) for name in FIGURES}
    result = {
        **header("tools/measure_start.py", argv),
        "file_bytes": file_bytes,
        "threads": options.threads,
        "median": medians,
        "resident_against_file": medians["resident_bytes"] / file_bytes,
        "starts": starts,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
