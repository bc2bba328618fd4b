"""What is no item stops at the door, with file and line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.errors import DataError
from pilgrim.evals.items import Item, Kind, read_items

CHOICE = {"query": "Two and two is", "choices": ["four", "five"], "gold": 0}
SCHEMA = {"context_options": ["The dog barked as the dog", "The dog barked as the cat"], "gold": 1}
SCHEMA |= {"continuation": "hissed."}
SAYING = {"context": " All is well that ends \n", "continuation": "well"}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*rows: Any) -> Path:
        file = tmp_path / "items.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


def test_the_three_kinds(write: Write) -> None:
    assert read_items(write(CHOICE), "multiple_choice") == [
        Item((("Two and two is", "four"), ("Two and two is", "five")), 0, line=1)
    ]
    assert read_items(write(SCHEMA), "schema") == [
        Item((("The dog barked as the dog", "hissed."), ("The dog barked as the cat", "hissed.")), 1, line=1)
    ]
    assert read_items(write(SAYING), "language_modeling") == [
        Item((("All is well that ends", "well"),), 0, line=1)
    ]


def test_items_are_shuffled_always_alike_and_know_their_lines(write: Write) -> None:
    rows = [CHOICE | {"query": f"question {line}"} for line in range(1, 21)]
    items = read_items(write(*rows), "multiple_choice")
    assert [item.options[0][0] for item in items] == [f"question {item.line}" for item in items]
    # random.Random(1337).shuffle(list(range(1, 21))) begins like this.
    assert [item.line for item in items][:5] == [14, 2, 3, 10, 8]
    assert sorted(item.line for item in items) == list(range(1, 21))


@pytest.mark.parametrize(
    ("kind", "row", "why"),
    [
        ("multiple_choice", {"choices": ["a", "b"], "gold": 0}, '"query" is missing where there must be'),
        ("multiple_choice", CHOICE | {"query": 5}, '"query" is 5 where there must be text'),
        ("multiple_choice", CHOICE | {"choices": "ab"}, "\"choices\" is 'ab' where a list of two texts"),
        ("multiple_choice", CHOICE | {"choices": ["a"]}, "\"choices\" is ['a'] where a list of two texts"),
        ("multiple_choice", CHOICE | {"choices": ["a", ""]}, "\"choices\"[1] is '', which has no tokens"),
        ("multiple_choice", CHOICE | {"choices": ["a", 7]}, "\"choices\"[1] is '7', which has no tokens"),
        ("multiple_choice", CHOICE | {"gold": 2}, '"gold" is 2, but must be a number from 0 to 1'),
        ("multiple_choice", CHOICE | {"gold": True}, '"gold" is True, but must be'),
        ("multiple_choice", CHOICE | {"gold": "0"}, "\"gold\" is '0', but must be"),
        ("schema", SCHEMA | {"continuation": " "}, "\"continuation\" is ' ' where there must be text"),
        ("schema", SCHEMA | {"context_options": ["a", "a"]}, 'all "context_options" are the same'),
        ("schema", SCHEMA | {"gold": -1}, '"gold" is -1, but must be'),
        ("language_modeling", {"context": "a"}, '"continuation" is missing where'),
        ("language_modeling", {"context": None, "continuation": "a"}, '"context" is None where'),
    ],
)
def test_what_cannot_be_scored_is_refused(write: Write, kind: Kind, row: Any, why: str) -> None:
    good = {"multiple_choice": CHOICE, "schema": SCHEMA, "language_modeling": SAYING}[kind]
    file = write(good, row)
    with pytest.raises(DataError) as told:
        read_items(file, kind)
    assert str(told.value).startswith(f"{file}, line 2: {why}"), str(told.value)


def test_no_json_and_no_items(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no items"):
        read_items(write(), "multiple_choice")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        read_items(tmp_path / "bad.jsonl", "multiple_choice")
