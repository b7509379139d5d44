"""Timings and counts since a model was loaded, as `powerinfer-run` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from powerinfer_py.models.activity import Activity


@dataclass(eq=False)
class Stats:
    """Seconds and tokens by phase. Tokens that a context rolled over computes again count as decode.

    cached_tokens: prompt tokens that were not computed, their keys and values being in the cache already.
    """

    activity: Activity
    load_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    sample_s: float = 0.0
    vram: dict[str, Any] = field(default_factory=dict)

    def clear(self) -> None:
        """Forgets everything but the time of loading."""
        self.prompt_tokens = self.cached_tokens = self.decode_tokens = 0
        self.prompt_s = self.decode_s = self.sample_s = 0.0
        self.activity.clear()

    def add_forward(self, seconds: float, n_prompt: int, n_decode: int) -> None:
        """Adds the time of one forward, shared out by tokens where prompt and decode ran together."""
        share = n_prompt / max(1, n_prompt + n_decode)
        self.prompt_s += share * seconds
        self.decode_s += (1 - share) * seconds
        self.decode_tokens += n_decode

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens per second; 0.0 before any."""
        return self.prompt_tokens / self.prompt_s if self.prompt_s else 0.0

    @property
    def decode_rate(self) -> float:
        """Generated tokens per second over all live sequences; 0.0 before any."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; times in seconds. gpu_share: of the FFN rows read; vram: the ledger, empty without a GPU."""
        return {
            "load_s": self.load_s,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "prompt_s": self.prompt_s,
            "prompt_tokens_per_s": self.prompt_rate,
            "decode_tokens": self.decode_tokens,
            "decode_s": self.decode_s,
            "decode_tokens_per_s": self.decode_rate,
            "sample_s": self.sample_s,
            "gpu_share": self.activity.share_on_device,
            "vram": self.vram,
            **self.activity.to_dict(),
        }

    def lines(self) -> list[str]:
        """The report at the end of a run."""
        activity = self.activity
        gpu = f", {activity.share_on_device:.1%} of them on the GPU" if self.vram else ""
        cached = f" ({self.cached_tokens} more from the cache)" if self.cached_tokens else ""
        return [
            f"load       {self.load_s:8.2f} s",
            f"prompt     {self.prompt_s:8.2f} s  {self.prompt_tokens:6d} tokens  {self.prompt_rate:8.1f} tokens/s"
            + cached,
            f"decode     {self.decode_s:8.2f} s  {self.decode_tokens:6d} tokens  {self.decode_rate:8.1f} tokens/s",
            f"sampling   {self.sample_s:8.2f} s",
            f"predictor  {activity.predictor_s:8.2f} s",
            f"neurons    {activity.share_computed:8.1%} computed, {activity.share_fired:.1%} fired, "
            f"{activity.share_of_rows:.1%} of FFN rows read{gpu}",
        ]
