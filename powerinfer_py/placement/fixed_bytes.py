"""What a budget is spent on before anything is placed: intermediate tensors of a prompt chunk, staging, tables.

It decides how many prompt tokens one forward takes, and nothing else. Invariant: the chunk is halved before anything
fails, and what is returned leaves room for the smallest thing that can be placed.
"""

from __future__ import annotations

from dataclasses import dataclass

from powerinfer_py.placement.budget import require_minimum
from powerinfer_py.placement.device_bytes import aligned
from powerinfer_py.placement.sizes import ModelSizes, staging_bytes, workspace_bytes

# A larger part of what the context leaves is worth more as neurons than as a longer prompt chunk.
ACTIVATION_SHARE = 0.25
# int64 counters a layer: gate, up and down products, neurons that fired.
COUNTS = 4


@dataclass(frozen=True)
class FixedBytes:
    """Bytes that do not depend on the placement, for prompt chunks of `n_tokens`. head_extra: what more the
    activations take where the head is on the device.
    """

    n_tokens: int
    activations: int
    staging: int
    tables: int
    head_extra: int

    @property
    def total(self) -> int:
        """All but the head's."""
        return self.activations + self.staging + self.tables


def fixed_bytes(sizes: ModelSizes, n_tokens: int) -> FixedBytes:
    """The bytes of a prompt chunk."""
    counts = aligned(8 * COUNTS * len(sizes.layers))
    without, with_head = (workspace_bytes(sizes, n_tokens, head_on_gpu=on_gpu) for on_gpu in (False, True))
    return FixedBytes(n_tokens, without + counts, staging_bytes(sizes, n_tokens), sizes.rope_bytes, with_head - without)


def minimum_bytes(sizes: ModelSizes, wanted: int, context_bytes: int) -> int:
    """The least budget of the whole process with which something can be placed."""
    fixed = fixed_bytes(sizes, min(wanted, sizes.n_slots))
    return context_bytes + fixed.total + _smallest_unit(sizes, fixed)


def choose_chunk(sizes: ModelSizes, wanted: int, budget_bytes: int, context_bytes: int) -> FixedBytes:
    """The longest prompt chunk up to `wanted` tokens that leaves room for the model.

    It holds a token of every sequence at least. Raises BudgetError, naming the minimum, where even that leaves no room
    for the smallest of what can be placed: a block, or the head.
    """
    require_minimum(budget_bytes, minimum_bytes(sizes, wanted, context_bytes))
    least = min(wanted, sizes.n_slots)
    left = budget_bytes - context_bytes
    chunk = wanted
    while chunk > least:
        fixed = fixed_bytes(sizes, chunk)
        if fixed.total <= ACTIVATION_SHARE * left and fixed.total + _smallest_unit(sizes, fixed) <= left:
            return fixed
        chunk = max(least, chunk // 2)
    return fixed_bytes(sizes, least)


def _smallest_unit(sizes: ModelSizes, fixed: FixedBytes) -> int:
    return min([sizes.head_bytes + fixed.head_extra, *(layer.block_bytes for layer in sizes.layers)])
