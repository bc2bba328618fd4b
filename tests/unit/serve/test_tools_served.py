"""Tools over HTTP: run by the server within a reply, called for the client, forced; and replies in a form."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import Served, random_run, serving

from pilgrim.text.calls import CALL, END_OF_CALL, END_OF_RESPONSE

MakeRun = Callable[..., Path]  # see conftest
HELLO: Any = [{"role": "user", "content": "?"}]
COLOURS: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
}
COLOURS |= {"additionalProperties": False}  # or a random model would add some for ever
PAINT: Any = {"type": "function", "function": {"name": "paint", "parameters": COLOURS, "strict": True}}
WAIT: Any = {"type": "function", "function": {"name": "wait", "description": "Do nothing."}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    run = random_run(tmp_path_factory.mktemp("runs") / "tiny", 1024, {"sft": (5,)})
    with serving({"tiny": run}) as server:
        yield server


def test_the_server_runs_the_calculator_where_it_is_asked_to(make_run: MakeRun) -> None:
    run = make_run(["It", CALL, "6*7", END_OF_CALL, END_OF_RESPONSE, "!"])
    asked: dict[str, Any] = {"model": "chain", "messages": HELLO, "temperature": 0, "max_tokens": 50}
    with serving({"chain": run}) as served:
        found = served.client.chat.completions.create(**asked, extra_body={"run_tools": ["calculator"]})
        (choice,) = found.choices
        assert (choice.message.content, choice.finish_reason) == ("It!", "stop")
        assert choice.message.model_extra
        (ran,) = choice.message.model_extra["executed_calls"]
        assert ran["function"] == {"name": "calculator", "arguments": '{"expression": "6*7"}'}
        assert (ran["result"], ran["offset"]) == ("42", 2)
        text, calls = "", []
        for chunk in served.client.chat.completions.create(
            **asked, stream=True, extra_body={"run_tools": ["calculator"]}
        ):
            delta = chunk.choices[0].delta
            text += delta.content or ""
            calls += (delta.model_extra or {}).get("executed_calls", [])
        assert (text, [call["result"] for call in calls]) == ("It!", ["42"])
        # Nobody is asked to run it: then the mark of a call is never drawn.
        plain = served.client.chat.completions.create(**asked).choices[0]
        assert plain.message.content == "It"
        assert not (plain.message.model_extra or {}).get("executed_calls")
        unused = served.client.chat.completions.create(
            **asked, tool_choice="none", extra_body={"run_tools": ["calculator"]}
        )
        assert unused.choices[0].message.content == "It"


def test_a_call_of_nobodys_tool_is_text(make_run: MakeRun) -> None:
    with serving({"chain": make_run(["It", CALL, "6*7", END_OF_CALL], context=1024)}) as served:
        found = served.client.chat.completions.create(
            model="chain", messages=HELLO, temperature=0, max_tokens=7, tools=[PAINT]
        )
        assert found.choices[0].message.content == "It<tool_call>6*7</tool_call>"
        assert found.choices[0].finish_reason == "length"


def test_a_result_is_answered_within_the_turn(make_run: MakeRun) -> None:
    with serving({"chain": make_run([END_OF_RESPONSE, "!"], context=1024)}) as served:
        call = {
            "id": "1",
            "type": "function",
            "function": {"name": "paint", "arguments": '{"colour": "red"}'},
        }
        messages: Any = [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "done"},
        ]
        found = served.client.chat.completions.create(
            model="chain", messages=messages, temperature=0, tools=[PAINT]
        )
        assert found.choices[0].message.content == "!"
        messages[-1]["tool_call_id"] = "2"
        with pytest.raises(openai.BadRequestError, match="belongs to none of its calls"):
            served.client.chat.completions.create(model="chain", messages=messages, tools=[PAINT])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
def test_a_call_can_be_forced(served: Served, choice: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "tools": [WAIT, PAINT], "n": 3, "seed": 1}
    for found in served.client.chat.completions.create(**asked, tool_choice=choice).choices:
        if choice == "required" and found.finish_reason == "length":
            continue  # a model that knows nothing may fill wait's arguments for ever
        assert found.finish_reason == "tool_calls"
        assert found.message.content is None
        assert found.message.tool_calls
        (call,) = found.message.tool_calls
        assert call.type == "function" and call.id.startswith("call_")
        if choice != "required":
            assert call.function.name == "paint"
            assert json.loads(call.function.arguments)["colour"] in ("red", "blue")


def test_a_forced_call_comes_as_one_chunk(served: Served) -> None:
    choice: Any = {"type": "function", "function": {"name": "paint"}}
    chunks = list(
        served.client.chat.completions.create(
            model="tiny", messages=HELLO, tools=[PAINT], tool_choice=choice, stream=True
        )
    )
    (calls,) = [chunk.choices[0].delta.tool_calls for chunk in chunks if chunk.choices[0].delta.tool_calls]
    assert calls[0].index == 0
    assert calls[0].function and calls[0].function.name == "paint"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_only_what_is_defined_can_be_forced(served: Served) -> None:
    other: Any = {"type": "function", "function": {"name": "other"}}
    cases: list[tuple[Any, Any]] = [(other, [PAINT]), ("required", [])]
    for choice, tools in cases:
        with pytest.raises(openai.BadRequestError, match="tool_choice") as caught:
            served.client.chat.completions.create(
                model="tiny", messages=HELLO, tools=tools, tool_choice=choice
            )
        assert caught.value.param == "tool_choice"


def test_a_reply_has_the_form_that_is_asked_for(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "warm": {"type": "boolean"}},
        "required": ["colour", "warm"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    found = served.client.chat.completions.create(
        model="tiny", messages=HELLO, response_format=form, n=4, seed=1
    )
    for choice in found.choices:
        assert choice.finish_reason == "stop"
        value = json.loads(choice.message.content or "")
        assert value["colour"] in ("red", "blue") and value["warm"] in (True, False)
    some = served.client.chat.completions.create(
        model="tiny", messages=HELLO, response_format={"type": "json_object"}, max_tokens=5
    )
    assert (some.choices[0].message.content or "").startswith("{")


def test_no_bias_breaks_the_form(served: Served) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": COLOURS}}
    found = served.client.chat.completions.create(
        model="tiny", messages=HELLO, response_format=form, logit_bias={"90": 100, "2": 100, "0": 100}, seed=1
    )
    assert json.loads(found.choices[0].message.content or "")["colour"] in ("red", "blue")


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "animal"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"allOf": [False]}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": []}}},
        {"type": "yaml"},
    ],
)
def test_a_form_that_nothing_has_is_refused(served: Served, form: Any) -> None:
    body = {"model": "tiny", "messages": HELLO, "response_format": form}
    status, error = served.refused("/v1/chat/completions", body)
    assert status == 400
    assert error["param"].startswith("response_format")


def test_json_and_tools_together_are_refused(served: Served) -> None:
    body = {"model": "tiny", "messages": HELLO, "response_format": {"type": "json_object"}, "tools": [PAINT]}
    assert served.refused("/v1/chat/completions", body)[1]["param"] == "response_format"
    status, _, _ = served.ask(
        "POST", "/v1/chat/completions", {**body, "tool_choice": "none", "max_tokens": 2}
    )
    assert status == 200
