"""Texts and conversations of what tokenizers stumble over: scripts, white space, signs, half a template."""

import json
import random
from typing import Any

from pilgrim.text.chat import Message, messages_from_row

WORDS = ("Hello", " there", "Once upon a time", "it's", "I'LL", "1234", "x_y", "assistant", "user", "system")
SPACES = (
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n ",
    "\u00a0",
    "\u2028",
    "\x1c",
    "\x85",
    "\u200b",
    "\ufeff",
)
SIGNS = (
    "!",
    "...",
    "<|",
    "|>",
    "im_end",
    "</",
    "{{ messages }}",
    "{% if %}",
    "\\n",
    '"',
    "'",
    "&amp;",
    "\x00",
)
SCRIPTS = ("é", "e\u0301", "ﬁ", "Ω", "日本語", "한국어", "ไทย", "العربية", "שלום", "\u202eabc", "\U0001d518")
EMOJI = ("👩\u200d👩\u200d👧", "🇩🇪", "👍🏽", "\U0010ffff")
FRAGMENTS = (*WORDS, *SPACES, *SIGNS, *SCRIPTS, *EMOJI)


def odd_text(dice: random.Random, fragments: tuple[str, ...] = FRAGMENTS) -> str:
    longest = 400 if dice.random() < 0.03 else 8
    return "".join(dice.choices(fragments, k=dice.randint(0, longest)))


def odd_conversation(dice: random.Random, fragments: tuple[str, ...] = FRAGMENTS) -> list[Message]:
    """Ends with the assistant."""
    messages = [Message("system", odd_text(dice, fragments))] if dice.random() < 0.5 else []
    for _ in range(dice.randint(1, 4)):
        messages += [
            Message("user", odd_text(dice, fragments)),
            Message("assistant", odd_text(dice, fragments)),
        ]
    return messages


def odd_tool_row(
    dice: random.Random, fragments: tuple[str, ...] = FRAGMENTS, *, waits: bool = False
) -> dict[str, Any]:
    """A conversation with tools, as a row in OpenAI's shape, whose arguments are objects.

    It ends with the assistant's words, and now and then with a call; or, if it `waits` for the assistant,
    with a tool's result or the user.
    """
    names = ["weather", odd_text(dice, fragments) or "x", "tool"]
    tools: list[Any] = [
        {"type": "function", "function": {"name": name, "parameters": _odd_value(dice, fragments)}}
        for name in names
    ]

    def call(call_id: str | None) -> dict[str, Any]:
        name = dice.choice(["calculator", "python", *names])
        only = {"calculator": "expression", "python": "code"}.get(name)
        arguments: Any = {only: odd_text(dice, fragments)} if only else _odd_value(dice, fragments)
        called = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return called if call_id is None else called | {"id": call_id}

    def calls() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A message with calls, and their results, in any order if they have ids."""
        with_ids = dice.random() < 0.7
        ids = [f"id {n}" if with_ids else None for n in range(dice.choice((1, 1, 2, 3)))]
        content: Any = dice.choice((None, odd_text(dice, fragments)))
        results = [{"role": "tool", "tool_call_id": i, "content": odd_text(dice, fragments)} for i in ids]
        if with_ids:
            dice.shuffle(results)
        return {"role": "assistant", "content": content, "tool_calls": [call(i) for i in ids]}, results

    items: list[Any] = []
    if dice.random() < 0.5:
        items.append({"role": "system", "content": odd_text(dice, fragments)})
    for _ in range(dice.randint(1, 3)):
        items.append({"role": "user", "content": odd_text(dice, fragments)})
        for _ in range(dice.randint(0, 2)):
            asked, results = calls()
            items += [asked, *results]
        items.append({"role": "assistant", "content": odd_text(dice, fragments)})
    if waits:
        items.append({"role": "user", "content": odd_text(dice, fragments)})
        for _ in range(dice.randint(0, 2)):
            asked, results = calls()
            items += [asked, *results]
    elif dice.random() < 0.2:
        items += [{"role": "user", "content": "?"}, calls()[0]]
    return {"messages": items, "tools": tools}


def odd_tool_conversation(
    dice: random.Random, fragments: tuple[str, ...] = FRAGMENTS, *, waits: bool = False
) -> tuple[Message, ...]:
    """The same as messages."""
    return messages_from_row(odd_tool_row(dice, fragments, waits=waits), "an odd row")


def _odd_value(dice: random.Random, fragments: tuple[str, ...]) -> dict[str, Any]:
    """An object of JSON, which may have others in it."""
    text = odd_text(dice, fragments)
    kinds: list[Any] = [1, -2.5, True, None, [], {}, [1, "a"], {"b": {"c": [None]}}, text]
    value = {odd_text(dice, fragments): dice.choice(kinds) for _ in range(dice.randint(0, 4))}
    return dict(json.loads(json.dumps(value)))
