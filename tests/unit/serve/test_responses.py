"""/v1/responses by OpenAI's own client: the same words as a chat, item by item and event by event."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall, ResponseOutputMessage
from serving import Served, random_run, serving

from pilgrim.text.calls import END_OF_RESPONSE

MakeRun = Callable[..., Path]  # see conftest
PATH = "/v1/responses"
COLOURS: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
PAINT: Any = {"type": "function", "name": "paint", "parameters": COLOURS, "strict": True}
CHOICE: Any = {"type": "function", "name": "paint"}
DIALS: dict[str, Any] = {"model": "tiny", "temperature": 0.8, "max_output_tokens": 20}
OURS = {"seed": 5, "top_k": 50}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    run = random_run(tmp_path_factory.mktemp("runs") / "tiny", 1024, {"pretrain": (5,), "sft": (5,)})
    with serving({"tiny": run}) as server:
        yield server


def strict(value: Any) -> None:
    """That everything has the type which the client gives it; its own parsing is lenient."""
    type(value).model_validate(value.model_dump(by_alias=True, exclude_unset=True, warnings="error"))


def events_of(served: Served, **asked: Any) -> list[Any]:
    events = list(served.client.responses.create(stream=True, extra_body=OURS, **asked))
    for number, event in enumerate(events):
        strict(event)
        assert event.sequence_number == number
    return events


def test_it_is_what_a_chat_says(served: Served) -> None:
    found = served.client.responses.create(input="Hello", instructions="Be kind.", extra_body=OURS, **DIALS)
    messages: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    chat = served.client.chat.completions.create(
        model="tiny", messages=messages, temperature=0.8, max_tokens=20, extra_body=OURS
    )
    strict(found)
    assert found.output_text == chat.choices[0].message.content
    assert found.usage and chat.usage
    assert found.usage.input_tokens == chat.usage.prompt_tokens
    assert found.usage.output_tokens == chat.usage.completion_tokens
    assert found.usage.total_tokens == chat.usage.total_tokens
    ended = {"stop": "completed", "length": "incomplete"}[chat.choices[0].finish_reason]
    (message,) = found.output
    assert isinstance(message, ResponseOutputMessage)
    assert (found.status, message.status) == (ended, ended)
    assert (found.error, found.instructions, found.model) == (None, "Be kind.", "tiny")
    assert found.model_extra and found.model_extra["system_fingerprint"] == "tiny:sft@5"
    assert (found.temperature, found.top_p, found.max_output_tokens) == (0.8, 1, 20)


def test_a_stream_tells_the_same_from_beginning_to_end(served: Served) -> None:
    whole = served.client.responses.create(input="Hello", extra_body=OURS, **DIALS)
    events = events_of(served, input="Hello", **DIALS)
    kinds = [event.type.removeprefix("response.") for event in events]
    begin = ["created", "in_progress", "output_item.added", "content_part.added"]
    end = ["output_text.done", "content_part.done", "output_item.done", whole.status]
    deltas = [kind for kind in kinds if kind == "output_text.delta"]
    assert deltas and kinds == [*begin, *deltas, *end]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-4].text == events[-3].part.text == whole.output_text
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {events[2].item.id}
    assert events[0].response.status == "in_progress" and not events[0].response.output
    last: Response = events[-1].response
    assert last.output == [events[-2].item]
    assert (last.output_text, last.usage, last.status) == (text, whole.usage, whole.status)
    assert last.id == events[0].response.id


def test_the_lines_of_a_stream_are_named(served: Served) -> None:
    body = {**DIALS, "input": "Hello", "stream": True}
    _, headers, data = served.ask("POST", PATH, body)
    assert headers["content-type"].startswith("text/event-stream")
    for event in data.decode().strip().split("\n\n"):
        name, line = event.splitlines()
        assert name.removeprefix("event: ") == json.loads(line.removeprefix("data: "))["type"]


def test_the_clients_own_gathering_agrees(served: Served) -> None:
    with served.client.responses.stream(input="Hello", extra_body=OURS, **DIALS) as stream:
        for _ in stream:
            pass
        whole = served.client.responses.create(input="Hello", extra_body=OURS, **DIALS)
        if whole.status == "completed":
            assert stream.get_final_response().output_text == whole.output_text


def test_a_reply_that_is_cut_is_incomplete(served: Served) -> None:
    found = served.client.responses.create(model="tiny", input="x", max_output_tokens=1, extra_body=OURS)
    assert found.status == "incomplete" and found.incomplete_details
    assert found.incomplete_details.reason == "max_output_tokens"
    assert events_of(served, model="tiny", input="x", max_output_tokens=1)[-1].type == "response.incomplete"


def test_a_reply_of_no_words_is_a_message(make_run: MakeRun) -> None:
    with serving({"tiny": make_run("")}) as served:
        found = served.client.responses.create(model="tiny", input="x", temperature=0)
        assert (found.status, found.output_text, len(found.output)) == ("completed", "", 1)
        kinds = [event.type for event in events_of(served, model="tiny", input="x", temperature=0)]
        assert len(kinds) == 8 and "response.output_text.delta" not in kinds


def test_a_call_is_an_item(served: Served) -> None:
    asked: dict[str, Any] = {"model": "tiny", "input": "x", "tools": [PAINT], "tool_choice": CHOICE}
    found = served.client.responses.create(**asked, extra_body=OURS)
    strict(found)
    (call,) = found.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (found.status, call.status, call.name) == ("completed", "completed", "paint")
    assert json.loads(call.arguments)["colour"] in ("red", "blue")
    events = events_of(served, **asked)
    kinds = [event.type.removeprefix("response.") for event in events[2:]]
    parts = [f"function_call_arguments.{kind}" for kind in ("delta", "done")]
    assert kinds == ["output_item.added", *parts, "output_item.done", "completed"]
    assert events[3].delta == events[4].arguments == events[5].item.arguments == call.arguments
    assert events[-1].response.output == [events[5].item]


def test_a_conversation_of_items_goes_on(make_run: MakeRun) -> None:
    items: Any = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "?"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hm"}]},
        {"type": "function_call", "call_id": "1", "name": "paint", "arguments": '{"colour": "red"}'},
        {"type": "function_call_output", "call_id": "1", "output": "done"},
    ]
    with serving({"tiny": make_run([END_OF_RESPONSE, "!"], context=1024)}) as served:
        asked: dict[str, Any] = {"model": "tiny", "tools": [PAINT], "temperature": 0, "instructions": "Help."}
        found = served.client.responses.create(input=items, **asked)
        assert found.output_text == "!"
        items += [*found.output, {"role": "user", "content": "And?"}]  # as it came
        assert served.client.responses.create(input=items, **asked).status in ("completed", "incomplete")
        items[4]["call_id"] = "2"
        with pytest.raises(openai.BadRequestError, match="belongs to none of its calls") as caught:
            served.client.responses.create(input=items, **asked)
        assert caught.value.param == "input"


class Colour(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    warm: bool


def test_a_form_is_kept(served: Served) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": COLOURS, "strict": True}}
    found = served.client.responses.create(model="tiny", input="x", text=form, extra_body=OURS)
    strict(found)
    assert json.loads(found.output_text)["colour"] in ("red", "blue")
    parsed = served.client.responses.parse(model="tiny", input="x", text_format=Colour, extra_body=OURS)
    assert isinstance(parsed.output_parsed, Colour)
    some = {"format": {"type": "json_object"}}
    events = events_of(served, model="tiny", input="x", text=some, max_output_tokens=3)
    assert events[-1].response.output_text.startswith("{")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": "x"}, {"role": "user", "content": "x"}]}, "input"),
        ({"input": [{"role": "clown", "content": "x"}]}, "input.0.role"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": "{}"}]}, "input.0.call_id"),
        ({"input": [{"type": "input_image"}]}, "input.0.type"),
        ({"input": "x" * 2000}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"model": "tiny:pretrain"}, "model"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_object"}}, "tools": [PAINT]}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"enum": []}}}}, "text.format"),
        ({"n": 2}, "n"),
    ],
)
def test_what_it_refuses(served: Served, body: dict[str, Any], param: str) -> None:
    status, error = served.refused(PATH, {"model": "tiny", "input": "x", **body})
    assert (status, error["param"]) == (400, param)


def test_a_stream_that_fails_says_so(tmp_path: Path) -> None:
    """Its server is stopped."""
    with serving({"tiny": random_run(tmp_path / "tiny", 60_000, {"sft": (5,)})}) as served:
        asked: dict[str, Any] = {"model": "tiny", "input": "x", "tools": [PAINT], "temperature": 0}
        asked |= {"text": {"format": {"type": "json_object"}}, "tool_choice": "none"}
        with served.client.responses.create(stream=True, **asked) as events:
            for event in events:
                served.server.should_exit = True
                last = event
    assert last.type in ("response.failed", "response.completed")
    if last.type == "response.failed":
        strict(last)
        assert last.response.error and last.response.error.code == "server_error"
