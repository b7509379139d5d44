"""What `powerinfer-run` writes: text on standard output and nothing else there; everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from powerinfer_py.cli.streams import remark
from powerinfer_py.errors import printable

if TYPE_CHECKING:
    from powerinfer_py.generation.completion import Completion
    from powerinfer_py.generation.explanation import Explanation
    from powerinfer_py.generation.llm import LLM

_ENDINGS = {
    "context": "the context is full; -c sets a larger one, --keep goes on without the oldest text",
    "cancelled": "interrupted",
}


class TextOutput:
    """Generated text on standard output, flushed piece by piece; silent where JSON is to be the only output."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self._last = ""

    def write(self, piece: str) -> None:
        """Writes text as it is."""
        if piece and not self._silent:
            sys.stdout.write(piece)
            sys.stdout.flush()
            self._last = piece[-1]

    def end_line(self) -> None:
        """Starts a new line unless the text is at the beginning of one."""
        if self._last not in ("", "\n"):
            self.write("\n")
        self._last = ""

    def end(self) -> None:
        """Ends the text: a terminal gets a line break, a file or pipe exactly what was generated."""
        if sys.stdout.isatty():
            self.end_line()


def note(line: str) -> None:
    """One line for the person at the terminal."""
    remark(line)


def print_model(llm: LLM, seed: int) -> None:
    """What was loaded and how it runs, and where it lies on a GPU."""
    for line in llm.notices:
        note(printable(line, 400))
    for line in llm.memory_table:
        note(line)
    name = printable(llm.config.name) if llm.config.name else "unnamed"
    note(f"model {name} ({llm.config.architecture}), sparsity {llm.sparsity}, context {llm.context_length} tokens")
    cache = llm.kv_cache
    note(f"KV cache {cache.types_text}, {cache.n_bytes / 2**20:.1f} MiB for {cache.n_slots} x {cache.n_ctx} tokens")
    note(f"seed {seed}")


def print_ending(completion: Completion) -> None:
    """Why a text ended, where that is not what a reader expects anyway."""
    if (ending := _ENDINGS.get(completion.finish_reason)) is not None:
        note(f"[{ending}]")


def print_timings(llm: LLM) -> None:
    """Load, prompt and decode speed, predictor time, share of neurons."""
    note("")
    for line in llm.stats.lines():
        note(line)


def print_json(
    llm: LLM,
    model: Path,
    seed: int,
    prompts: Sequence[str],
    completions: Sequence[Completion],
    explanation: Explanation | None,
) -> None:
    """The one JSON object of --json, on one line."""
    result = {
        "model": str(model),
        "name": llm.config.name,
        "architecture": llm.config.architecture,
        "sparsity": str(llm.sparsity),
        "context_length": llm.context_length,
        "kv_cache": llm.kv_cache.to_dict(),
        "seed": seed,
        "prompts": list(prompts),
        "completions": [completion.to_dict() for completion in completions],
        "stats": llm.stats.to_dict(),
    }
    if explanation is not None:
        result["explanation"] = explanation.to_dict()
    print(json.dumps(result, allow_nan=False))
