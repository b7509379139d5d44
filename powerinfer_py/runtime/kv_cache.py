"""Keys and values of every live sequence, preallocated: in one block of memory, or of a device for the layers there.

A slot is the place of one sequence. The cache knows which tokens a slot holds, so that whoever starts a sequence can
reuse the longest prefix that is already there; which sequence uses which slot is decided by the generation loop.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from powerinfer_py.config import CacheType
from powerinfer_py.errors import ContextError
from powerinfer_py.kernels.blocks import LayerCache
from powerinfer_py.kernels.cache_rows import cache_layout, cache_row_bytes, require_whole_blocks
from powerinfer_py.runtime.host_memory import fits_in_memory

if TYPE_CHECKING:
    from torch import Tensor


class DeviceBytes(Protocol):
    """Memory of a device, set aside for keys and values."""

    def take(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes)."""


class KVCache:
    """n_slots x n_ctx tokens for n_layer layers; the memory is committed by the system as it is written.

    The layout of a layer is (n_slots, n_head_kv, n_ctx, row) for keys and again for values; a row holds head_dim or
    head_dim_v values as type_k and type_v say. device_layers: where the memory of some layers comes from; it was
    reserved for these sizes, so that such a cache cannot grow. enqueuing: in which copies there are made, so that they
    keep their place among the device's work. Raises ContextError where the memory is not there, and
    OptionError for a type that cannot store rows of that length.
    """

    def __init__(
        self,
        n_layer: int,
        n_slots: int,
        n_head_kv: int,
        n_ctx: int,
        head_dim: int,
        head_dim_v: int,
        type_k: CacheType = CacheType.F16,
        type_v: CacheType = CacheType.F16,
        device_layers: Mapping[int, DeviceBytes] | None = None,
        enqueuing: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        require_whole_blocks(type_k, head_dim, "head_dim")
        require_whole_blocks(type_v, head_dim_v, "head_dim_v")
        self.n_layer = n_layer
        self.n_slots = n_slots
        self.n_head_kv = n_head_kv
        self.n_ctx = n_ctx
        self.head_dim = head_dim
        self.head_dim_v = head_dim_v
        self.type_k = type_k
        self.type_v = type_v
        self.tokens: list[list[int]] = [[] for _ in range(n_slots)]
        self._device_layers = dict(device_layers or {})
        self._enqueuing = enqueuing
        self._allocate()

    def _allocate(self) -> None:
        n_rows = self.n_slots * self.n_head_kv * self.n_ctx
        key_bytes = n_rows * cache_row_bytes(self.type_k, self.head_dim)
        value_bytes = n_rows * cache_row_bytes(self.type_v, self.head_dim_v)
        self.n_bytes = self.n_layer * (key_bytes + value_bytes)
        n_host = self.n_layer - len(self._device_layers)
        self._require_memory(n_host * (key_bytes + value_bytes))
        parts = iter(_host_block(n_host, key_bytes + value_bytes))
        self.layers = []
        for layer in range(self.n_layer):
            if (device := self._device_layers.get(layer)) is not None:
                keys, values = device.take(key_bytes), device.take(value_bytes)
            else:
                part = next(parts)
                keys, values = part[:key_bytes], part[key_bytes:]
            self.layers.append(
                LayerCache(
                    self._rows(keys, self.type_k, self.head_dim), self._rows(values, self.type_v, self.head_dim_v)
                )
            )

    def _rows(self, part: Tensor, cache_type: CacheType, dim: int) -> Tensor:
        dtype, n = cache_layout(cache_type, dim)
        return part.view(dtype).view(self.n_slots, self.n_head_kv, self.n_ctx, n)

    def _require_memory(self, n_bytes: int) -> None:
        """Refuses what could never be committed, before the system ends the process for trying."""
        if not fits_in_memory(n_bytes):
            raise ContextError(
                f"the KV cache of {self.n_slots} x {self.n_ctx} tokens ({self.types_text}) needs "
                f"{n_bytes / 2**30:.1f} GiB, more than is available: ask for a shorter context or fewer sequences"
            )

    @property
    def types_text(self) -> str:
        """How keys and values are stored, in words."""
        return str(self.type_k) if self.type_k is self.type_v else f"keys {self.type_k}, values {self.type_v}"

    @property
    def grows(self) -> bool:
        """Whether there can be more sequences or longer ones than now."""
        return not self._device_layers

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: type_k, type_v, n_slots, n_ctx, bytes."""
        return {
            "type_k": str(self.type_k),
            "type_v": str(self.type_v),
            "n_slots": self.n_slots,
            "n_ctx": self.n_ctx,
            "bytes": self.n_bytes,
        }

    def grow(self, n_slots: int, n_ctx: int) -> None:
        """Makes room for at least `n_slots` sequences of `n_ctx` tokens; what the cache holds is kept.

        Raises ContextError where the memory is not there.
        """
        if n_slots <= self.n_slots and n_ctx <= self.n_ctx:
            return
        if not self.grows:
            raise ContextError(
                f"the KV cache on the GPU was made for {self.n_slots} x {self.n_ctx} tokens, and "
                f"{max(n_slots, self.n_slots)} x {max(n_ctx, self.n_ctx)} are needed: load the model with a longer "
                "context or more sequences"
            )
        old, old_slots, old_ctx, old_bytes = self.layers, self.n_slots, self.n_ctx, self.n_bytes
        self.n_slots, self.n_ctx = max(n_slots, old_slots), max(n_ctx, old_ctx)
        try:
            self._allocate()
        except (ContextError, OSError, MemoryError):
            self.layers, self.n_slots, self.n_ctx, self.n_bytes = old, old_slots, old_ctx, old_bytes
            raise
        for slot in range(old_slots):
            n = len(self.tokens[slot])
            for before, after in zip(old, self.layers, strict=True):
                _copy_tokens(before, slot, after, slot, n)
        self.tokens += [[] for _ in range(self.n_slots - old_slots)]

    def truncate(self, slot: int, n_tokens: int) -> None:
        """Forgets all but the first `n_tokens` tokens of a slot."""
        del self.tokens[slot][n_tokens:]

    def append(self, slot: int, token_ids: Sequence[int]) -> None:
        """Notes that the keys and values of `token_ids` now follow what the slot held."""
        self.tokens[slot].extend(token_ids)

    def longest_prefix(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """(slot, length) of the slot that shares the longest prefix with `token_ids`; length 0 where none does."""
        lengths = [common_prefix(held, token_ids) for held in self.tokens]
        best = max(range(self.n_slots), key=lengths.__getitem__)
        return best, lengths[best]

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> None:
        """Makes slot `target` hold exactly the first `n_tokens` tokens of slot `source`."""
        if source != target:
            with self._enqueuing():
                for layer in self.layers:
                    _copy_tokens(layer, source, layer, target, n_tokens)
            self.tokens[target] = self.tokens[source][:n_tokens]
        self.truncate(target, n_tokens)


def _host_block(n_layer: int, layer_bytes: int) -> Tensor:
    """uint8 (n_layer, layer_bytes), zero.

    Anonymous pages are committed as they are written. torch.zeros writes them all, 2 GiB for a 7B model, and numpy asks
    for huge pages, of which the first token of every head would touch all.
    """
    import torch

    if not n_layer * layer_bytes:
        return torch.empty(n_layer, layer_bytes, dtype=torch.uint8)
    block = torch.frombuffer(mmap.mmap(-1, n_layer * layer_bytes), dtype=torch.uint8)
    return block.view(n_layer, layer_bytes)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _copy_tokens(source: LayerCache, source_slot: int, target: LayerCache, target_slot: int, n_tokens: int) -> None:
    target.keys[target_slot, :, :n_tokens] = source.keys[source_slot, :, :n_tokens]
    target.values[target_slot, :, :n_tokens] = source.values[source_slot, :, :n_tokens]
