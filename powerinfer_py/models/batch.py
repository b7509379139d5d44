"""The tokens of one forward: which they are, whose they are, and where in their sequence they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ForwardBatch:
    """T tokens of one or several sequences, each with its own position.

    token_ids, positions, slots: (T; int64). A slot is the place of a sequence in the KV cache; token t attends to
    positions 0 .. positions[t] of its slot. Tokens of one slot come in ascending order of position.
    logits_of: (K; int64) ascending indices into the batch whose logits are wanted, or None for all T.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    logits_of: Tensor | None = None

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    def chunks(self, size: int) -> Iterator[ForwardBatch]:
        """The same tokens in order, at most `size` at a time; logits are wanted of the same ones."""
        if len(self) <= size:
            yield self
            return
        for begin in range(0, len(self), size):
            part = slice(begin, begin + size)
            wanted = self.logits_of
            if wanted is not None:
                wanted = wanted[(wanted >= begin) & (wanted < begin + size)] - begin
            yield ForwardBatch(self.token_ids[part], self.positions[part], self.slots[part], wanted)
