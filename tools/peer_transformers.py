"""Times Hugging Face transformers on one checkpoint folder, on the CPU, and prints one JSON line.

`compare_peers.py` runs it with the Python that has transformers; nothing of this package is imported. As in its
siblings, times are those of forwards, the logits in reach, without sampling. Transformers computes every neuron, in the
type that is asked for: it is the yardstick of what a user of plain PyTorch gets, not of what the machine can do.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter
from typing import Any

import torch
import transformers
from peer_engine import PeerModel, measure, parser


class Model(PeerModel):
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


def main(argv: list[str] | None = None) -> int:
    """Prints the result as one JSON line."""
    arguments = parser(__doc__, "checkpoint")
    arguments.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    options = arguments.parse_args(argv)
    torch.set_num_threads(options.threads)
    about = {"engine": "transformers", "version": transformers.__version__, "dtype": options.dtype}
    print(json.dumps(about | measure(lambda: Model(options.checkpoint, options.dtype), options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
