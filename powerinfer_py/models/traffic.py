"""Bytes of memory that one token makes a model read: the yardstick that speeds are reported with.

Not measured and not what was moved: weights by their size in the file, FFN rows in the share that the kernels counted,
and the keys and values a token attends to. Activations are left out. Invariant: with every row read and no cache, the
bytes of a decoded token are those of all tensors, the embedding's other rows apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from powerinfer_py.gguf import TensorInfo
from powerinfer_py.models.activity import Activity


@dataclass(frozen=True)
class TokenBytes:
    """Bytes a token, by kind. attention: with the norms; head: with a row of the embedding; cache: keys and values."""

    attention: float
    predictor: float
    ffn: float
    head: float
    cache: float = 0.0

    @property
    def total(self) -> float:
        """All kinds together."""
        return self.attention + self.predictor + self.ffn + self.head + self.cache

    def to_dict(self) -> dict[str, float]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class RowShares:
    """Shares of an FFN's gate, up and down rows that a token reads."""

    gate: float = 1.0
    up: float = 1.0
    down: float = 1.0

    @classmethod
    def counted(cls, activity: Activity) -> RowShares:
        """The shares that `activity` counted, over all its layers and tokens."""
        neurons = max(1, int(activity.neurons.sum()))
        first, second, down = (float(n.sum() / neurons) for n in (activity.first, activity.second, activity.down))
        return cls(first, second if activity.gated else first, down)


def decode_bytes(
    tensors: Mapping[str, TensorInfo], shares: RowShares, *, predictors_run: bool, cache_bytes: float = 0.0
) -> TokenBytes:
    """What a token that is decoded alone needs. tensors: those of the file. cache_bytes: keys and values it reads."""
    return _weigh(tensors, shares, predictors_run=predictors_run, passes=1, head_passes=1, cache_bytes=cache_bytes)


def prompt_bytes(
    tensors: Mapping[str, TensorInfo], *, predictors_run: bool, tokens: int, chunks: int, cache_bytes: float = 0.0
) -> TokenBytes:
    """What one of the `tokens` of a prompt needs that is computed in `chunks`.

    Each matrix is read once a chunk, the FFN's whole: between them the tokens of a chunk need nearly every row. The
    head is read for the last token alone. cache_bytes: keys and values a token, on average.
    """
    return _weigh(
        tensors,
        RowShares(),
        predictors_run=predictors_run,
        passes=chunks / tokens,
        head_passes=1 / tokens,
        cache_bytes=cache_bytes,
    )


def _weigh(
    tensors: Mapping[str, TensorInfo],
    shares: RowShares,
    *,
    predictors_run: bool,
    passes: float,
    head_passes: float,
    cache_bytes: float,
) -> TokenBytes:
    """passes, head_passes: how often a token makes the layers' matrices and the head be read."""
    share_of = {"ffn_gate": shares.gate, "ffn_up": shares.up, "ffn_down": shares.down, "ffn_down_t": shares.down}
    kinds = dict.fromkeys(("attention", "predictor", "ffn", "head"), 0.0)
    for name, info in tensors.items():
        base = name.split(".")[-2]
        if base in share_of:
            kinds["ffn"] += info.n_bytes * share_of[base] * passes
        elif base in ("fc1", "fc2"):
            kinds["predictor"] += info.n_bytes * predictors_run * passes
        elif base in ("token_embd", "position_embd"):
            tied = base == "token_embd" and "output.weight" not in tensors
            kinds["head"] += info.n_bytes * head_passes if tied else info.n_bytes / info.shape[0]
        elif base.startswith("output"):
            kinds["head"] += info.n_bytes * head_passes
        else:
            kinds["attention"] += info.n_bytes * passes
    return TokenBytes(**kinds, cache=cache_bytes)
