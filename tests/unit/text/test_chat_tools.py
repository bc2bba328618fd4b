"""Conversations with tools: one turn of many messages, what of it is trained, and what is refused."""

import json
import random
from typing import Any

import pytest
from odd_texts import FRAGMENTS, odd_tool_conversation

from pilgrim.core.errors import DataError
from pilgrim.text.calls import CALL, MARKS, RESPONSE, Call, call_of, dumps, text_of
from pilgrim.text.chat import (
    Message,
    messages_from_row,
    messages_of_reply,
    render,
    render_prompt,
    row_of,
    truncate_turns,
)
from pilgrim.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer

ODD = (*FRAGMENTS, *SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["".join(FRAGMENTS) * 3, "\n".join(SPECIAL_TOKENS) * 3], 400)


def sums(expression: str = "9*2", call_id: str = "") -> Call:
    return Call("calculator", dumps({"expression": expression}), call_id)


def asked(*calls: Call, content: str = "") -> Message:
    return Message("assistant", content, calls)


USER = Message("user", "How much?")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def text(messages: list[Message], tokenizer: Tokenizer) -> str:
    return tokenizer.decode(render(messages, tokenizer).ids)


def test_calls_and_results_are_one_turn(tokenizer: Tokenizer) -> None:
    turn = [
        USER,
        asked(sums(), content=" She makes "),
        Message("tool", "18"),
        Message("assistant", " dollars. "),
    ]
    marked = "She makes <tool_call>9*2</tool_call><tool_response>18</tool_response> dollars."
    begin = "<|endoftext|><|im_start|>user\nHow much?<|im_end|>\n<|im_start|>assistant\n"
    assert text(turn, tokenizer) == f"{begin}{marked}<|im_end|>\n"
    rendered = render(turn, tokenizer)
    trained = [i for i, learned in zip(rendered.ids, rendered.mask, strict=True) if learned]
    assert tokenizer.decode(trained) == "She makes <tool_call>9*2</tool_call> dollars.<|im_end|>"
    prompt = render_prompt(turn[:-1], tokenizer)
    assert tokenizer.decode(prompt) == begin + marked.removesuffix(" dollars.")


def test_every_call_is_followed_by_its_own_result(tokenizer: Tokenizer) -> None:
    both = [sums("1", "a"), sums("2", "b")]
    results = [Message("tool", "two", tool_call_id="b"), Message("tool", "one", tool_call_id="a")]
    in_order = [Message("tool", "one"), Message("tool", "two")]
    marked = (
        "<tool_call>1</tool_call><tool_response>one</tool_response>"
        "<tool_call>2</tool_call><tool_response>two</tool_response>"
    )
    for answers in (results, in_order):
        prompt = render_prompt([USER, asked(*both), *answers], tokenizer)
        assert tokenizer.decode(prompt).endswith(f"assistant\n{marked}")


def test_functions_are_defined_in_the_systems_turn(tokenizer: Tokenizer) -> None:
    turns = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "No."}]
    defined = (
        'You can call these functions by {"name": ..., "arguments": {...}}:\n'
        '{"name": "weather", "parameters": {"type": "object"}}<|im_end|>\n'
    )
    alone = messages_from_row({"messages": turns, "tools": [WEATHER]}, "row")
    begin = "<|endoftext|><|im_start|>system\n"
    assert tokenizer.decode(render(alone, tokenizer).ids).startswith(begin + defined)
    kind = [{"role": "system", "content": " Be kind.\n"}, *turns]
    both = messages_from_row({"messages": kind, "tools": json.dumps([WEATHER])}, "row")
    assert tokenizer.decode(render(both, tokenizer).ids).startswith(f"{begin}Be kind.\n\n{defined}")


def test_exactly_what_the_assistant_says_is_trained(tokenizer: Tokenizer) -> None:
    """Against another way of saying it: the texts, one after another."""
    dice = random.Random(1)
    for _ in range(500):
        messages = odd_tool_conversation(dice, ODD)
        rendered = render(messages, tokenizer)
        trained = [i for i, learned in zip(rendered.ids, rendered.mask, strict=True) if learned]
        assert tokenizer.decode(trained) == said(messages)
        specials = [i for i in trained if i < len(SPECIAL_TOKENS)]
        assert set(specials) <= {tokenizer.im_end_id, CALL, CALL + 1}
        assert trained.count(CALL) == sum(len(message.tool_calls) for message in messages)


