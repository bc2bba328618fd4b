"""Conversations: what the model is shown, what is remembered, what is forgotten."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pilgrim.core.errors import CheckpointError, DataError, SettingsError
from pilgrim.core.runtime import RuntimeSettings, start
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.sandbox import refusal
from pilgrim.serve.conversation import Continuation, Conversation, open_conversation
from pilgrim.text.calls import CALL, END_OF_CALL, END_OF_RESPONSE
from pilgrim.text.chat import Message, messages_from_row

MakeRun = Callable[..., Path]  # see conftest
SAMPLING = Sampling(max_tokens=40)


def opened(run: Path, system: str | None = None, python: bool = False) -> Conversation:
    runtime = start(RuntimeSettings(device="cpu", compile="off"), seed=1)
    return open_conversation(run, runtime, pytest.fail, system, python)[0]


def test_replies_are_kept(make_run: MakeRun) -> None:
    talk = opened(make_run("Hi, you!"), system="Be brief.")
    assert "".join(talk.ask("Hello", SAMPLING)) == "Hi, you!"
    assert "".join(talk.ask("And now?", SAMPLING)) == "Hi, you!"
    assert talk.rows() == [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi, you!"},
                {"role": "user", "content": "And now?"},
                {"role": "assistant", "content": "Hi, you!"},
            ]
        }
    ]
    assert talk.facts
    assert (talk.facts.tokens, talk.facts.ended, talk.facts.context) == (8, True, 256)
    talk.reset()
    assert talk.rows() == [{"messages": [{"role": "system", "content": "Be brief."}]}]


def test_characters_of_many_bytes_come_out_whole(make_run: MakeRun) -> None:
    assert list(filter(None, opened(make_run("aé")).ask("x", SAMPLING))) == ["a", "é"]


def test_retrying_replaces_the_last_reply(make_run: MakeRun) -> None:
    talk = opened(make_run("abc", ends=False))
    with pytest.raises(SettingsError, match="nothing was said yet"):
        talk.retry(SAMPLING)
    "".join(talk.ask("Hello", SAMPLING))
    "".join(talk.retry(SAMPLING.model_copy(update={"max_tokens": 2})))
    assert talk.messages == [Message("user", "Hello"), Message("assistant", "ab")]


def test_a_reply_that_was_left_off_is_part_of_the_conversation(make_run: MakeRun) -> None:
    talk = opened(make_run("abc", ends=False))
    pieces = talk.ask("Hello", SAMPLING)
    assert [next(pieces) for _ in range(4)] == ["a", "b", "c", "a"]
    pieces.close()
    assert talk.messages == [Message("user", "Hello"), Message("assistant", "abca")]
    assert "".join(talk.ask("Go on", SAMPLING)) == "abc" * 13 + "a"


def test_a_long_conversation_forgets_its_oldest_exchanges(make_run: MakeRun) -> None:
    talk = opened(make_run("Hi"), system="Be brief.")
    forgotten = []
    for turn in range(12):
        assert "".join(talk.ask(f"message {turn}", SAMPLING)) == "Hi"
        assert talk.facts
        assert talk.facts.context_used <= 256 - 40 + 2
        forgotten.append(talk.facts.forgotten)
    assert forgotten[0] == 0
    assert forgotten == sorted(forgotten)
    assert forgotten[-1] > 10
    assert len(talk.messages) == 24  # to be saved, they are all there


def test_a_message_longer_than_the_context_is_cut(make_run: MakeRun) -> None:
    talk = opened(make_run("Hi"))
    assert "".join(talk.ask("long " * 100, SAMPLING)) == "Hi"
    assert talk.facts
    assert talk.facts.was_cut


def test_a_system_prompt_that_leaves_no_room_changes_nothing(make_run: MakeRun) -> None:
    talk = opened(make_run("Hi"), system="long " * 100)
    with pytest.raises(DataError, match="no room for the system message"):
        next(talk.ask("Hello", SAMPLING))
    assert talk.messages == []


def test_a_base_model_continues_the_text(make_run: MakeRun) -> None:
    run = make_run("abc", stage="pretrain", ends=False)
    talk = opened(run)
    assert isinstance(talk, Continuation)
    sampling = Sampling(max_tokens=5)
    assert "".join(talk.ask("An a", sampling)) == "bcabc"
    assert "".join(talk.ask("x" * 500 + "b", sampling)) == "cabca"
    assert talk.facts
    assert talk.facts.was_cut
    assert talk.rows()[0] == {"text": "An abcabc"}
    with pytest.raises(SettingsError, match="has only a base model yet"):
        opened(run, system="Be kind.")


def test_a_run_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no trained model yet"):
        opened(tmp_path)


# Tools ------------------------------------------------------------------------------------------------


def test_calls_are_answered_and_kept_as_messages(make_run: MakeRun) -> None:
    talk = opened(make_run(["a ", CALL, "9*2", END_OF_CALL, END_OF_RESPONSE, "b."]))
    pieces = [(piece, talk.aside) for piece in talk.ask("Hello", SAMPLING)]
    assert "".join(piece for piece, _ in pieces) == "a [9*2 → 18]b."
    assert "".join(piece for piece, aside in pieces if aside) == "[9*2 → 18]"
    function = {"name": "calculator", "arguments": '{"expression": "9*2"}'}
    (row,) = talk.rows()
    assert row["messages"] == [
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": "a ",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "18"},
        {"role": "assistant", "content": "b."},
    ]
    assert messages_from_row(row, "saved")[-1] == Message("assistant", "b.")
    assert "".join(talk.retry(SAMPLING)) == "a [9*2 → 18]b."
    assert len(talk.messages) == 4
    assert "".join(talk.ask("And now?", SAMPLING)) == "a [9*2 → 18]b."
    assert len(talk.messages) == 8


@pytest.mark.parametrize("tokens", range(1, 12))
def test_a_reply_that_breaks_off_in_a_call_can_be_answered(make_run: MakeRun, tokens: int) -> None:
    talk = opened(make_run(["a ", CALL, "9*2", END_OF_CALL, END_OF_RESPONSE, "b."]))
    for _ in range(2):
        "".join(talk.ask("Hello", Sampling(max_tokens=tokens)))
    messages = messages_from_row(talk.rows()[0], "saved")
    assert messages[-1].role == "assistant" and not messages[-1].tool_calls


@pytest.mark.skipif(refusal() is not None, reason=str(refusal()))
def test_python_is_there_only_if_asked_for(make_run: MakeRun) -> None:
    run = make_run("a")
    for python, answer in ((True, "42"), (False, "error: there is no tool python here, only calculator")):
        talk = opened(run, python=python)
        forced = talk.follow([CALL, *talk.tokenizer.encode("python\n6*7"), END_OF_CALL])
        assert talk.tokenizer.decode(forced) == f"<tool_response>{answer}</tool_response>"


def test_a_base_model_has_no_tools(make_run: MakeRun) -> None:
    run = make_run([CALL, "9*2", END_OF_CALL, END_OF_RESPONSE, "b"], stage="pretrain")
    with pytest.raises(
        SettingsError, match="only a base model yet, which knows no Python tool; leave it out"
    ):
        opened(run, python=True)
    talk = opened(run)
    assert "18" not in "".join(talk.ask("\n", SAMPLING))
    assert talk.messages[-1].content.startswith("<tool_call>9*2</tool_call>")
