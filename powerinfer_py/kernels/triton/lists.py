# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Masks as lists and bits: ascending ids with a count for the device's own rows, packed bits for the host's.

A list is made in one launch without atomics and without waiting: a program counts everything before its own tile anew
(a layer's mask is some 10 to 30 KB and lies in the L2 cache) and then writes its tile behind that. So the order is the
neurons' order, whatever order programs run in. What lies before is asked for at once, as far as registers go: tile by
tile it took an H200 6.3 us for 11,008 neurons, a memory's latency for each tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.overlap import starts_early, wait_for_kernel_ahead

# Mask elements of a tile: 128 threads x 8. For 11,008 neurons 11 programs a token, the last of which reads 11 KB.
TILE = 1024
# Elements before a tile that are counted at once: 128 bytes a thread.
_BEFORE = 16384
# Tokens and columns of a program of a union, read together. A token after the other, the 512 of a prompt chunk took an
# H200 181 us, as long as a product.
_UNION_TOKENS, _UNION_COLUMNS = 64, 64


@triton.jit(do_not_specialize=["mask", "n", "stride"])
def list_kernel(mask, ids, counts, n, stride, TILE: tl.constexpr, BEFORE: tl.constexpr, EARLY: tl.constexpr):
    """Writes the ids of one tile's set elements, and from the last tile how many there are in all."""
    wait_for_kernel_ahead(EARLY)
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    offsets = tl.arange(0, TILE)
    at = tile * TILE + offsets
    value = tl.load(mask + token * stride + at, mask=at < n, other=0)
    chosen = (value != 0).to(tl.int32)
    first = tile * 0
    start = tile * 0
    while start < tile * TILE:
        before = start + tl.arange(0, BEFORE)
        found = tl.load(mask + token * stride + before, mask=before < tile * TILE, other=0)
        first += tl.sum((found != 0).to(tl.int32), axis=0)
        start += BEFORE
    place = first + tl.cumsum(chosen, axis=0) - chosen
    tl.store(ids + token * n + place, at, mask=chosen != 0)
    if (tile + 1) * TILE >= n:
        tl.store(counts + token, first + tl.sum(chosen, axis=0))


@triton.jit(do_not_specialize=["mask", "n_tokens", "n", "stride"])
def union_kernel(mask, union, n_tokens, n, stride, TOKENS: tl.constexpr, TILE: tl.constexpr):
    """Which columns of the mask any token has set, as bytes."""
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    found = tl.zeros((TOKENS, TILE), tl.int32)
    first = n_tokens * 0
    while first < n_tokens:
        token = first + tl.arange(0, TOKENS)
        place = token.to(tl.int64)[:, None] * stride + at[None, :]
        inside = (token < n_tokens)[:, None] & (at < n)[None, :]
        found = found | tl.load(mask + place, mask=inside, other=0).to(tl.int32)
        first += TOKENS
    tl.store(union + at, (tl.max(found, axis=0) != 0).to(tl.uint8), mask=at < n)


@triton.jit(do_not_specialize=["mask", "n", "n_bytes", "stride"])
def bits_kernel(mask, bits, n, n_bytes, stride, TILE: tl.constexpr, EARLY: tl.constexpr):
    """TILE bytes of eight mask elements each, element j of a byte its bit j."""
    wait_for_kernel_ahead(EARLY)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = at[:, None] * 8 + tl.arange(0, 8)[None, :]
    value = tl.load(mask + token * stride + column, mask=column < n, other=0)
    packed = tl.sum((value != 0).to(tl.int32) << tl.arange(0, 8)[None, :], axis=1)
    tl.store(bits + token * n_bytes + at, packed.to(tl.uint8), mask=at < n_bytes)


def _bytes_of(mask: Tensor) -> Tensor:
    """A bool mask as the bytes it is; float32 coefficients stay."""
    return mask.view(torch.uint8) if mask.dtype is torch.bool else mask


def require_mask(mask: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Raises TypeError or ValueError unless mask is bool of this shape; its rows may lie apart."""
    launch.require_strided(mask, "mask", torch.bool, shape, device)


def list_active(mask: Tensor, ids: Tensor, counts: Tensor) -> None:
    """ids[t]: ascending columns of mask[t] that are set (bool), or not 0 (float32); counts[t]: how many.

    mask: (T, n), rows may lie apart. ids: int32 (T, n), elements past the count are left alone. counts: int32 (T).
    """
    n_tokens, n = mask.shape
    launch.require(ids, "ids", torch.int32, (n_tokens, n), mask.device)
    launch.require(counts, "counts", torch.int32, (n_tokens,), mask.device)
    n_tiles = max(1, launch.cdiv(n, TILE))
    launch.run(
        list_kernel,
        (n_tokens, n_tiles),
        warps=4,
        mask=_bytes_of(mask),
        ids=ids,
        counts=counts,
        n=n,
        stride=mask.stride(0),
        TILE=TILE,
        BEFORE=_BEFORE,
        EARLY=starts_early(mask.device),
    )


def list_active_of_any(mask: Tensor, union: Tensor, ids: Tensor, count: Tensor) -> None:
    """The same for the columns that any token has set: ids int32 (n), count int32 (1). union: uint8 (n), scratch."""
    n_tokens, n = mask.shape
    launch.require(union, "union", torch.uint8, (n,), mask.device)
    launch.run(
        union_kernel,
        (launch.cdiv(n, _UNION_COLUMNS),),
        warps=4,
        mask=_bytes_of(mask),
        union=union,
        n_tokens=n_tokens,
        n=n,
        stride=mask.stride(0),
        TOKENS=_UNION_TOKENS,
        TILE=_UNION_COLUMNS,
    )
    list_active(union.view(torch.bool)[None, :], ids[None, :], count)


def pack_bits(mask: Tensor, bits: Tensor) -> None:
    """mask: bool (T, n), rows may lie apart. bits: uint8 (T, ceil(n / 8)); column j is bit j % 8 of byte j // 8."""
    n_tokens, n = mask.shape
    n_bytes = launch.cdiv(n, 8)
    require_mask(mask, (n_tokens, n), bits.device)
    launch.require(bits, "bits", torch.uint8, (n_tokens, n_bytes), mask.device)
    tile = 256
    launch.run(
        bits_kernel,
        (n_tokens, launch.cdiv(n_bytes, tile)),
        warps=4,
        mask=_bytes_of(mask),
        bits=bits,
        n=n,
        n_bytes=n_bytes,
        stride=mask.stride(0),
        TILE=tile,
        EARLY=starts_early(mask.device),
    )
