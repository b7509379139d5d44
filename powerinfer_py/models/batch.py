"""The tokens of one forward: which they are, whose they are, and where in their sequence they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ForwardBatch:
    """T tokens of one or several sequences, each with its own position.

    token_ids, positions, slots: (T; int64). A slot is the place of a sequence in the KV cache; token t attends to
    positions 0 .. positions[t] of its slot. Tokens of one slot come in ascending order of position.
    logits_of: (K; int64) indices into the batch whose logits are wanted, or None for all T.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    logits_of: Tensor | None = None

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])
