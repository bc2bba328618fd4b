"""One question to a chatbot, and what becomes of its reply.

Each task of the chat suite (`pilgrim/evals/tasks/`) turns a row of its file into a `ChatItem`: the user's
message, what a right reply would be, and a function that grades the reply that comes. Grading is strict about
what was asked and lenient about how it is said: a number may stand in a sentence, a program between prose.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.evals.items import Item


@dataclass(frozen=True)
class Verdict:
    """What a reply is worth."""

    right: bool
    answer: str = ""  # what was understood of the reply: a letter, a number, …
    note: str = ""  # why it is wrong, where that isn't plain to see
    parts: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)  # smaller things that were checked


@dataclass(frozen=True)
class ChatItem:
    """One question. `line` is its place in the file, from 1: with the file's hash, what it is known by."""

    line: int
    prompt: str  # the user's message
    expected: str  # for whoever reads the result
    grade: Callable[[str], Verdict]
    choices: tuple[str, ...] = ()  # replies that can be compared by likelihood: letters
    gold: int = 0  # which of them is right
    id: str = ""  # by which the file knows it; no two may have the same
    published: tuple[tuple[str, str], ...] = ()  # the question with each choice, before our words came around

    def to_look_for(self) -> Item:
        """The question with its answer, as it may stand in a training text.

        Not in the words of instruction that all questions of a task share: they are in one text or another.
        """
        return Item(self.published or ((self.prompt, self.expected),), self.gold, self.line)


def text(row: Mapping[str, Any], key: str, place: str) -> str:
    """`row[key]`, which must be a text that isn't empty. Raises DataError."""
    value = row.get(key)
    if isinstance(value, str) and value.strip():
        return value
    shown = repr(value)[:60] if key in row else "missing"
    raise DataError(f'{place}: "{key}" is {shown} where there must be text; write some, or drop the row')