def said(messages: tuple[Message, ...]) -> str:
    """Every assistant's words, its turn's ends stripped, its calls, and <|im_end|> after the last."""
    found = ""
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        words = message.content
        if messages[i - 1].role == "user":
            words = words.lstrip()
        if message.tool_calls:
            calls = "".join(f"<tool_call>{text_of(call)}</tool_call>" for call in message.tool_calls)
            found += words + calls
        else:
            found += words.rstrip() + "<|im_end|>"
    return found


def test_no_text_forges_a_mark(tokenizer: Tokenizer) -> None:
    dice = random.Random(2)
    for _ in range(300):
        messages = odd_tool_conversation(dice, ODD)
        ids = render(messages, tokenizer).ids
        calls = sum(len(message.tool_calls) for message in messages)
        results = sum(message.role == "tool" for message in messages)
        counts = [ids.count(mark) for mark in MARKS]
        assert counts == [calls, calls, results, results]
        turns = sum(m.role in ("system", "user") for m in messages) * 2
        assert ids.count(tokenizer.im_end_id) == ids.count(tokenizer.im_start_id)
        assert turns - 1 <= ids.count(tokenizer.im_end_id) <= turns + 1


def test_a_prompt_is_a_prefix_of_what_is_trained(tokenizer: Tokenizer) -> None:
    dice = random.Random(3)
    for _ in range(300):
        messages = odd_tool_conversation(dice, ODD, waits=True)
        answered = (*messages, Message("assistant", odd_tool_conversation(dice, ODD)[-1].content))
        prompt, rendered = render_prompt(messages, tokenizer), render(answered, tokenizer)
        assert rendered.ids[: len(prompt)] == prompt
        assert not rendered.mask[len(prompt) - 1]
        assert all(rendered.mask[len(prompt) : -1])


def test_where_the_assistant_has_not_come_to_its_end_none_is_trained(tokenizer: Tokenizer) -> None:
    for end in ([asked(sums())], [asked(sums()), Message("tool", "18")]):
        rendered = render([USER, *end], tokenizer)
        assert rendered.ids[-2] == tokenizer.im_end_id and not rendered.mask[-2]
        assert sum(rendered.mask) == len(tokenizer.encode("9*2")) + 2


@pytest.mark.parametrize(
    ("call", "written"),
    [
        (sums("'a'.count('a')"), "'a'.count('a')"),
        (Call("python", dumps({"code": "x = 1\nx"})), "python\nx = 1\nx"),
        (Call("python", dumps({"code": ""})), "python\n"),
        (Call("f", '{"b":1,"a":"é"}'), '{"name": "f", "arguments": {"b": 1, "a": "é"}}'),
    ],
)
def test_calls_as_text_and_back(call: Call, written: str) -> None:
    assert text_of(call) == written
    assert call_of(written) == Call(call.name, dumps(json.loads(call.arguments)))


@pytest.mark.parametrize(
    "odd",
    ['{"name": "f"', '{"name": 1, "arguments": {}}', '{"name": "f", "arguments": {}, "more": 1}', "[" * 9999,
     "{" * 9999, '{"name": "f", "arguments": "{}"}', '{"name": "python", "arguments": {"script": ""}}', "",
     "python", r'{"name": "f", "arguments": {"a": "\ud83d"}}',
     '{"name": "f", "arguments": {"a": NaN}}', '{"name": "f", "arguments": {"a": 1e999}}'],
)  # fmt: skip
def test_what_is_no_call_of_a_function_is_an_expression(odd: str) -> None:
    assert call_of(odd) == sums(odd)
    assert text_of(call_of(odd)) == odd


# Replies and rows -------------------------------------------------------------------------------------


def test_a_reply_becomes_messages_that_are_rendered_as_it_was(tokenizer: Tokenizer) -> None:
    dice = random.Random(4)
    turns = 0
    for _ in range(200):
        messages = odd_tool_conversation(dice, ODD)
        for i, message in enumerate(messages[:-1]):
            if message.role != "user" or messages[-1].tool_calls:
                continue
            end = next((k for k in range(i + 1, len(messages)) if messages[k].role == "user"), len(messages))
            before, turn = messages[: i + 1], messages[i + 1 : end]
            prompt, whole = render_prompt(before, tokenizer), render((*before, *turn), tokenizer).ids
            reply = whole[len(prompt) : -2]
            again = messages_of_reply(reply, tokenizer)
            assert render((*before, *again), tokenizer).ids == whole
            assert all(len(each.tool_calls) <= 1 for each in again)
            turns += 1
    assert turns > 200


