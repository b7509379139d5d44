"""Times Hugging Face transformers on one checkpoint folder, on the CPU, and prints one JSON line.

`compare_peers.py` runs it with the Python that has transformers; nothing of this package is imported. As in its
siblings, times are those of forwards, the logits in reach, without sampling. Transformers computes every neuron, in the
type that is asked for: it is the yardstick of what a user of plain PyTorch gets, not of what the machine can do.
"""

from __future__ import annotations

import argparse
import json
import sys
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers

SHORT_PROMPT = 16
WARM_UP = 8


class Model:
    """A causal language model and the keys and values of one sequence."""

    def __init__(self, folder: str, dtype: str) -> None:
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype=getattr(torch, dtype), local_files_only=True
        ).eval()
        self.n_vocab: int = self.model.config.vocab_size
        self._past: Any = None

    def forget(self) -> None:
        """Empties the KV cache."""
        self._past = None

    @torch.inference_mode()
    def forward(self, ids: list[int]) -> tuple[float, int]:
        """Seconds, and the most likely next token."""
        started = perf_counter()
        result = self.model(input_ids=torch.tensor([ids]), past_key_values=self._past, use_cache=True)
        token = int(result.logits[0, -1].argmax())
        elapsed = perf_counter() - started
        self._past = result.past_key_values
        return elapsed, token

    def decode(self, n: int, seed: int) -> float:
        """Seconds of `n` greedy tokens after a short prompt."""
        self.forget()
        _, token = self.forward(self.random_ids(SHORT_PROMPT, seed))
        total = 0.0
        for _ in range(n):
            elapsed, token = self.forward([token])
            total += elapsed
        return total

    def random_ids(self, n: int, seed: int) -> list[int]:
        """Ordinary tokens; the first ones of a vocabulary are often special."""
        ids: list[int] = np.random.default_rng(seed).integers(self.n_vocab // 4, self.n_vocab, n).tolist()
        return ids


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Tokens per second of prompt and decode."""
    torch.set_num_threads(options.threads)
    started = perf_counter()
    model = Model(options.checkpoint, options.dtype)
    load_s = perf_counter() - started
    model.decode(WARM_UP, 0)
    prompt_rate = None
    for seed in (1, 2) if options.prompt else ():
        # The first one warms up.
        model.forget()
        prompt_rate = options.prompt / model.forward(model.random_ids(options.prompt, seed))[0]
    return {
        "engine": "transformers",
        "version": transformers.__version__,
        "dtype": options.dtype,
        "threads": options.threads,
        "decode_tokens_per_s": options.n / model.decode(options.n, 3),
        "prompt_tokens_per_s": prompt_rate,
        "load_s": load_s,
    }


def main(argv: list[str] | None = None) -> int:
    """Prints the result as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=32, help="tokens to decode")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that is timed; 0 for none")
    print(json.dumps(measure(parser.parse_args(argv))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
