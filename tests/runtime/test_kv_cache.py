from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from powerinfer_py.config import CacheType
from powerinfer_py.errors import ContextError, OptionError
from powerinfer_py.kernels.cache_rows import encode_rows
from powerinfer_py.runtime import kv_cache
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


@pytest.mark.parametrize("type_k", CacheType)
@pytest.mark.parametrize("type_v", CacheType)
def test_types_of_keys_and_values(type_k: CacheType, type_v: CacheType) -> None:
    cache = KVCache(2, 2, 3, 5, head_dim=64, head_dim_v=32, type_k=type_k, type_v=type_v)
    row = {CacheType.F16: 64, CacheType.Q8_0: 34}
    assert cache.n_bytes == 2 * 2 * 3 * 5 * (2 * row[type_k] + row[type_v])
    assert cache.to_dict() == {
        "type_k": str(type_k),
        "type_v": str(type_v),
        "n_slots": 2,
        "n_ctx": 5,
        "bytes": cache.n_bytes,
    }
    spans = []
    for layer in cache.layers:
        for rows, cache_type, dim in ((layer.keys, type_k, 64), (layer.values, type_v, 32)):
            assert rows.is_contiguous()
            start = rows.data_ptr()
            spans.append((start, start + rows.numel() * rows.element_size()))
            rows.copy_(encode_rows(torch.randn(2, 3, 5, dim), cache_type))
    assert all(end == start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] - spans[0][0] == cache.n_bytes
    cache.append(0, [1, 2, 3])
    held = [(layer.keys[0, :, :3].clone(), layer.values[0, :, :3].clone()) for layer in cache.layers]
    cache.copy_prefix(0, 1, 3)
    cache.grow(n_slots=3, n_ctx=9)
    assert cache.n_bytes == 2 * 3 * 3 * 9 * (2 * row[type_k] + row[type_v])
    for layer, (keys, values) in zip(cache.layers, held, strict=True):
        for slot in (0, 1):
            assert torch.equal(layer.keys[slot, :, :3], keys)
            assert torch.equal(layer.values[slot, :, :3], values)


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(OptionError, match=r"head_dim of this model is 20"):
        KVCache(1, 1, 1, 4, 20, 32, type_k=CacheType.Q8_0)
    with pytest.raises(OptionError, match=r"head_dim_v of this model is 20"):
        KVCache(1, 1, 1, 4, 32, 20, type_v=CacheType.Q8_0)
    assert KVCache(1, 1, 1, 4, 20, 32, type_v=CacheType.Q8_0).types_text == "keys f16, values q8_0"


def test_what_does_not_fit_names_type_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def fits(n_bytes: int) -> bool:
        asked.append(n_bytes)
        return False

    monkeypatch.setattr(kv_cache, "fits_in_memory", fits)
    for cache_type, n_bytes, size in ((CacheType.F16, 2**32, "4.0 GiB"), (CacheType.Q8_0, 2**31 * 34 // 32, "2.1 GiB")):
        with pytest.raises(ContextError, match=rf"\({cache_type}\).*{size}"):
            KVCache(32, 1, 8, 32768, 128, 128, cache_type, cache_type)
        assert asked[-1] == n_bytes


def test_growing_never_shrinks() -> None:
    cache = filled_cache()
    block = cache.layers[0].keys.data_ptr()
    cache.grow(n_slots=1, n_ctx=2)
    assert (cache.n_slots, cache.n_ctx, cache.layers[0].keys.data_ptr()) == (2, 5, block)


def test_common_prefix() -> None:
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == 2


def test_a_refused_growth_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache(2, 1, 1, 4, 20, 32)
    before = (cache.n_slots, cache.n_ctx, cache.n_bytes, cache.layers)

    def refuse(*_sizes: int) -> None:
        raise MemoryError

    monkeypatch.setattr(kv_cache, "_host_block", refuse)
    with pytest.raises(MemoryError):
        cache.grow(2, 8)
    assert (cache.n_slots, cache.n_ctx, cache.n_bytes) == before[:3]
    assert cache.layers is before[3]
