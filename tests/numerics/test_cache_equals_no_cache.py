"""Generating with a KV cache against its slow twin: reading the whole text anew for every token."""

import pytest
import torch
from cached_reading import Reader

from pilgrim.core.runtime import Runtime
from pilgrim.infer.engine import Engine
from pilgrim.infer.sampling import Sampling
from pilgrim.model.attention import packed_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer

RUNTIME = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
GREEDY = Sampling(temperature=0, max_tokens=200)
SHAPES = {
    "a key head for each query head": ModelSettings(depth=2, width=64, head_size=16, context=256),
    "grouped queries": ModelSettings(depth=3, width=48, head_size=8, heads=6, kv_heads=2, context=256),
    "one key head, tied": ModelSettings(
        depth=2, width=32, head_size=8, heads=4, kv_heads=1, context=256, tied=True
    ),
    "windows": ModelSettings(
        depth=3, width=48, head_size=8, heads=6, kv_heads=2, context=256, window=7, window_pattern="SL"
    ),
    "a window of one": ModelSettings(depth=2, width=32, head_size=8, context=256, window=1),
}


@pytest.fixture(params=SHAPES, scope="module")
def model(request: pytest.FixtureRequest) -> Transformer:
    model = Transformer(SHAPES[request.param].config(vocab_size=200))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * parameter.shape[-1] ** -0.5 * 1.5)
    return model


def random_ids(length: int, seed: int) -> list[int]:
    return torch.randint(200, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def uncached(model: Transformer, ids: list[int]) -> torch.Tensor:
    """Scores after every token of one text, [t, v]."""
    one_document = torch.zeros(1, len(ids))
    attend = packed_attention(one_document, torch.float32, model.windows)
    return model.logits(model(torch.tensor([ids]), attend))[0]


@pytest.mark.parametrize("pieces", [[1] * 60, [60], [17, 1, 1, 30, 1, 10], [1, 59], [59, 1]], ids=str)
def test_scores_are_the_same_however_a_text_is_read(model: Transformer, pieces: list[int]) -> None:
    reader, ids, read = Reader(model, rows=1, capacity=60), random_ids(60, seed=2), 0
    expected = uncached(model, ids)
    for size in pieces:
        scores_1v = reader.read(0, [ids[read : read + size]])
        read += size
        torch.testing.assert_close(scores_1v[0], expected[read - 1], rtol=1e-5, atol=1e-5)


def test_scores_are_the_same_in_a_batch_of_unequal_rows(model: Transformer) -> None:
    texts = [random_ids(length, seed=length) for length in (30, 3, 17, 22)]
    more = [random_ids(length, seed=50 + length) for length in (2, 9, 1, 5)]
    reader = Reader(model, rows=4, capacity=50)
    reader.read(0, texts[:2])
    reader.read(2, texts[2:])
    for parts in (more, [[7], [8], [9], [10]]):
        scores_bv = reader.read(0, parts)
        texts = [text + part for text, part in zip(texts, parts, strict=True)]
        expected = torch.stack([uncached(model, text)[-1] for text in texts])
        torch.testing.assert_close(scores_bv, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [4, 16])
def test_windows_may_be_read_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long prompts go through windows a block of queries at a time."""
    monkeypatch.setattr("pilgrim.infer.paged_attention.QUERIES", block)
    model = Transformer(SHAPES["windows"].config(vocab_size=200))
    initialize(model, torch.Generator().manual_seed(3))
    reader, ids = Reader(model, rows=2, capacity=80), random_ids(60, seed=2)
    reader.read(0, [ids[:40], ids[:9]])
    scores_bv = reader.read(0, [ids[40:], ids[9:29]])
    expected = torch.stack([uncached(model, ids)[-1], uncached(model, ids[:29])[-1]])
    torch.testing.assert_close(scores_bv, expected, rtol=1e-5, atol=1e-5)


def test_200_greedy_tokens_are_the_same(model: Transformer) -> None:
    prompts = [random_ids(length, seed=length) for length in (4, 40, 11)]
    replies = Engine(model, RUNTIME).generate(prompts, GREEDY, ())
    for prompt, reply in zip(prompts, replies, strict=True):
        assert len(reply.ids) == 200
        text = prompt + reply.ids
        # Each of them is the likeliest after the text before it: all in one pass, as nothing looks ahead.
        assert uncached(model, text)[len(prompt) - 1 : -1].argmax(-1).tolist() == reply.ids
