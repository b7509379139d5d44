"""Several layers of a decode step as one native call.

Between two calls the interpreter waits for its own memory, which weights have driven out of the caches, and the other
threads go to sleep meanwhile. Eight layers of the 7B shape in Q4_0 on two cores of a Zen 3: Python took 3.1 ms of a
token of 45 with two calls a layer, 1.0 of 35 with one for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from powerinfer_py import _native
from powerinfer_py.kernels.blocks import AttentionBlock, LayerBlocks, LayerCache, LayersResult
from powerinfer_py.kernels.matrix import RopeTable
from powerinfer_py.kernels.tensor_checks import cache_rows_type, require_tensor, rope_addresses, token_count


def run_native_layers(
    native: _native.CpuKernels,
    layers: Sequence[LayerBlocks],
    x: Tensor,
    caches: Sequence[LayerCache],
    slots: Tensor,
    positions: Tensor,
    rope: RopeTable | None,
    parallel: bool,
) -> LayersResult:
    """`Kernels.run_layers` over blocks that these kernels have prepared."""
    if len(layers) != len(caches):
        raise ValueError(f"{len(layers)} layers have {len(caches)} caches")
    counts = np.zeros((len(layers), 4), np.int64)
    if not layers:
        return LayersResult(x, counts, 0.0)
    n_tokens = token_count(x, layers[0].attention.output.matrix.rows)
    require_tensor(slots, "slots", torch.int64, (n_tokens,))
    require_tensor(positions, "positions", torch.int64, (n_tokens,))
    n_slots, _, n_ctx, _ = caches[0].keys.shape
    places = [_places(cache, layer.attention, n_slots, n_ctx) for cache, layer in zip(caches, layers, strict=True)]
    y = torch.empty_like(x)
    predictor_s = native.run_layers(
        [layer.attention.handle for layer in layers],
        [layer.feed_forward.handle for layer in layers],
        places,
        parallel,
        x.data_ptr(),
        y.data_ptr(),
        slots.data_ptr(),
        positions.data_ptr(),
        *rope_addresses(rope, n_ctx),
        n_tokens,
        n_slots,
        n_ctx,
        counts.ctypes.data,
    )
    return LayersResult(y, counts, predictor_s)


# A cache's tensors are those it was made with, so that they are looked at once: (n_slots, n_head_kv, n_ctx, head_dim,
# head_dim_v) that they were checked for, and what `_native` is told of them.
_Place = tuple[int, int, int, int]
_checked: WeakKeyDictionary[LayerCache, tuple[tuple[int, ...], _Place]] = WeakKeyDictionary()


def _places(cache: LayerCache, block: AttentionBlock, n_slots: int, n_ctx: int) -> _Place:
    """Addresses and types of keys and values."""
    sizes = (n_slots, block.n_head_kv, n_ctx, block.head_dim, block.head_dim_v)
    known = _checked.get(cache)
    if known is not None and known[0] == sizes:
        return known[1]
    key_type = cache_rows_type(cache.keys, "keys", sizes[:3], block.head_dim)
    value_type = cache_rows_type(cache.values, "values", sizes[:3], block.head_dim_v)
    place = (cache.keys.data_ptr(), key_type, cache.values.data_ptr(), value_type)
    _checked[cache] = (sizes, place)
    return place
