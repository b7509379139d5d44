"""What a budget is spent on besides weights and caches: intermediate tensors of a prompt chunk, tables, and staging
where a layer is split.

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
    """Bytes for prompt chunks of `n_tokens`. staging: where a layer is split. head_extra: what more the activations
    take where the head is on the device.
    """

    n_tokens: int
    activations: int
    staging: int
    tables: int
    head_extra: int

    @property
    def total(self) -> int:
        """What does not depend on the placement."""
        return self.activations + self.tables


def fixed_bytes(sizes: ModelSizes, n_tokens: int) -> FixedBytes:
    """The bytes of a prompt chunk."""
    counts = aligned(8 * COUNTS * len(sizes.layers))
    without, with_head = (workspace_bytes(sizes, n_tokens, head_on_gpu=on_gpu) for on_gpu in (False, True))
    return FixedBytes(n_tokens, without + counts, staging_bytes(sizes, n_tokens), sizes.rope_bytes, with_head - without)


def minimum_bytes(sizes: ModelSizes, wanted: int, context_bytes: int) -> int:
    """The least budget of the whole process with which something can be placed."""
    fixed = fixed_bytes(sizes, min(wanted, sizes.n_slots))
    return context_bytes + fixed.total + _smallest_unit(sizes, fixed)


def choose_chunk(
    sizes: ModelSizes, wanted: int, budget_bytes: int, context_bytes: int, growth_bytes: int = 0
) -> FixedBytes:
    """The longest prompt chunk up to `wanted` tokens that leaves room for the model.

    It holds a token of every sequence at least. growth_bytes: by how much the context may turn out larger than it is
    now; not asked for, but part of the minimum that an error names. Raises BudgetError, naming the minimum, where even
    that leaves no room for the smallest of what can be placed: a block, or the head.
    """
    require_minimum(budget_bytes, minimum_bytes(sizes, wanted, context_bytes), growth_bytes)
    least = min(wanted, sizes.n_slots)
    left = budget_bytes - context_bytes
    chunk = wanted
    while chunk > least:
        fixed = fixed_bytes(sizes, chunk)
        is_little = fixed.total + fixed.staging <= ACTIVATION_SHARE * left
        if is_little and fixed.total + _smallest_unit(sizes, fixed) <= left:
            return fixed
        chunk = max(least, chunk // 2)
    return fixed_bytes(sizes, least)


def _smallest_unit(sizes: ModelSizes, fixed: FixedBytes) -> int:
    """The head, or a block, whose neurons are on the other side."""
    blocks = (layer.block_bytes + fixed.staging for layer in sizes.layers)
    return min(sizes.head_bytes + fixed.head_extra, *blocks)
