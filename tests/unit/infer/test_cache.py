"""The KV cache's bookkeeping; that it changes no result is tested in numerics."""

import pytest
import torch

from pilgrim.infer.cache import KVCache
from pilgrim.model.attention import causal_attention
from pilgrim.model.config import ModelSettings

CONFIG = ModelSettings(depth=1, width=16, head_size=4, heads=4, kv_heads=2).config(vocab_size=300)


def make(rows: int, capacity: int) -> KVCache:
    return KVCache(CONFIG, rows, capacity, torch.float32, torch.device("cpu"))


def qkv(b: int, t: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(b, heads, t, 4, generator=draw) for heads in (4, 2, 2))
    return q, k, v


def test_positions_follow_the_tokens_of_each_row() -> None:
    cache = make(rows=3, capacity=10)
    assert cache.extend(0, [2, 4, 1])[0].tolist() == [[0, 1, 2, 3]] * 3
    assert cache.lengths == [2, 4, 1]
    assert cache.extend(1, [1, 2])[0].tolist() == [[4, 5], [1, 2]]
    assert cache.lengths == [2, 5, 3]
    assert cache.extend(0, [1, 1, 1])[0].tolist() == [[2], [5], [3]]


def test_a_dropped_row_is_replaced_by_the_last() -> None:
    cache = make(rows=3, capacity=10)
    q, k, v = qkv(3, 5, seed=1)
    cache.extend(0, [5, 3, 4])[1](0, q, k, v)
    cache.drop(0)
    assert cache.lengths == [4, 3]
    q2, k2, v2 = qkv(2, 1, seed=2)
    out = cache.extend(0, [1, 1])[1](0, q2, k2, v2)
    for row, (before, length) in enumerate([(2, 4), (1, 3)]):
        keys = torch.cat([k[before, :, :length], k2[row]], dim=1)[None]
        values = torch.cat([v[before, :, :length], v2[row]], dim=1)[None]
        queries = torch.cat([q[before, :, :length], q2[row]], dim=1)[None]
        torch.testing.assert_close(out[row], causal_attention(0, queries, keys, values)[0, :, -1:])


def test_dropping_the_last_row_leaves_the_others() -> None:
    cache = make(rows=2, capacity=4)
    cache.extend(0, [1, 2])
    cache.drop(1)
    assert cache.lengths == [1]
    cache.drop(0)
    assert cache.lengths == []


def test_a_full_cache_says_so() -> None:
    cache = make(rows=1, capacity=4)
    cache.extend(0, [3])
    with pytest.raises(IndexError, match="the cache has 4 slots a row, but 5 are needed"):
        cache.extend(0, [2])
    assert cache.lengths == [3]
