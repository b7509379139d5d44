"""Times this package on one model file, in a process of its own, and prints one JSON line; `compare_peers.py` runs it.

It loads once, warms up, then times a prompt and a decode with `powerinfer_py.generation.benchmark`, which
`powerinfer-bench` stands on too. The text that is decoded follows the most likely tokens, as in the other engines.
"""

from __future__ import annotations

import argparse
import json
import sys
from time import perf_counter

from powerinfer_py import LLM, __version__
from powerinfer_py.generation.benchmark import BenchmarkTest, Phase, measure
from powerinfer_py.gguf import open_gguf

SHORT_PROMPT = 16


def run(options: argparse.Namespace) -> dict[str, object]:
    """Tokens per second of forwards alone (sampling is apart), prompt and decode."""
    decode = BenchmarkTest(Phase.DECODE, options.n, SHORT_PROMPT)
    prompt = BenchmarkTest(Phase.PROMPT, options.prompt) if options.prompt else None
    length = max(test.context_length for test in (decode, prompt) if test is not None)
    started = perf_counter()
    loading = {"sparsity": options.sparsity, "threads": options.threads, "context_length": length, "max_batch": 1}
    with LLM(options.model, **loading) as llm, open_gguf(options.model) as file:
        load_s = perf_counter() - started
        prompts = None if prompt is None else measure(llm, file.tensors, prompt, temperature=0.0)
        decoded = measure(llm, file.tensors, decode, temperature=0.0)
        return {
            "engine": "this package",
            "version": __version__,
            "sparsity": str(llm.sparsity),
            "threads": options.threads,
            "isa": getattr(llm.engine.kernels, "isa", None),
            "decode_tokens_per_s": decoded.rates[0],
            "prompt_tokens_per_s": None if prompts is None else prompts.rates[0],
            "load_s": load_s,
            "share_computed": decoded.share_computed,
            "share_fired": decoded.share_fired,
            "share_of_rows": decoded.share_of_rows,
            "predictor_s_per_token": decoded.predictor_s_per_token,
            "bytes_per_token": decoded.bytes.to_dict(),
            "gb_per_s": decoded.gb_per_s,
            "host_peak_bytes": decoded.host_peak_bytes,
        }


def main(argv: list[str] | None = None) -> int:
    """Prints the result as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sparsity", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=32, help="tokens to decode")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that is timed; 0 for none")
    print(json.dumps(run(parser.parse_args(argv))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
