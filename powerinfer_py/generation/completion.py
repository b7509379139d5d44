"""What a generation gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from powerinfer_py.generation.sampling import TokenLogprobs


class FinishReason(StrEnum):
    """Why a text ended: a stop string, an end-of-text token, the limit of tokens, a full context, or the caller."""

    STOP = "stop"
    EOS = "eos"
    LENGTH = "length"
    CONTEXT = "context"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class CompletionStats:
    """Counts of one text: tokens of its prompt, those of them that were in the cache, and seconds from start to end.

    Seconds are wall time, shared with whatever ran in the same forwards.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Completion:
    """One text. `prompt_index` says which prompt it continues, `index` which of its `n` completions it is.

    text: without the stop string; token_ids: every token that was sampled, the ending one included.
    """

    prompt_index: int
    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    seed: int
    logprobs: list[TokenLogprobs] | None = None
    stats: CompletionStats = CompletionStats()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "prompt_index": self.prompt_index,
            "index": self.index,
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": str(self.finish_reason),
            "seed": self.seed,
            "stats": asdict(self.stats),
            "logprobs": None if self.logprobs is None else [token.to_dict() for token in self.logprobs],
        }
