from __future__ import annotations

import torch

from powerinfer_py.runtime.kv_cache import KVCache, common_prefix


def filled_cache() -> KVCache:
    """Two layers, two slots of different shapes of key and value, every element different."""
    cache = KVCache(n_layer=2, n_slots=2, n_head_kv=3, n_ctx=5, head_dim=4, head_dim_v=2)
    for i, layer in enumerate(cache.layers):
        layer.keys.copy_(torch.arange(layer.keys.numel()).view_as(layer.keys) + 1000 * i)
        layer.values.copy_(torch.arange(layer.values.numel()).view_as(layer.values) + 500 + 1000 * i)
    cache.append(0, [7, 8, 9])
    cache.append(1, [7, 8])
    return cache


def test_layers_share_one_block_without_overlap() -> None:
    cache = filled_cache()
    assert cache.n_bytes == 2 * 2 * 3 * 5 * (4 + 2) * 2
    pointers = set()
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):
            start = tensor.data_ptr()
            pointers |= set(range(start, start + 2 * tensor.numel(), 2))
    assert len(pointers) == cache.n_bytes // 2


def test_longest_prefix_and_copy() -> None:
    cache = filled_cache()
    assert cache.longest_prefix([7, 8, 9, 1]) == (0, 3)
    assert cache.longest_prefix([1]) == (0, 0)
    expected = cache.layers[1].keys[0, :, :2].clone()
    cache.copy_prefix(0, 1, 2)
    assert cache.tokens == [[7, 8, 9], [7, 8]]
    assert torch.equal(cache.layers[1].keys[1, :, :2], expected)


def test_copy_onto_itself_only_truncates() -> None:
    cache = filled_cache()
    cache.copy_prefix(0, 0, 1)
    assert cache.tokens[0] == [7]


def test_growing_keeps_what_is_held() -> None:
    cache = filled_cache()
    keys = [layer.keys[:, :, :3].clone() for layer in cache.layers]
    values = [layer.values[:, :, :3].clone() for layer in cache.layers]
    cache.grow(n_slots=4, n_ctx=11)
    assert (cache.n_slots, cache.n_ctx, len(cache.tokens)) == (4, 11, 4)
    for layer, key, value in zip(cache.layers, keys, values, strict=True):
        assert layer.keys.shape == (4, 3, 11, 4)
        assert torch.equal(layer.keys[0, :, :3], key[0])
        assert torch.equal(layer.values[1, :, :2], value[1, :, :2])


def test_growing_never_shrinks() -> None:
    cache = filled_cache()
    block = cache.layers[0].keys.data_ptr()
    cache.grow(n_slots=1, n_ctx=2)
    assert (cache.n_slots, cache.n_ctx, cache.layers[0].keys.data_ptr()) == (2, 5, block)


def test_common_prefix() -> None:
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == 2
