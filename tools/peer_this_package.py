"""Times this package on one model file, in a process of its own, and prints one JSON line; `compare_peers.py` runs it.

It loads once, warms up, then times a prompt and a decode. Bytes a token: every matrix the mode reads, FFN rows in the
share that the kernels counted, one row of the embedding; neither KV cache nor activations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from time import perf_counter

import numpy as np

from powerinfer_py import LLM, SamplingParams, __version__
from powerinfer_py.gguf import GGUFFile, open_gguf
from powerinfer_py.models.activity import Activity

SHORT_PROMPT = 16
WARM_UP = 8


def bytes_per_token(file: GGUFFile, activity: Activity, *, predictors_run: bool) -> dict[str, float]:
    """Bytes of weights read for a decoded token, by kind. activity: counted over the timed tokens."""
    neurons = max(1, int(activity.neurons.sum()))
    first, second, down = (float(n.sum() / neurons) for n in (activity.first, activity.second, activity.down))
    shares: Mapping[str, float] = {
        "ffn_gate": first,
        "ffn_up": second if activity.gated else first,
        "ffn_down": down,
        "ffn_down_t": down,
    }
    kinds = dict.fromkeys(("attention", "predictor", "ffn", "head"), 0.0)
    for name, info in file.tensors.items():
        base = name.split(".")[-2]
        if base in shares:
            kinds["ffn"] += info.n_bytes * shares[base]
        elif base in ("fc1", "fc2"):
            kinds["predictor"] += info.n_bytes * predictors_run
        elif base in ("token_embd", "position_embd"):
            tied = base == "token_embd" and "output.weight" not in file.tensors
            kinds["head"] += info.n_bytes if tied else info.n_bytes / info.shape[0]
        else:
            kinds["head" if base.startswith("output") else "attention"] += info.n_bytes
    return kinds


def random_ids(llm: LLM, n: int, seed: int) -> list[int]:
    """Ordinary tokens; the first ones of a vocabulary are often special."""
    n_vocab = llm.config.n_vocab
    ids: list[int] = np.random.default_rng(seed).integers(n_vocab // 4, n_vocab, n).tolist()
    return ids


def greedy(n: int) -> SamplingParams:
    """Exactly `n` tokens, the most likely ones."""
    return SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Tokens per second of forwards alone (sampling is apart), prompt and decode."""
    started = perf_counter()
    length = options.prompt + options.n + SHORT_PROMPT + WARM_UP
    with LLM(options.model, sparsity=options.sparsity, threads=options.threads, context_length=length) as llm:
        load_s = perf_counter() - started
        llm.generate([random_ids(llm, SHORT_PROMPT, 0)], greedy(WARM_UP))
        prompt_rate = None
        if options.prompt:
            # The first one warms up.
            llm.generate([random_ids(llm, options.prompt, 1)], greedy(1))
            prompt_rate = options.prompt / _prompt_seconds(llm, options.prompt)
        llm.generate([random_ids(llm, SHORT_PROMPT, 3)], greedy(1))
        llm.stats.clear()
        # The same prompt again: all of it but the last token lies in the cache.
        llm.generate([random_ids(llm, SHORT_PROMPT, 3)], greedy(options.n + 1))
        stats, activity = llm.stats, llm.engine.activity
        with open_gguf(options.model) as file:
            read = bytes_per_token(file, activity, predictors_run=llm.sparsity == "predictor")
        return {
            "engine": "this package",
            "version": __version__,
            "sparsity": str(llm.sparsity),
            "threads": options.threads,
            "isa": getattr(llm.engine.kernels, "isa", None),
            "decode_tokens_per_s": stats.decode_rate,
            "prompt_tokens_per_s": prompt_rate,
            "load_s": load_s,
            "share_computed": activity.share_computed,
            "share_fired": activity.share_fired,
            "share_of_rows": activity.share_of_rows,
            "predictor_s_per_token": activity.predictor_s / max(1, stats.decode_tokens + 1),
            "bytes_per_token": read,
            "gb_per_s": sum(read.values()) * stats.decode_rate / 1e9,
        }


def _prompt_seconds(llm: LLM, n: int) -> float:
    """Seconds of a prompt of n tokens that the cache knows nothing of."""
    llm.stats.clear()
    llm.generate([random_ids(llm, n, 2)], greedy(1))
    if llm.stats.prompt_tokens != n:
        raise AssertionError(f"{llm.stats.prompt_tokens} tokens were computed, expected {n}")
    return llm.stats.prompt_s


def main(argv: list[str] | None = None) -> int:
    """Prints the result as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sparsity", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=32, help="tokens to decode")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that is timed; 0 for none")
    print(json.dumps(measure(parser.parse_args(argv))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
