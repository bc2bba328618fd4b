"""Replies: batches against one by one, stopping, limits, and sessions that don't read twice."""

from collections.abc import Sequence

import pytest
import torch

from pilgrim.core.errors import DataError
from pilgrim.core.runtime import Runtime
from pilgrim.infer.engine import TOKENS_PER_PASS, Engine, Reply
from pilgrim.infer.sampling import Sampling
from pilgrim.model.attention import Attend
from pilgrim.model.transformer import Transformer

GREEDY = Sampling(temperature=0, max_tokens=20)
LIVELY = Sampling(temperature=1, top_p=0.9, repetition_penalty=1.2, penalty_window=5, max_tokens=20, seed=3)
PROMPTS = [[5, 6, 7], [8], list(range(40)), [9, 9], [1, 2, 3, 4], list(range(50, 90)), [8]]


@pytest.mark.parametrize("sampling", [GREEDY, LIVELY], ids=["greedy", "lively"])
def test_a_batch_of_unequal_prompts_equals_one_by_one(engine: Engine, sampling: Sampling) -> None:
    stops = {10, 11, 12, 13, 14, 15}
    replies = engine.generate(PROMPTS, sampling, stops)
    alone = [list(engine.stream(prompt, sampling, stops, i)) for i, prompt in enumerate(PROMPTS)]
    assert [reply.ids for reply in replies] == alone
    assert len({len(reply.ids) for reply in replies}) > 2  # they did leave the batch at different times


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_reply_does_not_depend_on_the_batch(
    model: Transformer, runtime: Runtime, engine: Engine, rows: int
) -> None:
    small = Engine(model, runtime, rows)
    assert small.generate(PROMPTS, LIVELY, {10}) == engine.generate(PROMPTS, LIVELY, {10})
    assert engine.generate(PROMPTS[:3], LIVELY, {10}) == engine.generate(PROMPTS, LIVELY, {10})[:3]


def test_reading_prompts_in_chunks_changes_nothing(model: Transformer, runtime: Runtime) -> None:
    many = [[i % 97, *range(i % 50)] for i in range(400)]
    assert sum(map(len, many)) > TOKENS_PER_PASS["cpu"]
    short = LIVELY.model_copy(update={"max_tokens": 3})
    assert Engine(model, runtime, rows=400).generate(many, short, ()) == Engine(model, runtime).generate(
        many, short, ()
    )


def test_the_same_prompt_draws_anew_at_every_index_and_seed(engine: Engine) -> None:
    first, second = engine.generate([[8], [8]], LIVELY, ())
    (other,) = engine.generate([[8]], LIVELY.model_copy(update={"seed": 4}), ())
    assert first != second
    assert first != other
    assert engine.generate([[8]], LIVELY, ()) == [first]


def test_a_reply_ends_before_its_stop_token(engine: Engine) -> None:
    (whole,) = engine.generate([[5, 6, 7]], GREEDY, ())
    assert len(whole.ids) == 20
    assert not whole.ended
    stop = whole.ids[7]
    cut = whole.ids.index(stop)
    assert engine.generate([[5, 6, 7]], GREEDY, {stop}) == [Reply(whole.ids[:cut], ended=True)]


def test_max_tokens_counts_the_end(engine: Engine) -> None:
    (whole,) = engine.generate([[5, 6, 7]], GREEDY, ())
    last = next(i for i in range(19, 0, -1) if whole.ids[i] not in whole.ids[:i])
    for allowed, ended in ((last, False), (last + 1, True)):
        sampling = GREEDY.model_copy(update={"max_tokens": allowed})
        reply = Reply(whole.ids[:last], ended)
        assert engine.generate([[5, 6, 7]], sampling, {whole.ids[last]}) == [reply]


def test_prompt_and_reply_never_exceed_the_context(engine: Engine) -> None:
    long = Sampling(temperature=1, max_tokens=1000)
    prompts = [list(range(n)) for n in (1, 40, 63)]
    replies = engine.generate(prompts, long, ())
    assert [len(prompt) + len(reply.ids) for prompt, reply in zip(prompts, replies, strict=True)] == [64] * 3
    assert not any(reply.ended for reply in replies)


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ([], "prompt 1: has no tokens"),
        (list(range(64)), "prompt 1: 64 tokens leave no room for a reply in the model's context of 64"),
        ([3, 97], "prompt 1: the model knows only the ids 0 to 96"),
        ([-1, 3], "prompt 1: the model knows only the ids 0 to 96"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(
    engine: Engine, prompt: list[int], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        engine.generate([[1], prompt], GREEDY, ())


def test_no_prompts_no_replies(engine: Engine) -> None:
    assert engine.generate([], GREEDY, ()) == []


def test_a_session_answers_as_if_it_read_everything(engine: Engine) -> None:
    session = engine.session()
    conversation = [5, 6, 7]
    for turn in range(3):
        fresh = list(engine.stream(conversation, LIVELY, {10}, turn))
        assert list(session.stream(conversation, LIVELY, {10}, turn)) == fresh
        conversation = [*conversation, *fresh[:5], 3, 4]  # as if the reply were rendered a bit differently
    other = [5, 6, 90, 91]
    assert list(session.stream(other, GREEDY, ())) == list(engine.stream(other, GREEDY, ()))
    assert list(session.stream([5], GREEDY, ())) == list(engine.stream([5], GREEDY, ()))


class CountingEngine(Engine):
    """Notes how many tokens each pass has read."""

    def _forward(self, ids: Sequence[int], positions_1n: torch.Tensor, attend: Attend) -> torch.Tensor:
        self.passes = [*getattr(self, "passes", []), len(ids)]
        return super()._forward(ids, positions_1n, attend)


def test_what_the_cache_holds_is_not_read_again(model: Transformer, runtime: Runtime) -> None:
    engine = CountingEngine(model, runtime, block_tokens=4)
    session = engine.session()
    reply = list(session.stream(list(range(30)), GREEDY, ()))
    assert engine.passes == [30, *[1] * 19]
    engine.passes.clear()
    list(session.stream([*range(30), *reply, 3, 4], GREEDY.model_copy(update={"max_tokens": 1}), ()))
    # The last token of the reply was drawn, but not read yet, so 49 are held: 12 full blocks.
    assert engine.passes == [52 - 48]


def test_a_session_goes_on_after_a_reply_was_left_off(engine: Engine) -> None:
    session = engine.session()
    begun = session.stream([5, 6, 7], LIVELY, ())
    said = [next(begun) for _ in range(4)]
    begun.close()
    assert not session.ended
    follow_up = [5, 6, 7, *said, 8]
    assert list(session.stream(follow_up, LIVELY, ())) == list(engine.stream(follow_up, LIVELY, ()))


def test_the_engine_keeps_weights_of_its_own(model: Transformer, runtime: Runtime) -> None:
    engine = Engine(model, runtime)
    before = engine.generate([[5]], GREEDY, ())
    kept = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    try:
        assert engine.generate([[5]], GREEDY, ()) == before
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(kept)


def test_the_number_format_fits_the_work(model: Transformer) -> None:
    bf16 = Runtime(torch.device("cpu"), torch.bfloat16, compile=False, seed=1)
    assert Engine(model, bf16, rows=1).dtype == torch.float32
    many = Engine(model, bf16, rows=8)
    assert {parameter.dtype for parameter in many.model.parameters()} == {torch.bfloat16}
    assert [len(reply.ids) for reply in many.generate(PROMPTS, LIVELY, ())] == [20] * len(PROMPTS)
