"""JSON out of what a model says: it was asked for nothing else, and wraps it in prose and fences all the
same."""

import json
import math
from collections.abc import Iterator
from typing import Any

from pilgrim.synth.answers import Wire

_DECODER = json.JSONDecoder()


def values_in(text: str) -> Iterator[Any]:
    """Every object and list that stands in the text and is whole, from the left; none inside of another."""
    at = 0
    while (begin := min((i for i in (text.find("{", at), text.find("[", at)) if i >= 0), default=-1)) >= 0:
        try:
            value, at = _DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError):
            at = begin + 1
            continue
        yield value


def score_in(text: str) -> float | None:
    """The last "score" from 1 to 10: what is reasoned before comes before."""
    scores = [value.get("score") for value in values_in(text) if isinstance(value, dict)]
    numbers = [
        s for s in scores if isinstance(s, int | float) and not isinstance(s, bool) and math.isfinite(s)
    ]
    return float(numbers[-1]) if numbers and 1 <= numbers[-1] <= 10 else None


def conversation_in(text: str) -> list[Wire] | None:
    """The messages of {"messages": [...]}, or of the list alone; their roles and contents."""
    for value in values_in(text):
        messages = value.get("messages") if isinstance(value, dict) else value
        if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
            return [{"role": m.get("role"), "content": m.get("content")} for m in messages]
    return None
