"""Conversations and prompts from JSONL files, checked before anything is trained on them.

    {"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello!"}]}

One object a line, in a .jsonl or .jsonl.zst file. An optional "source" says where the conversation comes
from. Calls of tools have the shape of OpenAI's API, with "tools" beside the messages (text/rows.py). A text
that spells control tokens is text like any other. What can't be meant is refused, with file and line: a
message without words, one as long as a book, a user whom nobody answers.

The same shape, ending with the user, is a prompt: a question that an evaluation puts to the model. It may
carry a "kind", under which its answers are shown, and in "expect" a word that a right answer holds.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.core.files import read_jsonl_zst
from pilgrim.data.sources import find
from pilgrim.text.chat import Message, messages_from_row

LONGEST_MESSAGE = 1_000_000  # characters; a long novel has as many


@dataclass(frozen=True)
class Conversation:
    """Turns to learn from: at least one of them is the assistant's. `source` says where they come from."""

    messages: tuple[Message, ...]
    source: str


@dataclass(frozen=True)
class Prompt:
    """Turns that wait for an answer: the last is the user's. `expect` is a word that a right answer holds."""

    messages: tuple[Message, ...]
    kind: str
    expect: str | None = None


def read_conversations(names: Iterable[str]) -> list[Conversation]:
    """The conversations of the named files (as in `data.conversations` of a recipe), in order.

    Raises DataError with file and line if a row is no conversation, or none to learn from.
    """
    return [conversation_of(row, place, stem) for place, row, stem in _rows(names)]


def conversation_of(row: dict[str, Any], place: str, source: str) -> Conversation:
    """One row, from `source` unless it says another. Raises DataError as above, beginning with the place."""
    messages = messages_from_row(row, place)
    _check_can_be_learned(messages, place)
    return Conversation(messages, _text(row, "source", place) or source)


def _check_can_be_learned(messages: Sequence[Message], place: str) -> None:
    """Raises DataError for what is in order (text/messages.py), and still can't be meant to be taught."""
    if not any(message.role == "assistant" for message in messages):
        raise DataError(
            f"{place}: no message of the assistant, so nothing to learn; add one, or drop the row"
        )
    for message in messages:
        empty = not (message.content.strip() or message.tool_calls)
        if empty and message.role == "assistant":
            raise DataError(
                f"{place}: an empty message of the assistant would teach silence; fill it, or drop the row"
            )
        if empty and message.role == "user":
            raise DataError(f"{place}: an empty message of the user asks nothing; fill it, or drop the row")
        if len(message.content) > LONGEST_MESSAGE:
            raise DataError(
                f"{place}: a message of the {message.role} has {len(message.content):,} characters, and "
                f"{LONGEST_MESSAGE:,} is the most; cut it, or train on it as text (data.text)"
            )
    if messages[-1].role == "user":
        raise DataError(
            f"{place}: ends with the user, whom nobody answers; cut that message off, or answer it"
        )


def read_prompts(names: Iterable[str]) -> list[Prompt]:
    """The prompts of the named files, in order. Raises DataError with file and line if a row is none."""
    found = []
    for place, row, stem in _rows(names):
        messages = messages_from_row(row, place)
        if messages[-1].role != "user":
            raise DataError(
                f"{place}: ends with the {messages[-1].role}, a prompt with the user; cut its end off"
            )
        kind = _text(row, "kind", place) or stem
        found.append(Prompt(messages, kind, _text(row, "expect", place)))
    return found


def count_by_source(conversations: Iterable[Conversation]) -> dict[str, int]:
    """How many conversations each source gave, the most first."""
    return dict(Counter(conversation.source for conversation in conversations).most_common())


def _rows(names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(file and line, row, the file's name without its endings) of every row of every file."""
    for name in names:
        path = find(name)
        for line, row in read_jsonl_zst(path):
            yield f"{path}, line {line}", row, path.name.split(".")[0]


def _text(row: dict[str, Any], key: str, place: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f'{place}: "{key}" is {value!r}, but must be text; put it in quotes, or leave it out')
    return value
