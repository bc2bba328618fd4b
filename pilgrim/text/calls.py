"""Calls of tools: in the shape of OpenAI's API, and as the text that a model writes.

Programs and files say a call as OpenAI does: a function's name, and its arguments as JSON. A model says it
between two marks, which are special tokens, and the answer follows between two others:

    <tool_call>9*2</tool_call><tool_response>18</tool_response>

What stands in a call is one of three texts:

    9*2                                                  for the calculator: {"expression": "9*2"}
    python⏎print(2**100)                                 for Python: {"code": "print(2**100)"}
    {"name": "weather", "arguments": {"city": "Bonn"}}   for any other function

The first two are short because small models call little else, and need no definition. Any other function
must be defined, and its definition stands in the system's turn as a line of JSON, below a sentence that says
how it is called. (Nous Research's Hermes and Qwen write such calls with the same words and marks.)

JSON is written in one way (`dumps`), which is also how `tojson` of transformers' templates writes it, so that
ids are the same there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.text.tokenizer import SPECIAL_TOKENS

CALL, END_OF_CALL, RESPONSE, END_OF_RESPONSE = (
    SPECIAL_TOKENS.index(mark)
    for mark in ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
)
MARKS = (CALL, END_OF_CALL, RESPONSE, END_OF_RESPONSE)
CALCULATOR, PYTHON = "calculator", "python"
BUILT_IN = {CALCULATOR: "expression", PYTHON: "code"}  # what is always there, and its only argument
OPENING_OF_PROGRAM = "python\n"
HOW_TO_CALL = 'You can call these functions by {"name": ..., "arguments": {...}}:'


@dataclass(frozen=True)
class Call:
    """A call of a function; `arguments` are a JSON object as text. `id` is for its result to refer to."""

    name: str
    arguments: str
    id: str = ""

    def argument(self, name: str) -> Any:
        """One of the arguments; None if it isn't there."""
        return json.loads(self.arguments).get(name)


def text_of(call: Call) -> str:
    """What the model writes between the marks."""
    if call.name == CALCULATOR:
        return str(call.argument("expression"))
    if call.name == PYTHON:
        return OPENING_OF_PROGRAM + str(call.argument("code"))
    return dumps({"name": call.name, "arguments": json.loads(call.arguments)})


def call_of(text: str, call_id: str = "") -> Call:
    """The call that a model means by `text`. What is neither a program nor a function is an expression."""
    if text.startswith(OPENING_OF_PROGRAM):
        return Call(PYTHON, dumps({"code": text.removeprefix(OPENING_OF_PROGRAM)}), call_id)
    try:
        match json.loads(text) if text.lstrip().startswith("{") else None:
            case {"name": str(name), "arguments": dict(arguments), **others} if not others:
                found = Call(name, dumps(arguments), call_id)
                found.arguments.encode(), found.name.encode()  # else half a character, which no token is
                if _wrong_arguments(found) is None:
                    return found
    except (ValueError, RecursionError):
        pass
    return Call(CALCULATOR, dumps({"expression": text}), call_id)


def dumps(value: Any) -> str:
    """`value` as one line of JSON.

    Raises ValueError or RecursionError for what no JSON says: NaN, numbers too long or too large, nesting
    without end. (Python would write and read NaN and Infinity, other programs refuse them.)
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


# Rows and requests ------------------------------------------------------------------------------------


def calls_from(items: Any, where: str) -> tuple[Call, ...]:
    """The `tool_calls` of a message, whose arguments may be an object or its JSON text.

    `where` says which message, for errors. Raises DataError.
    """
    if items is None:
        return ()
    if not isinstance(items, list):
        raise DataError(f'{where} has "tool_calls" that are no list; give one of {{"function": …}}')
    calls = tuple(_call_from(item, f"{where}, call {n}") for n, item in enumerate(items, start=1))
    ids = [call.id for call in calls if call.id]
    if len(set(ids)) < len(ids):
        raise DataError(f"{where} has two calls of one id; give each its own")
    return calls


def tools_from(items: Any, place: str) -> tuple[str, ...]:
    """The functions that `tools` defines, in OpenAI's shape, each as a line of JSON. Raises DataError."""
    if isinstance(items, str):  # as some public datasets keep them
        items = _loads(items.strip() or "null", f'{place}: "tools"')
    if items is None:
        return ()
    if not isinstance(items, list):
        raise DataError(f'{place}: "tools" is no list; give one of {{"type": "function", "function": …}}')
    found = []
    for number, item in enumerate(items, start=1):
        match item:
            case {"function": {"name": str(name)} as function} if name:
                found.append(_dumps(function, f"{place}: tool {number}"))
            case _:
                raise DataError(
                    f'{place}: tool {number} must be {{"type": "function", "function": {{"name": …, '
                    '"parameters": …}}'
                )
    return tuple(found)


def names_of(tools: Sequence[str]) -> list[str]:
    """The names of functions that are defined by `tools`."""
    return [json.loads(tool)["name"] for tool in tools]


def definitions(tools: Sequence[str]) -> str:
    """How functions are told to the model, in the system's turn."""
    return "\n".join([HOW_TO_CALL, *tools])


def check_call(call: Call, defined: Sequence[str], where: str) -> None:
    """Raises DataError unless `call` is of a function that is there, with arguments that it can have."""
    if call.name not in BUILT_IN and call.name not in defined:
        raise DataError(
            f'{where} calls "{call.name}", which is not defined; define it in "tools" of the conversation'
        )
    if (wrong := _wrong_arguments(call)) is not None:
        raise DataError(f"{where} {wrong}")


def _wrong_arguments(call: Call) -> str | None:
    """Why a function can't be called like that; None if it can."""
    arguments = _object(call.arguments)
    if arguments is None:
        return f'calls "{call.name}" with arguments that are no JSON object; give {{"name": value, …}}'
    only = BUILT_IN.get(call.name)
    if only is None or (arguments.keys() == {only} and isinstance(arguments[only], str)):
        return None
    return f'calls "{call.name}", which takes {{"{only}": text}}; give it that, or another name to yours'


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _call_from(item: Any, where: str) -> Call:
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f'{where} must be {{"function": {{"name": …, "arguments": …}}}}')
    arguments, call_id = function.get("arguments"), item.get("id")
    if isinstance(arguments, str):
        arguments = _loads(arguments or "{}", f'{where}: "arguments"')
    if arguments is None:
        arguments = {}
    if not isinstance(call_id, str | None):
        raise DataError(f"{where} has the id {call_id!r}; it must be text")
    return Call(function["name"], _dumps(arguments, f'{where}: "arguments"'), call_id or "")


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON ({error}); mend it") from None


def _dumps(value: Any, where: str) -> str:
    try:
        return dumps(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} can't be written as JSON ({error}); mend it") from None
