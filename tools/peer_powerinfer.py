"""Times PowerInfer's `main` on one PWRI file and prints one JSON line; `compare_peers.py` runs it.

The figures are the ones PowerInfer prints, `eval time` for decode and `prompt eval time`; both leave sampling out. Two
runs, since its decode is to be timed after a short prompt.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from random import Random
from string import ascii_lowercase

from peer_engine import SHORT_PROMPT, parser

TIMING = re.compile(
    r"llama_print_timings:\s+(?P<phase>prompt eval|eval) time =\s*(?P<ms>[\d.]+) ms /\s*(?P<n>\d+) (?:runs|tokens)"
)
# Measured over 500 letters. Before the text come BOS and the three bytes of the space that SentencePiece puts there.
LETTERS_PER_TOKEN = 2.34
TOKENS_BEFORE_TEXT = 4


def timings(log: str) -> dict[str, tuple[int, float]]:
    """Tokens and seconds by phase, "prompt eval" and "eval". Raises ValueError where a phase is missing."""
    found = {match["phase"]: (int(match["n"]), float(match["ms"]) / 1000) for match in TIMING.finditer(log)}
    missing = {"prompt eval", "eval"} - set(found)
    if missing:
        raise ValueError(f"no timings of {' and '.join(sorted(missing))} in the output")
    return found


def random_text(n_tokens: int, seed: int) -> str:
    """Random letters, about `n_tokens` in the vocabulary of `make_synthetic_model.py`; PowerInfer prints the number."""
    n_letters = max(1, round(LETTERS_PER_TOKEN * (n_tokens - TOKENS_BEFORE_TEXT)))
    return "".join(Random(seed).choices(ascii_lowercase, k=n_letters))


def run(options: argparse.Namespace, n_prompt: int, n: int, seed: int) -> dict[str, tuple[int, float]]:
    """One run of the binary."""
    command = [options.binary, "-m", options.model, "-t", str(options.threads), "-n", str(n), "-b", "512"]
    command += ["-c", str(2 * n_prompt + n + 64), "--temp", "0", "--ignore-eos", "--seed", "1", "--log-disable"]
    command += ["-p", random_text(n_prompt, seed)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise SystemExit(f"PowerInfer ended with {done.returncode}: {done.stderr[-500:]}")
    return timings(done.stderr)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Tokens per second of prompt and decode."""
    n_decoded, decode_s = run(options, SHORT_PROMPT, options.n + 1, 3)["eval"]
    n_prompt, prompt_s = run(options, options.prompt, 2, 2)["prompt eval"] if options.prompt else (0, 0.0)
    return {
        "engine": "PowerInfer",
        "threads": options.threads,
        "decode_tokens": n_decoded,
        "decode_tokens_per_s": n_decoded / decode_s,
        "prompt_tokens": n_prompt,
        "prompt_tokens_per_s": n_prompt / prompt_s if n_prompt else None,
    }


def main(argv: list[str] | None = None) -> int:
    """Prints the result as one JSON line."""
    print(json.dumps(measure(parser(__doc__, "binary", "model").parse_args(argv))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
