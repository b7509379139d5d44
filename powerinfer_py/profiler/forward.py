"""One sequence through an engine from an empty cache, in pieces of its batch size. Nothing is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from powerinfer_py.models.activity import LayerObserver
from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.runtime.engine import Engine

if TYPE_CHECKING:
    from torch import Tensor


def run_sequence(
    engine: Engine, token_ids: Sequence[int], *, logits_from: int | None = None, observer: LayerObserver | None = None
) -> Iterator[Tensor]:
    """Runs the tokens in slot 0 and yields, piece by piece, the logits (K, n_vocab) after tokens logits_from and later.

    logits_from: None for no logits; pieces without any yield an empty tensor. At most the engine's batch size of rows
    of logits exists at a time. The engine must hold all layers and must not be in use elsewhere.
    """
    import torch

    n_tokens = len(token_ids)
    engine.reserve(1, n_tokens)
    engine.cache.truncate(0, 0)
    ids = torch.tensor(token_ids, dtype=torch.int64)
    first = n_tokens if logits_from is None else logits_from
    for start in range(0, n_tokens, engine.batch_size):
        end = min(start + engine.batch_size, n_tokens)
        wanted = torch.arange(max(first - start, 0), end - start) if first < end else torch.arange(0)
        batch = ForwardBatch(
            ids[start:end],
            torch.arange(start, end),
            torch.zeros(end - start, dtype=torch.int64),
            wanted,
        )
        yield engine.forward(batch, observer=observer)