def test_a_reply_that_is_no_conversation(tokenizer: Tokenizer) -> None:
    one, two, result = (tokenizer.encode(text) for text in ("1", "2", "r"))
    call, end, response, over = MARKS

    def of(*ids: int) -> tuple[Message, ...]:
        return messages_of_reply(list(ids), tokenizer)

    assert of() == (Message("assistant", ""),)
    assert of(*one, call, *two) == (Message("assistant", "1"),)  # broken off in a call
    assert of(call, *one, call, *two, end) == (asked(sums("2")),)
    assert of(*one, end, over, *two) == (Message("assistant", "12"),)
    assert of(*one, response, *result, over, *two) == (Message("assistant", "12"),)  # nobody has called
    assert of(call, *one, end, response, *result) == (asked(sums("1")),)  # broken off in a result
    assert of(call, *one, end, *two, call, *one, end) == (asked(sums("1")),)  # made up
    assert of(call, *one, end, call, *two, end) == (asked(sums("1"), sums("2")),)
    assert of(call, *one, end, response, over) == (
        asked(sums("1")),
        Message("tool", ""),
        Message("assistant", ""),
    )
    dice = random.Random(5)
    for _ in range(500):  # whatever a model writes, it can be trained on or asked again
        ids = dice.choices([*MARKS, *one, *two], k=dice.randint(0, 12))
        found = (USER, *messages_of_reply(ids, tokenizer))
        assert render(found, tokenizer).ids.count(RESPONSE) <= ids.count(RESPONSE)


def test_rows_go_there_and_back(tokenizer: Tokenizer) -> None:
    dice = random.Random(6)
    for waits in (False, True) * 50:
        messages = odd_tool_conversation(dice, ODD, waits=waits)
        row = row_of(messages)
        again = messages_from_row(json.loads(json.dumps(row)), "row")
        assert row_of(again) == row
        assert render(again, tokenizer) == render(messages, tokenizer)


# Too long ---------------------------------------------------------------------------------------------


def test_truncating_never_parts_a_call_from_its_result(tokenizer: Tokenizer) -> None:
    dice = random.Random(7)
    for _ in range(200):
        messages = odd_tool_conversation(dice, waits=True)
        whole = len(render_prompt(messages, tokenizer))
        limit = dice.randint(1, whole + 5)
        last = max(i for i, message in enumerate(messages) if message.role == "user")
        system = messages[:1] if messages[0].role == "system" else ()
        least = (*system, Message("user", ""), *messages[last + 1 :])
        if len(render_prompt(least, tokenizer)) > limit:
            with pytest.raises(DataError, match=f"{limit} tokens of context have no room for the system"):
                truncate_turns(messages, tokenizer, limit)
            continue
        left, was_cut = truncate_turns(messages, tokenizer, limit)
        assert len(render_prompt(left, tokenizer)) <= limit
        kept = left[len(system) :]
        assert left[: len(system)] == system and kept[0].role == "user"
        if was_cut:
            assert kept[1:] == messages[last + 1 :]
            assert messages[last].content.strip().endswith(kept[0].content)
        else:
            assert kept == messages[-len(kept) :]


# Refused ----------------------------------------------------------------------------------------------


def call_item(
    name: str = "calculator", arguments: Any = '{"expression": "1"}', **more: Any
) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}} | more


ASK, TOOL = {"role": "user", "content": "x"}, {"role": "tool", "content": "1"}
SPEAK = {"role": "assistant", "content": "x"}
ENDLESS: dict[str, Any] = {}
for _ in range(2000):
    ENDLESS = {"a": ENDLESS}


