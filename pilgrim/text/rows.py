"""Conversations as rows of JSON, in the shape of OpenAI's API, and back.

    {"messages": [{"role": "user", "content": "Hi!"}, …], "tools": [{"type": "function", "function": …}, …]}

The same shape is the body of a request.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.text.calls import calls_from, tools_from
from pilgrim.text.messages import Message, answered, check


def messages_from_row(row: dict[str, Any], place: str) -> tuple[Message, ...]:
    """The conversation of a JSONL row: {"messages": [{"role": …, "content": …}, …]}, other keys aside.

    With tools, in OpenAI's shape: "tools" beside the messages defines functions, and messages have
    "tool_calls" and "tool_call_id". What is defined is kept in the system message, and if the row has none,
    in an empty one.

    `place` is the file and line, for errors. The turns must be in order: at most one system message, at
    the beginning; then user and assistant in turns, the user first; a call is followed by its result, and
    that by the assistant. Raises DataError if they are not.
    """
    items = row.get("messages")
    if not isinstance(items, list):
        raise DataError(f'{place}: has no list called "messages"; give it one of {{"role": …, "content": …}}')
    messages = [_message(item, f"{place}: message {n}") for n, item in enumerate(items, start=1)]
    tools, first = tools_from(row.get("tools"), place), 1
    if tools and messages and messages[0].role == "system":
        messages[0] = replace(messages[0], tools=tools)
    elif tools:
        messages, first = [Message("system", "", tools=tools), *messages], 0
    check(messages, place, first)
    return tuple(messages)


def row_of(messages: Sequence[Message]) -> dict[str, Any]:
    """The row, or the body of a request, of which `messages_from_row` makes this conversation again.

    Calls are numbered through as call_1, call_2, …
    """
    items: list[dict[str, Any]] = []
    tools = [tool for message in messages for tool in message.tools]
    number = 0
    for place, message in enumerate(messages):
        if message.role == "tool" or (message.tools and not message.content):
            continue  # results are written with their calls, and nothing but definitions beside the messages
        item: dict[str, Any] = {"role": message.role, "content": message.content}
        items.append(item)
        if message.tool_calls:
            item["tool_calls"] = []
        for call, result in answered(messages, place):
            number += 1
            function = {"name": call.name, "arguments": call.arguments}
            item["tool_calls"].append({"id": f"call_{number}", "type": "function", "function": function})
            if result is not None:
                items.append({"role": "tool", "tool_call_id": f"call_{number}", "content": result.content})
    row: dict[str, Any] = {"messages": items}
    if tools:
        row["tools"] = [{"type": "function", "function": json.loads(tool)} for tool in tools]
    return row


def _message(item: Any, where: str) -> Message:
    """A message of a row. Only its form is looked at here."""
    if not isinstance(item, dict) or "role" not in item or not {"content", "tool_calls"} & item.keys():
        raise DataError(f'{where} must be an object with a "role" and a "content"')
    calls = calls_from(item.get("tool_calls"), where)
    content: Any = item.get("content")
    if content is None and calls:  # as OpenAI has it
        content = ""
    call_id = item.get("tool_call_id")
    if not isinstance(call_id, str | None):
        raise DataError(f"{where} has the tool_call_id {call_id!r}; it must be text")
    return Message(item["role"], content, calls, call_id or "")
