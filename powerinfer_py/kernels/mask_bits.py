"""Masks of neurons as bits, the form in which they travel between devices. Plain torch; the definition of the layout.

Column j is bit j % 8 of byte j // 8, as numpy's `bitorder="little"`; a row of bits is a whole number of bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def bytes_of_bits(n: int) -> int:
    """Bytes that hold `n` bits."""
    return (n + 7) // 8


def pack_columns(mask: Tensor, begin: int) -> Tensor:
    """Columns `begin` and on of mask (T, n; bool) as uint8 (T, bytes_of_bits(n - begin)); bits left over are 0."""
    import torch

    n_tokens, n = mask.shape[0], mask.shape[1] - begin
    bits = torch.zeros(n_tokens, bytes_of_bits(n), 8, dtype=torch.uint8, device=mask.device)
    bits.view(n_tokens, 8 * bits.shape[1])[:, :n] = mask[:, begin:]
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=mask.device)
    return (bits * weights).sum(dim=2, dtype=torch.uint8)


def unpack_columns(bits: Tensor, n: int) -> Tensor:
    """The mask (T, n; bool) whose bits (T, bytes_of_bits(n); uint8) are given."""
    import torch

    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, :, None] >> shifts) & 1).bool().view(bits.shape[0], 8 * bits.shape[1])[:, :n].contiguous()
