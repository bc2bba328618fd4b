"""What a conversation is made of, and whether its messages are in order.

At most one system message stands at the beginning; then user and assistant take turns, the user first. An
assistant's message may call functions (calls.py). Their results follow as messages of the role "tool", one
for each call, and then the assistant goes on. So one *turn* of the assistant can be many messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, get_args

from pilgrim.core.errors import DataError
from pilgrim.text.calls import Call, check_call, names_of
from pilgrim.text.tokenizer import refuse_lone_surrogates

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """What one side says. White space around a turn's `content` is not rendered."""

    role: Role
    content: str
    tool_calls: tuple[Call, ...] = ()  # of an assistant
    tool_call_id: str = ""  # of a tool: whose result this is; "": of the calls before, in their order
    tools: tuple[str, ...] = ()  # of a system: the functions that can be called, each a line of JSON


def turns_of(messages: Sequence[Message]) -> list[list[Message]]:
    """The messages, those of an assistant and its tools together as one turn."""
    turns: list[list[Message]] = []
    for message in messages:
        inner = message.role in ("assistant", "tool")
        if inner and turns and turns[-1][0].role == "assistant":
            turns[-1].append(message)
        else:
            turns.append([message])
    return turns


def answered(messages: Sequence[Message], place: int) -> list[tuple[Call, Message | None]]:
    """The calls of the message at `place`, each with its result, if it has one."""
    results = _results(messages, place)
    return [
        (call, next((r for k, r in enumerate(results) if _belongs(r, k, call, number)), None))
        for number, call in enumerate(messages[place].tool_calls)
    ]


def _results(messages: Sequence[Message], place: int) -> list[Message]:
    """The results that follow the message at `place`."""
    return list(takewhile(lambda message: message.role == "tool", messages[place + 1 :]))


def _belongs(result: Message, place: int, call: Call, number: int) -> bool:
    """Whether the result at `place` among results is that of the call `number`: by its id, or its place."""
    if result.tool_call_id and call.id:
        return result.tool_call_id == call.id
    return place == number


def check(messages: Sequence[Message], place: str, first: int = 1) -> None:
    """Raises DataError unless the turns are in order and their contents are text.

    `first` is the number of the first message, for errors.
    """
    if not messages:
        raise DataError(f"{place}: the conversation is empty; give it at least one message")
    for number, message in enumerate(messages):
        where = f"{place}: message {number + first}"
        _check_content(message, where)
        _check_order(messages[number - 1] if number else None, message, where)
    defined = names_of(messages[0].tools)
    for number, message in enumerate(messages):
        for call in message.tool_calls:
            check_call(call, defined, f"{place}: message {number + first}")
        _check_results(messages, number, f"{place}: message {number + first}")


def _check_content(message: Message, where: str) -> None:
    if message.role not in get_args(Role):
        raise DataError(f"{where} has the role {message.role!r}; a role is system, user, assistant or tool")
    if not isinstance(message.content, str):
        kind = type(message.content).__name__
        raise DataError(f"{where} has a content of type {kind}; it must be a string")
    calls = [text for call in message.tool_calls for text in (call.name, call.arguments)]
    for text in (message.content, *calls, *message.tools):
        refuse_lone_surrogates(text, where)


def _check_order(before: Message | None, message: Message, where: str) -> None:
    """Whether `message` may follow the message `before`."""
    if message.role == "system":
        if before is not None:
            raise DataError(f"{where} is a system message; there can be one only, at the beginning")
    elif message.role == "tool":
        if before is None or not (before.tool_calls or before.role == "tool"):
            raise DataError(
                f"{where} is a tool's result, but nothing was called before it; "
                "give the assistant's message its tool_calls, or drop the result"
            )
    elif before is None or before.role != "tool":
        due = "assistant" if before is not None and before.role == "user" else "user"
        if message.role != due and not (before is not None and before.tool_calls):
            raise DataError(f"{where} is the {message.role}'s where the {due}'s is due; the two take turns")
    if message.tool_calls and message.role != "assistant":
        raise DataError(f"{where} is the {message.role}'s and has tool_calls; only the assistant can call")


def _check_results(messages: Sequence[Message], place: int, where: str) -> None:
    """Every call has one result, and every result a call; or the conversation ends with calls."""
    calls, results = messages[place].tool_calls, _results(messages, place)
    if not calls or place == len(messages) - 1:
        return
    for k, result in enumerate(results):
        if not any(_belongs(result, k, call, n) for n, call in enumerate(calls)):
            known = " or ".join(repr(call.id) for call in calls if call.id) or "none"
            raise DataError(
                f"{where} has a result that belongs to none of its calls (its tool_call_id is "
                f"{result.tool_call_id!r}, and theirs {known}); give it the id of its call"
            )
    for n, call in enumerate(calls):
        found = sum(_belongs(result, k, call, n) for k, result in enumerate(results))
        if found != 1:
            how_many = "no result" if found == 0 else f"{found} results"
            raise DataError(
                f'{where} calls "{call.name}", which has {how_many}; let one message of the role tool follow '
                "for each call"
            )


def check_waits(messages: Sequence[Message]) -> None:
    """Raises DataError unless it is the assistant's turn to speak."""
    if messages[-1].role not in ("user", "tool"):
        raise DataError(
            f"conversation: ends with a message of the {messages[-1].role}, "
            "but only a user's message or a tool's result can be answered; add one"
        )
