"""What the engine writes becomes messages to learn from, calls of tools included."""

import pytest

from pilgrim.data.conversations import conversation_of
from pilgrim.infer.tools import spoken
from pilgrim.synth.filters import reason_against, spoken_turns
from pilgrim.synth.own_run import answer_of
from pilgrim.synth.settings import FilterSettings
from pilgrim.text.calls import CALL, END_OF_CALL, END_OF_RESPONSE, RESPONSE
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["She makes 18 dollars with 9*2 eggs."], 272)


def test_a_call_becomes_messages(tokenizer: Tokenizer) -> None:
    said = tokenizer.encode
    ids = [*said("She makes "), CALL, *said("9*2"), END_OF_CALL, RESPONSE, *said("18"), END_OF_RESPONSE]
    answer = answer_of([*ids, *said(" dollars.")], True, 7, tokenizer)
    assert [m["role"] for m in answer.messages] == ["assistant", "tool", "assistant"]
    assert answer.messages[0]["tool_calls"][0]["function"]["arguments"] == '{"expression": "9*2"}'
    assert spoken(answer.text) == "She makes  dollars." and answer.tokens is not None
    assert (answer.tokens.read, answer.cut) == (7, False)

    talk = [{"role": "user", "content": "How much?"}, *answer.messages]
    assert spoken_turns(talk) == ["She makes  dollars."]
    assert reason_against(talk, answer.cut, FilterSettings()) is None
    assert conversation_of({"messages": talk}, "here", "test").messages[1].tool_calls


def test_a_reply_that_ends_in_a_call_is_not_kept(tokenizer: Tokenizer) -> None:
    answer = answer_of([*tokenizer.encode("It is."), CALL, *tokenizer.encode("9*2")], False, 7, tokenizer)
    talk = [{"role": "user", "content": "How much?"}, *answer.messages]
    assert reason_against(talk, answer.cut, FilterSettings()) == "cut off: it was longer than max_tokens"
