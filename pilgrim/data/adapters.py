"""Rows of well-known data sets as conversations, in the shape in which rows of conversations come anyway.

    kind            a row                                           becomes
    conversations   {"messages": [{"role", "content"}, …]}          itself (SmolTalk and its kin)
    mmlu            {"question", "choices": […], "answer": 1}       as data/questions.py asks it, and "B"
    gsm8k           {"question", "answer": "… <<48/2=24>>24 …"}     a solution that calls the calculator

GSM8K marks each computation in its solutions (Cobbe et al. 2021, arXiv 2110.14168): `48/2 = <<48/2=24>>24`.
A mark becomes a call with its result, and the text goes on behind it, so that a model learns to ask the
calculator before it writes a number.
"""

import json
import re
from collections.abc import Callable, Mapping
from string import ascii_uppercase
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.data.questions import checked_choices, multiple_choice

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

_MARK = re.compile(r"<<([^<>=]*)=([^<>]*)>>")


def from_mmlu(row: Row, place: str) -> Messages:
    """ "question", "choices", and "answer", the number of the right one from 0. Raises DataError."""
    question = _text(row, "question", place)
    choices, answer = checked_choices(row, "choices", "answer", place)
    return [
        {"role": "user", "content": multiple_choice(question, choices)},
        {"role": "assistant", "content": ascii_uppercase[answer]},
    ]


def from_gsm8k(row: Row, place: str) -> Messages:
    """ "question" and "answer", a solution with marks that ends with "#### 72". Raises DataError."""
    question, answer = _text(row, "question", place), _text(row, "answer", place)
    if not re.search(r"####\s*\S", answer):
        raise DataError(f'{place}: "answer" does not end with "#### " and a number; mend or drop the row')
    parts = _MARK.split(answer)  # text, expression, result, text, …
    return [
        {"role": "user", "content": question},
        *calling(parts[0::3], list(zip(parts[1::3], parts[2::3], strict=True))),
    ]


def calling(texts: list[str], calls: list[tuple[str, str]]) -> Messages:
    """An assistant's turn in OpenAI's shape: texts with calculator calls (expression, result) between."""
    messages: Messages = []
    for number, (said, (expression, result)) in enumerate(zip(texts, calls, strict=False), start=1):
        arguments = json.dumps({"expression": expression}, ensure_ascii=False)
        function = {"name": "calculator", "arguments": arguments}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        messages += [
            {"role": "assistant", "content": said, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": result},
        ]
    return [*messages, {"role": "assistant", "content": texts[-1]}]


def _text(row: Row, key: str, place: str) -> str:
    value = row.get(key)
    if isinstance(value, str) and value.strip():
        return value
    raise DataError(f'{place}: "{key}" must be text that is not empty; mend or drop the row')


ADAPTERS: dict[
    str, tuple[tuple[str, ...], Callable[[Row, str], Messages]]
] = {  # columns, and what reads them
    "mmlu": (("question", "choices", "answer"), from_mmlu),
    "gsm8k": (("question", "answer"), from_gsm8k),
}
