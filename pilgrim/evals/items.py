"""Questions with known answers, read from files of rows of JSON and checked at the door.

Three kinds of task fill the same form, a few *options*, each a context and a continuation of it, of which
one is right:

    multiple_choice     {"query", "choices", "gold"}                  one context, several continuations
    schema              {"context_options", "continuation", "gold"}   several contexts, one continuation
    language_modeling   {"context", "continuation"}                   one of each: can the model say it?

These are the fields of mosaicml's llm-foundry, in which DCLM's CORE tasks are published. Other fields are
passed over. What can't be scored (no text where text belongs, a `gold` that names no option, an option
without a single character) is refused with file and line, as a score over the rest would be another score.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pilgrim.core.errors import DataError
from pilgrim.core.files import read_jsonl_zst

Kind = Literal["multiple_choice", "schema", "language_modeling"]

SHUFFLE_SEED = 1337  # of nanochat's scripts/base_eval.py: items of some files stand in an order


@dataclass(frozen=True)
class Item:
    """One question: pairs of context and continuation, and which of them is right."""

    options: tuple[tuple[str, str], ...]
    gold: int
    line: int  # in its file, from 1: with the file's hash, what an item is known by


def read_items(file: Path, kind: Kind) -> list[Item]:
    """All items of a `.jsonl` or `.jsonl.zst` file, in an order shuffled by `SHUFFLE_SEED`.

    Raises DataError, naming file and line, for a row that is no item of that kind, and for an empty file.
    """
    items = []
    for line, row in read_jsonl_zst(file):
        if problem := _problem(row, kind):
            raise DataError(f"{file}, line {line}: {problem}")
        items.append(_item(row, kind, line))
    if not items:
        raise DataError(f"{file} holds no items; fetch or make it again")
    random.Random(SHUFFLE_SEED).shuffle(items)
    return items


def _item(row: Mapping[str, Any], kind: Kind, line: int) -> Item:
    match kind:
        case "multiple_choice":
            return Item(tuple((row["query"], choice) for choice in row["choices"]), row["gold"], line)
        case "schema":
            options = tuple((context, row["continuation"]) for context in row["context_options"])
            return Item(options, row["gold"], line)
        case "language_modeling":
            # White space around it, which some rows have, is no part of the question (as in nanochat).
            return Item(((row["context"].strip(), row["continuation"]),), 0, line)


def _problem(row: Mapping[str, Any], kind: Kind) -> str | None:
    """What is wrong with a row, and the cure; None if it can be scored."""
    match kind:
        case "multiple_choice":
            return _no_text(row, "query") or _no_options(row, "choices") or _no_gold(row, "choices")
        case "schema":
            found = _no_text(row, "continuation") or _no_options(row, "context_options")
            return found or _all_alike(row["context_options"]) or _no_gold(row, "context_options")
        case "language_modeling":
            return _no_text(row, "context") or _no_text(row, "continuation")


def _no_text(row: Mapping[str, Any], key: str) -> str | None:
    text = row.get(key)
    if isinstance(text, str) and text.strip():
        return None
    return f'"{key}" is {_shown(row, key)} where there must be text; write some, or drop the row'


def _no_options(row: Mapping[str, Any], key: str) -> str | None:
    options = row.get(key)
    if not isinstance(options, list) or len(options) < 2:
        return (
            f'"{key}" is {_shown(row, key)} where a list of two texts or more must be; mend or drop the row'
        )
    for number, option in enumerate(options):
        if not isinstance(option, str) or not option.strip():
            return (
                f'"{key}"[{number}] is {str(option)!r}, which has no tokens that could be scored; '
                "write text, or drop the row"
            )
    return None


def _all_alike(contexts: list[str]) -> str | None:
    if len(set(contexts)) > 1:
        return None
    return 'all "context_options" are the same, so none can be likelier; mend or drop the row'


def _no_gold(row: Mapping[str, Any], key: str) -> str | None:
    gold, count = row.get("gold"), len(row[key])
    if isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < count:
        return None
    return f'"gold" is {_shown(row, "gold")}, but must be a number from 0 to {count - 1}, one of "{key}"'


def _shown(row: Mapping[str, Any], key: str) -> str:
    return repr(row[key])[:60] if key in row else "missing"
