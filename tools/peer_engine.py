"""A peer engine as `compare_peers.py` times it: what it runs, in which order, and which line it prints.

The scripts peer_*.py import it beside themselves, under the Python of their engine; nothing of the package is imported.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

SHORT_PROMPT = 16
WARM_UP = 8


class PeerModel(ABC):
    """A model and the KV cache of one sequence."""

    n_vocab: int

    @abstractmethod
    def forget(self) -> None:
        """Empties the KV cache."""

    @abstractmethod
    def forward(self, ids: list[int]) -> tuple[float, int]:
        """Seconds, and the most likely next token."""

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


def measure(load: Callable[[], PeerModel], options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of prompt and decode, and seconds of loading."""
    started = perf_counter()
    model = load()
    load_s = perf_counter() - started
    model.decode(WARM_UP, 0)
    prompt_rate = None
    for seed in (1, 2) if options.prompt else ():
        # The first one warms up.
        model.forget()
        prompt_rate = options.prompt / model.forward(model.random_ids(options.prompt, seed))[0]
    return {
        "threads": options.threads,
        "decode_tokens_per_s": options.n / model.decode(options.n, 3),
        "prompt_tokens_per_s": prompt_rate,
        "load_s": load_s,
    }


def parser(description: str | None, *positional: str) -> argparse.ArgumentParser:
    """The options that every peer has, behind its own positional arguments."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in positional:
        result.add_argument(name)
    result.add_argument("--threads", type=int, default=2)
    result.add_argument("--n", type=int, default=32, help="tokens to decode")
    result.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that is timed; 0 for none")
    return result
