"""Times llama.cpp on one model file through llama-cpp-python's low-level API, and prints one JSON line.

`compare_peers.py` runs it with the Python that has llama_cpp; nothing of this package is imported. As in its siblings,
times are those of forwards, the logits in reach, without sampling.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
from peer_engine import SHORT_PROMPT, WARM_UP, PeerModel, measure, parser


class Model(PeerModel):
    """A model and one context on the CPU."""

    def __init__(self, path: str, threads: int, n_ctx: int) -> None:
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model: Any = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        self.context: Any = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context for {path}")
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def forget(self) -> None:
        """Empties the KV cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def forward(self, ids: list[int]) -> tuple[float, int]:
        """Seconds, and the most likely next token."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        started = perf_counter()
        code = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, len(ids)))
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        elapsed = perf_counter() - started
        if code:
            raise SystemExit(f"llama_decode returned {code}")
        return elapsed, int(np.ctypeslib.as_array(logits, (self.n_vocab,)).argmax())


def main(argv: list[str] | None = None) -> int:
    """Prints the result as one JSON line."""
    options = parser(__doc__, "model").parse_args(argv)
    n_ctx = options.prompt + options.n + SHORT_PROMPT + WARM_UP
    result = measure(lambda: Model(options.model, options.threads, n_ctx), options)
    about = {
        "engine": "llama.cpp",
        "version": llama_cpp.__version__,
        "system_info": llama_cpp.llama_print_system_info().decode(),
    }
    print(json.dumps(about | result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
