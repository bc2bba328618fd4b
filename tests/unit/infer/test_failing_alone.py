"""A request whose own code raises ends alone: the others write what they would have written without it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from pilgrim.core.errors import DataError
from pilgrim.core.runtime import Runtime
from pilgrim.infer.engine import Engine
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.scheduler import Request
from pilgrim.model.transformer import Transformer

VOCABULARY = 97
AT = 4  # the token at which things go wrong
SAMPLING = Sampling(temperature=1, top_p=0.9, repetition_penalty=1.2, max_tokens=20, seed=3)


class Planted(Exception):
    """What nobody foresaw."""


class Form:
    """A form that allows everything, counts tokens, and at one of them does `harm`."""

    complete, finished, trouble = True, False, None

    def __init__(self, harm: str = "none") -> None:
        self.fed, self.harm = 0, harm

    def allowed(self) -> torch.Tensor:
        if self.fed == AT and self.harm == "allowed":
            raise Planted
        size = VOCABULARY - (self.fed == AT and self.harm == "too few")
        return torch.full((size,), not (self.fed == AT and self.harm == "nothing"))

    def feed(self, token_id: int) -> None:
        self.fed += 1
        if self.fed == AT and self.harm == "feed":
            raise Planted


class Until:
    def __init__(self) -> None:
        self.told = 0

    def __call__(self, token_id: int) -> bool:
        self.told += 1
        if self.told == AT:
            raise Planted
        return False


def raises(reply: Sequence[int]) -> list[int]:
    if len(reply) == AT:
        raise Planted
    return []


def alien(reply: Sequence[int]) -> list[int]:
    return [VOCABULARY] if len(reply) == AT else []


FAULTS: dict[str, tuple[Callable[[], dict[str, Any]], type[Exception], int]] = {
    "until": (lambda: {"until": Until()}, Planted, AT),
    "follow": (lambda: {"follow": raises}, Planted, AT),
    "a forced token that is none": (lambda: {"follow": alien}, ValueError, AT),
    "feeding a form": (lambda: {"grammar": Form("feed")}, Planted, AT - 1),
    "asking a form": (lambda: {"grammar": Form("allowed")}, Planted, AT),
    "a form of too few tokens": (lambda: {"grammar": Form("too few")}, ValueError, AT),
    "a form that leaves nothing": (lambda: {"grammar": Form("nothing")}, DataError, AT),
}


def others(engine: Engine) -> list[Request]:
    """Free ones and one with a form; they share beginnings with who will fail."""
    prompts = [[5, 6, 7], list(range(40)), [*range(9), 3]]
    free = [engine.submit(prompt, SAMPLING, {10}, i) for i, prompt in enumerate(prompts)]
    greedy = SAMPLING.model_copy(update={"temperature": 0.0})
    return [*free, engine.submit([8], greedy, {10}, grammar=Form(), top_logprobs=2)]


@pytest.mark.parametrize("name", FAULTS)
def test_the_others_write_the_same(model: Transformer, runtime: Runtime, name: str) -> None:
    make, kind, written = FAULTS[name]
    calm = Engine(model, runtime, rows=6, block_tokens=4)
    expected = others(calm)
    while not calm.idle:
        calm.step()

    engine = Engine(model, runtime, rows=6, block_tokens=4)
    bad = [engine.submit(list(range(9)), SAMPLING, (), i, top_logprobs=1, **make()) for i in range(2)]
    found, told = others(engine), list[Request]()
    while not engine.idle:
        told += [event.request for event in engine.step()]
    assert [request.ids for request in found] == [request.ids for request in expected]
    assert not any(request.failure for request in found)
    for request in bad:
        assert request.over and not request.ended and isinstance(request.failure, kind)
        assert request.written == written
        assert request in told
        with pytest.raises(kind):
            request.complain()
    assert engine.cache_used == 0
    again = others(engine)
    while not engine.idle:
        engine.step()
    assert [request.ids for request in again] == [request.ids for request in expected]


def test_who_waits_for_a_reply_is_told(engine: Engine) -> None:
    class Broken:
        def answer(self, ids: Sequence[int]) -> list[int]:
            raise Planted

    with pytest.raises(Planted):
        engine.generate([[5], [6]], SAMPLING, (), tools=Broken())  # type: ignore[arg-type]
    with pytest.raises(Planted):
        list(engine.session().stream([5], SAMPLING, (), follow=raises))
    assert engine.idle and engine.cache_used == 0


def test_ctrl_c_between_two_replies_loses_no_token(model: Transformer, runtime: Runtime) -> None:
    """It comes while the first of three gets its token; the other two go on as if it had not."""
    calm = Engine(model, runtime)
    expected = others(calm)
    while not calm.idle:
        calm.step()

    def interrupted(token_id: int) -> bool:
        raise KeyboardInterrupt

    engine = Engine(model, runtime)
    first = engine.submit([5, 6], SAMPLING, (), until=interrupted)
    found = others(engine)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert first.over
    while not engine.idle:
        engine.step()
    assert [request.ids for request in found] == [request.ids for request in expected]
