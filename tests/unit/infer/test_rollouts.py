"""Rollouts: what was drawn, what was forced, how likely it was; and an engine that gets new weights."""

import copy
from collections.abc import Sequence

import pytest
import torch

from pilgrim.core.runtime import Runtime
from pilgrim.infer.engine import Engine
from pilgrim.infer.rollouts import write
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.tools import CALL, END_OF_CALL, END_OF_RESPONSE, RESPONSE
from pilgrim.model.attention import causal_attention
from pilgrim.model.transformer import Transformer

PROMPTS = [[5, 20, 7], [28], list(range(16, 50)), [5, 20, 7]]
STOPS = {10, 11, 12, 13, 14, 15}
DRAWN = Sampling(temperature=1.0, max_tokens=20, seed=3)


class Echo:
    """A tool that answers with the same two ids."""

    def answer(self, ids: Sequence[int]) -> list[int]:
        return [RESPONSE, 60, 61, END_OF_RESPONSE] if ids[-1] == END_OF_CALL else []


def likely(model: Transformer, prompt: Sequence[int], ids: Sequence[int], temperature: float) -> list[float]:
    """The slow twin: the whole text at once."""
    whole = torch.tensor([[*prompt, *ids]])
    with torch.no_grad():
        scores = model.logits(model(whole, causal_attention))[0] / temperature
    found = scores.log_softmax(-1)[:-1].gather(1, whole[0, 1:, None])[:, 0]
    return found[len(prompt) - 1 :].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_what_was_drawn_from(
    model: Transformer, engine: Engine, temperature: float
) -> None:
    sampling = DRAWN.model_copy(update={"temperature": temperature})
    found = write(engine, PROMPTS, sampling, STOPS, range(4))
    assert {one.ended for one in found} == {True, False}
    for prompt, one in zip(PROMPTS, found, strict=True):
        assert all(one.drawn)
        assert (one.ids[-1] in STOPS) == one.ended
        assert one.logprobs == pytest.approx(likely(model, prompt, one.ids, temperature), abs=1e-4)


def test_a_rollout_is_the_reply_that_the_engine_gives(engine: Engine) -> None:
    replies = engine.generate(PROMPTS, DRAWN, STOPS)
    found = write(engine, PROMPTS, DRAWN, STOPS, range(4))
    assert [one.ids[: len(one.ids) - one.ended] for one in found] == [reply.ids for reply in replies]
    alone = [write(engine, [prompt], DRAWN, STOPS, [i])[0].ids for i, prompt in enumerate(PROMPTS)]
    assert alone == [one.ids for one in found]


def test_what_a_tool_answers_is_not_drawn_and_too_many_calls_are_not_answered(
    model: Transformer, runtime: Runtime
) -> None:
    eager = copy.deepcopy(model)
    with torch.no_grad():  # whatever it has read, the end of a call is by far the likeliest
        for parameter in eager.parameters():
            parameter.zero_()
        eager.model.embed_tokens.weight.fill_(1.0)
        eager.model.norm.weight.fill_(1.0)
        eager.lm_head.weight[END_OF_CALL] = 10.0
    sampling = DRAWN.model_copy(update={"max_tokens": 13})
    engine = Engine(eager, runtime)
    (one,) = write(engine, [[5, CALL]], sampling, (), [0], Echo(), most_calls=2)  # type: ignore[arg-type]
    answered, unanswered = [END_OF_CALL, RESPONSE, 60, 61, END_OF_RESPONSE], [RESPONSE, END_OF_RESPONSE]
    assert one.ids == [*answered, *answered, END_OF_CALL, *unanswered]
    assert one.drawn == [i == END_OF_CALL for i in one.ids]
    assert all(logprob == 0 for logprob, drawn in zip(one.logprobs, one.drawn, strict=True) if not drawn)
    assert not one.ended


@pytest.mark.parametrize(
    "change", [{"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 5}, {"repetition_penalty": 1.1}]
)
def test_filters_are_refused(engine: Engine, change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="without filters"):
        write(engine, PROMPTS, DRAWN.model_copy(update=change), STOPS, range(4))


def test_new_weights_write_what_a_new_engine_would(model: Transformer, runtime: Runtime) -> None:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    engine = Engine(model, runtime)
    before = write(engine, PROMPTS, DRAWN, STOPS, range(4))  # the cache now holds these prompts
    engine.load(other)
    found = write(engine, PROMPTS, DRAWN, STOPS, range(4))
    assert found == write(Engine(other, runtime), PROMPTS, DRAWN, STOPS, range(4))
    assert found != before
    engine.load(model)
    assert write(engine, PROMPTS, DRAWN, STOPS, range(4)) == before


def test_weights_are_not_changed_in_the_middle_of_a_reply(model: Transformer, runtime: Runtime) -> None:
    engine = Engine(model, runtime)
    request = engine.submit([5], DRAWN)
    with pytest.raises(ValueError, match="being written"):
        engine.load(model)
    engine.cancel(request)
    engine.load(model)