def calling(*items: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(items)}


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([ASK, TOOL], "message 2 is a tool's result, but nothing was called before it"),
        ([TOOL], "message 1 is a tool's result, but nothing was called before it"),
        ([ASK, SPEAK, TOOL], "message 3 is a tool's result, but nothing was called before it"),
        ([ASK, calling(call_item()), SPEAK], 'message 2 calls "calculator", which has no result; let one'),
        ([ASK, calling(call_item()), ASK], 'message 2 calls "calculator", which has no result'),
        ([ASK, calling(call_item(), call_item()), TOOL], 'message 2 calls "calculator", which has no result'),
        ([ASK, calling(call_item(id="a")), TOOL | {"tool_call_id": "b"}], "message 2 has a result that bel"),
        ([ASK, calling(call_item(id="a"), call_item(id="a"))], "message 2 has two calls of one id"),
        ([ASK, calling(call_item(id="a")), *[TOOL | {"tool_call_id": "a"}] * 2], '.*has 2 results'),
        ([ASK, calling(call_item()), TOOL, TOOL], "message 2 has a result that belongs to none of its calls"),
        ([ASK, calling(call_item("weather", {}))], 'message 2 calls "weather", which is not defined; define'),
        ([ASK, calling(call_item("python", {}))], r'message 2 calls "python", which takes \{"code": text\}'),
        ([ASK, calling(call_item(arguments={"expression": 1}))], '.*which takes {"expression": text}'),
        ([ASK, calling(call_item(arguments="{"))], 'message 2, call 1: "arguments" is no JSON'),
        ([ASK, calling(call_item(arguments=[1]))], "message 2 calls .* with arguments that are no JSON obj"),
        ([ASK, calling(call_item("f", '{"a": NaN}'))], 'message 2, call 1: "arguments" can.t be written as'),
        ([ASK, calling(call_item("f", {"a": 10**5000}))], 'message 2, call 1: "arguments" can.t be written'),
        ([ASK, calling(call_item("f", ENDLESS))], 'message 2, call 1: "arguments" can.t be written as JSON'),
        ([ASK, calling("f")], "message 2, call 1 must be"),
        ([ASK, calling({"function": {"arguments": {}}})], "message 2, call 1 must be"),
        ([ASK, calling(call_item(id=7))], "message 2, call 1 has the id 7"),
        ([ASK, SPEAK | {"tool_calls": {"a": 1}}], 'message 2 has "tool_calls" that are no list'),
        ([ASK | {"tool_calls": [call_item()]}], "message 1 is the user's and has tool_calls"),
        ([ASK, calling(call_item()), TOOL | {"tool_call_id": 1}], "message 3 has the tool_call_id 1"),
        ([ASK, calling(call_item()), TOOL | {"content": None}], "message 3 has a content of type NoneType"),
        ([ASK, calling(call_item(arguments={"expression": "\ud83d"}))], "message 2: character .* U.D83D"),
        ([ASK, calling(call_item()), TOOL, {"role": "system", "content": ""}], "message 4 is a system mess"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_with_its_place(messages: list[Any], complaint: str) -> None:
    with pytest.raises(DataError, match=rf"^chats\.jsonl:3: {complaint}"):
        messages_from_row({"messages": messages}, "chats.jsonl:3")


@pytest.mark.parametrize(
    ("tools", "complaint"),
    [
        ({"name": "f"}, '"tools" is no list'),
        ("[", '"tools" is no JSON'),
        ([{"name": "f"}], "tool 1 must be"),
        ([WEATHER, {"function": {"name": ""}}], "tool 2 must be"),
        ([{"function": {"name": "f", "parameters": float("inf")}}], "tool 1 can't be written as JSON"),
        ([WEATHER, {"function": {"description": "x"}}], "tool 2 must be"),
    ],
)
def test_bad_definitions_are_refused_with_their_place(tools: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=rf"^chats\.jsonl:3: {complaint}"):
        messages_from_row({"messages": [ASK, SPEAK], "tools": tools}, "chats.jsonl:3")


@pytest.mark.parametrize("none", [None, "", " ", "null", [], "[]"])
def test_rows_without_definitions(none: Any) -> None:
    assert len(messages_from_row({"messages": [ASK, SPEAK], "tools": none}, "here")) == 2


def test_messages_are_numbered_as_in_the_row() -> None:
    row = {"messages": [ASK, SPEAK, SPEAK], "tools": [WEATHER]}
    with pytest.raises(DataError, match="message 3 is the assistant's where the user's is due"):
        messages_from_row(row, "chats.jsonl:3")


def test_an_unanswered_call_is_no_prompt(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="ends with a message of the assistant"):
        render_prompt([USER, asked(sums())], tokenizer)
    with pytest.raises(DataError, match="has no result"):
        render_prompt([USER, asked(sums(), sums()), Message("tool", "1")], tokenizer)
