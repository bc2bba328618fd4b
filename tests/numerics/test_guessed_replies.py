"""Replies with guesses against those without: every token, event and thought must be the same.

The model has random weights with large embeddings, so what follows hangs on the last token above all, and the
text soon goes in circles; then guesses are right. Prompts that hold a pattern, and draws, make them wrong.
"""

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pilgrim.core.runtime import Runtime
from pilgrim.infer.engine import Engine, Event
from pilgrim.infer.lookup import FEW_TEXTS, MOST
from pilgrim.infer.sampling import Sampling
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer

RUNTIME = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
CONTEXT = 96
STOPS = (3, 4)


@pytest.fixture(scope="module")
def model() -> Transformer:
    settings = ModelSettings(
        depth=2, width=32, head_size=8, heads=4, kv_heads=2, context=CONTEXT, window=20, window_pattern="SL"
    )
    model = Transformer(settings.config(vocab_size=61))
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * parameter.shape[-1] ** -0.5 * 2)
        model.model.embed_tokens.weight.mul_(12)
    return model


@dataclass
class Asked:
    prompt: list[int]
    sampling: Sampling
    more: dict[str, Any]


def some_requests(seed: int, count: int) -> list[Asked]:
    dice = random.Random(seed)
    asked = []
    for i in range(count):
        pattern = [dice.randrange(5, 61) for _ in range(dice.randrange(4, 9))]
        sampling = Sampling(
            temperature=dice.choice([0.0, 0.0, 0.3, 0.8]),
            repetition_penalty=dice.choice([1.0, 1.0, 1.1]),
            dry_multiplier=dice.choice([0.0, 0.0, 0.1]),
            max_tokens=dice.randrange(20, 60),
            seed=i,
        )
        ending = dice.randrange(61)
        more: dict[str, Any] = {
            "top_logprobs": dice.choice([None, 2]),
            "follow": dice.choice([None, lambda ids: [9, 8, 7] if ids[-1] == 11 else []]),
            "until": dice.choice([None, lambda token_id, ending=ending: token_id == ending]),
        }
        asked.append(Asked((pattern * 5)[: dice.randrange(12, 35)], sampling, more))
    return asked


def run(
    model: Transformer, asked: list[Asked], lookup: bool, **options: Any
) -> tuple[Engine, Any, list[float]]:
    engine = Engine(model, RUNTIME, rows=4, lookup=lookup, **options)
    requests = [engine.submit(each.prompt, each.sampling, STOPS, **each.more) for each in asked]
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
    told, log_probs = [], list[float]()
    for request in requests:
        mine = [event for event in events if event.request is request]
        told.append((request.ids, request.ended, [event.token_id for event in mine]))
        log_probs += [event.scores.log_prob if event.scores else 0.0 for event in mine]
    return engine, told, log_probs


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("together", [1, 3, FEW_TEXTS + 4])
def test_guesses_change_nothing(seed: int, together: int, model: Transformer) -> None:
    asked = some_requests(seed, together)
    _, expected, likely = run(model, asked, lookup=False, block_tokens=4)
    for options in ({"block_tokens": 4}, {"block_tokens": 8, "cache_tokens": CONTEXT}):
        engine, told, log_probs = run(model, asked, lookup=True, **options)
        assert told == expected and log_probs == pytest.approx(likely, abs=1e-4)
        assert engine._queue.pool.free == engine._queue.pool.blocks


def test_guesses_save_passes(model: Transformer) -> None:
    greedy = Sampling(temperature=0, max_tokens=60)
    passes = []
    for lookup in (False, True):
        engine = Engine(model, RUNTIME, lookup=lookup)
        request = engine.submit([7, 8, 9, 10] * 5, greedy)
        passes.append(0)
        while not request.over:
            engine.step()
            passes[-1] += 1
    assert passes[0] == 60 and passes[1] < 50
    assert 60 - engine.right <= passes[1] and engine.right <= engine.guessed <= MOST * passes[1]


def test_a_conversation_finds_blocks_that_were_written_by_guesses(model: Transformer) -> None:
    """Blocks are named only when their tokens are certain, and all of them are."""
    engine = Engine(model, RUNTIME, lookup=True, block_tokens=4, cache_tokens=4 * CONTEXT)
    first = engine.submit([7, 8, 9, 10] * 5, Sampling(temperature=0, max_tokens=40))
    while not first.over:
        engine.step()
    assert engine.right > 5
    whole = list(first.tokens)
    found = engine._queue.pool.find(first.names)
    assert len(first.names) >= (len(whole) - 1) // 4 and len(found) == len(first.names)
    again = engine.submit([*whole, 5], Sampling(temperature=0, max_tokens=20))
    while not again.over:
        engine.step()
    fresh = Engine(model, RUNTIME).generate([[*whole, 5]], Sampling(temperature=0, max_tokens=20), ())
    assert again.ids == fresh[0].ids


def test_many_texts_make_no_guesses(model: Transformer) -> None:
    engine = Engine(model, RUNTIME, rows=FEW_TEXTS + 1, lookup=True)
    for _ in range(FEW_TEXTS + 1):
        engine.submit([7, 8, 9, 10] * 5, Sampling(temperature=0, max_tokens=30))
    while len(engine._queue.running) > FEW_TEXTS or engine._queue.waiting:
        engine.step()
    assert engine.guessed == 0
