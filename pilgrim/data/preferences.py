"""Preference pairs from JSONL files: two replies to one prompt, of which the first is the better.

    {"prompt": [{"role": "user", "content": "Hi!"}], "chosen": "Hello, friend.", "rejected": "Go away."}

`prompt` is a list of messages, or a text that a user says; `messages` means the same. A reply is a text, a
message, or a list of messages. Many published sets give two whole conversations with a common beginning
instead: as lists of messages, or (Anthropic's HH, Bai et al. 2022, arXiv 2204.05862) as one text with
"\\n\\nHuman:" and "\\n\\nAssistant:" before the turns. Then the prompt is what the two have in common.

What is learned is the difference between the two replies, so a pair must be one: the same prompt, which ends
with the user, then one turn of the assistant each, neither empty, and not the same.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.core.files import read_jsonl_zst
from pilgrim.data.sources import find
from pilgrim.text.chat import Message, messages_from_row

TURN = re.compile(r"\n\n(Human|Assistant):")  # of a transcript
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
REPLYING = ("assistant", "tool")  # who speaks in the assistant's turn


@dataclass(frozen=True)
class Pair:
    """Two replies to `prompt`, which ends with the user; `chosen` is the better one."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    source: str


@dataclass(frozen=True)
class PairSplit:
    """Pairs to learn from and to measure with, and how many of the former had a prompt of the latter."""

    train: list[Pair]
    val: list[Pair]
    left_out: int


def split_pairs(train: Iterable[str], val: Iterable[str], val_share: float) -> PairSplit:
    """Read the files; what is measured with comes from those of `val`, or else is a share of `train`.

    A share is held out by a hash of the prompt, so that no prompt is on both sides, wherever its pairs stand.
    Raises DataError with file and line for a row that is no pair, and if either side is empty.
    """
    train, val = list(train), list(val)
    pairs, held_out = read_pairs(train), read_pairs(val)
    if not val:
        held_out = [pair for pair in pairs if _fraction(_asked(pair)) < val_share]
    asked = {_asked(pair) for pair in held_out}
    kept = [pair for pair in pairs if _asked(pair) not in asked]
    for what, side, files in (("training", kept, train), ("held-out", held_out, val or train)):
        if not side:
            raise DataError(
                f"[dpo]: no {what} pair is left of {', '.join(files)}; name files with more pairs in them"
            )
    return PairSplit(kept, held_out, len(pairs) - len(kept) if val else 0)


def read_pairs(names: Iterable[str]) -> list[Pair]:
    """The pairs of the named files, in order. Raises DataError with file and line if a row is none."""
    found = []
    for name in names:
        path = find(name)
        for line, row in read_jsonl_zst(path):
            place = f"{path}, line {line}"
            source = row.get("source", path.name.split(".")[0])
            if not isinstance(source, str):
                raise DataError(
                    f'{place}: "source" is {source!r}, but must be text; put it in quotes, or leave it out'
                )
            found.append(pair_from_row(row, source, place))
    return found


def pair_from_row(row: dict[str, Any], source: str, place: str) -> Pair:
    """The pair of a row. `place` is the file and line, for errors. Raises DataError if it is none."""
    prompt = _prompt(row, place)
    chosen, rejected = (_conversation(row, key, prompt, place) for key in ("chosen", "rejected"))
    if [_said(m) for m in chosen] == [_said(m) for m in rejected]:
        raise DataError(f"{place}: chosen and rejected are the same, so nothing is preferred; drop the row")
    both = zip(chosen, rejected, strict=False)
    common = sum(1 for _ in takewhile(lambda pair: _said(pair[0]) == _said(pair[1]), both))
    # A reply of several messages may begin alike: all of the assistant's last turn is the reply.
    while common and chosen[common - 1].role in REPLYING:
        common -= 1
    if not common:
        raise DataError(
            f"{place}: chosen and rejected answer different prompts, {_short(chosen[0].content)} and "
            f"{_short(rejected[0].content)}; a pair has one prompt, so give them the same, or drop the row"
        )
    if any(m.role == "user" and not m.content.strip() for m in chosen[:common]):
        raise DataError(f"{place}: an empty message of the user asks nothing; fill it, or drop the row")
    for key, whole in (("chosen", chosen), ("rejected", rejected)):
        _check_reply(whole[common:], common, key, place)
    return Pair(chosen[:common], chosen[common:], rejected[common:], source)


def _prompt(row: dict[str, Any], place: str) -> list[Any] | None:
    """The messages before the replies; None where each reply comes with its own."""
    given = [key for key in ("prompt", "messages") if row.get(key) is not None]
    if len(given) > 1:
        raise DataError(f'{place}: has both "prompt" and "messages", which mean the same; leave one out')
    if not given:
        return None
    value = row[given[0]]
    if isinstance(value, str):
        return _transcript(value) if TURN.match(value) else [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise DataError(
            f'{place}: "{given[0]}" must be a text, or a list of messages with at least one; mend it'
        )
    return value


def _conversation(row: dict[str, Any], key: str, prompt: list[Any] | None, place: str) -> tuple[Message, ...]:
    """The whole conversation that ends with one of the two replies."""
    value = row.get(key)
    items: list[Any]
    if isinstance(value, str):
        items = _transcript(value) if TURN.match(value) else [{"role": "assistant", "content": value}]
    elif isinstance(value, dict):
        items = [value]
    elif isinstance(value, list):
        items = value
    else:
        raise DataError(f'{place}: has no "{key}" that is a text, a message or a list of them; give it one')
    begins = items[0].get("role") if items and isinstance(items[0], dict) else None
    if begins in REPLYING or not items:  # only the reply
        if prompt is None:
            raise DataError(f'{place}: "{key}" is a reply to nothing; add what it answers as "prompt"')
        items = [*prompt, *items]
    elif prompt is not None and items[: len(prompt)] != prompt:
        raise DataError(
            f'{place}: "{key}" is a conversation that does not begin with the row\'s "prompt", so it answers '
            "a different one; make them the same, or leave the prompt out"
        )
    return messages_from_row({**row, "messages": items}, f"{place}, {key}")


def _check_reply(reply: tuple[Message, ...], before: int, key: str, place: str) -> None:
    """Raises DataError unless it is one turn of the assistant that says something."""
    if not reply:
        raise DataError(f"{place}: {key} has no reply of the assistant; add one, or drop the row")
    for number, message in enumerate(reply, start=before + 1):
        if message.role not in REPLYING:
            raise DataError(
                f"{place}: message {number} of {key} is the {message.role}'s, but chosen and rejected may "
                "differ in the last reply only; cut off what follows, or drop the row"
            )
    if not any(_said(message)[1] for message in reply):
        raise DataError(f"{place}: the reply of {key} is empty; fill it, or drop the row")


def _transcript(text: str) -> list[dict[str, str]]:
    """Messages of "\\n\\nHuman: Hi!\\n\\nAssistant: Hello!"."""
    _, *parts = TURN.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": SPEAKERS[speaker], "content": said.strip()} for speaker, said in turns]


def _said(message: Message) -> tuple[Any, ...]:
    """What is compared of a message: white space around its content is not rendered."""
    others = [value for name, value in vars(message).items() if name not in ("role", "content")]
    return (message.role, (message.content or "").strip(), *others)


def _asked(pair: Pair) -> str:
    """A prompt as one text."""
    return "\n\n".join(f"{m.role}: {m.content}" for m in pair.prompt)


def _fraction(text: str) -> float:
    """Between 0 and 1, by a hash: the same for the same text, wherever it stands."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") / 2**64


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
