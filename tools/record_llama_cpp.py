"""Records what llama.cpp computes: logits of the models of `make_random_models.py`, greedy continuations of a real one.

An instrument for people with a checkout, not a test: its results lie in `tests/fixtures/llama_cpp`, the tests only read
them. Nothing of powerinfer_py is imported, so that the recordings owe nothing to the code that is tested against them.
Needs numpy and `llama-cpp-python`, best in an environment of its own:

    python tools/record_llama_cpp.py logits tests/fixtures/llama_cpp
    python tools/record_llama_cpp.py text SmolLM2-135M-Instruct.Q4_1.gguf tests/fixtures/llama_cpp
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TOKENS = [1, 17, 30, 45, 39, 23, 51, 7, 44, 3, 58, 40, 12, 29]
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "To make pancakes, first mix the flour, eggs and milk. Then",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "The days of the week are: Monday, Tuesday, Wednesday,",
    '"Good morning," said the doctor. "How are you feeling today?"\n"',
    "Water boils at a temperature of",
    "1. Wash your hands.\n2. Peel the potatoes.\n3.",
    "The three primary colors are",
    "Photosynthesis is the process by which plants",
    "2, 4, 6, 8, 10, 12,",
    "The sun rises in the east and sets in the",
    "We the People of the United States, in Order to form",
)
N_CONTINUATION = 24
N_CTX = 256  # llama.cpp rounds a smaller context up to this
KV_TYPES = {"kv_f32": 0, "kv_f16": 1}  # ggml's type ids


def open_model(path: Path, kv_type: int) -> Any:
    """llama.cpp on two CPU threads, no flash attention, every YaRN parameter as the file says.

    llama-cpp-python's own defaults for the YaRN parameters override the file; -1 is llama.cpp's "from the file".
    """
    from llama_cpp import Llama

    return Llama(
        str(path),
        n_ctx=N_CTX,
        n_batch=N_CTX,
        n_threads=2,
        n_threads_batch=2,
        logits_all=True,
        flash_attn=False,
        type_k=kv_type,
        type_v=kv_type,
        yarn_ext_factor=-1.0,
        yarn_attn_factor=-1.0,
        yarn_beta_fast=-1.0,
        yarn_beta_slow=-1.0,
        verbose=False,
    )


def engine(**more: Any) -> dict[str, Any]:
    """What was run, for the manifests."""
    return {
        "llama_cpp_python": version("llama-cpp-python"),
        "numpy": np.__version__,
        "n_ctx": N_CTX,
        "n_threads": 2,
        "flash_attn": False,
        "logits_all": True,
        **more,
    }


def record_logits(folder: Path) -> None:
    """Writes `logits.npz`: NAME.kv_f32 and NAME.kv_f16, each (n_tokens, n_vocab) float32; completes `manifest.json`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    recorded: dict[str, npt.NDArray[np.float32]] = {}
    for name, case in manifest["cases"].items():
        for kv_name, kv_type in KV_TYPES.items():
            llm = open_model(folder / case["files"][0], kv_type)
            llm.eval(TOKENS)
            recorded[f"{name}.{kv_name}"] = llm.scores[: len(TOKENS)].astype(np.float32)
            llm.close()
    np.savez(folder / "logits.npz", allow_pickle=False, **recorded)
    manifest = {"engine": engine(), "tokens": TOKENS, "cases": manifest["cases"]}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def continue_greedily(llm: Any, prompt: str) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    """N_CONTINUATION most likely tokens one at a time, and the logits at the prompt's last position (n_vocab)."""
    ids = llm.tokenize(prompt.encode(), add_bos=True, special=False)
    llm.reset()
    llm.eval(ids)
    first = llm.scores[llm.n_tokens - 1].copy()
    generated: list[int] = []
    gaps: list[float] = []
    logits = first
    for _ in range(N_CONTINUATION):
        runner_up, best = np.partition(logits, -2)[-2:]
        generated.append(int(logits.argmax()))
        gaps.append(round(float(best - runner_up), 5))
        llm.eval(generated[-1:])
        logits = llm.scores[llm.n_tokens - 1].copy()
    text = llm.detokenize(generated).decode("utf-8", errors="replace")
    return {"prompt": prompt, "prompt_ids": ids, "generated_ids": generated, "gaps": gaps, "text": text}, first


def record_text(model: Path, folder: Path) -> None:
    """Writes `smollm2.json` (greedy continuations) and `smollm2.npz` (logits after the first prompt); KV in float16."""
    llm = open_model(model, KV_TYPES["kv_f16"])
    results = [continue_greedily(llm, prompt) for prompt in PROMPTS]
    np.savez_compressed(folder / "smollm2.npz", allow_pickle=False, last_logits=results[0][1])
    record = {"engine": engine(kv="f16"), "model": model.name, "continuations": [r[0] for r in results]}
    (folder / "smollm2.json").write_text(json.dumps(record, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Parses the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    logits = commands.add_parser("logits", help="logits of the models of make_random_models.py")
    text = commands.add_parser("text", help="greedy continuations of a real model")
    text.add_argument("model", type=Path)
    for command in (logits, text):
        command.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    if options.command == "text":
        record_text(options.model, options.folder)
    else:
        record_logits(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
