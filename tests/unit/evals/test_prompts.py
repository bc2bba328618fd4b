"""Prompts to the letter, and where their scored part begins."""

import pytest

from pilgrim.core.errors import DataError
from pilgrim.evals.core_tasks import TASKS
from pilgrim.evals.items import Item, Kind
from pilgrim.evals.prompts import Question, common, examples, question, render
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

BY_NAME = {task.name: task for task in TASKS}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Every word with the space before it is one token."""
    tokenizer = train_tokenizer([" yes it is the cat dog sat" * 2], 289)
    assert all(len(tokenizer.encode(word)) == 1 for word in (" yes", " it", " is", " the", " cat", " sat"))
    return tokenizer


def choice(query: str, *choices: str, gold: int) -> Item:
    return Item(tuple((query, choice) for choice in choices), gold, 1)


def test_multiple_choice() -> None:
    """ARC: the delimiter is a line with a word, and ends in a space."""
    sky = choice("Question: What is blue?", "the sky", "grass", gold=0)
    ice = choice("Question: What is cold?", "fire", "ice", gold=1)
    assert render(ice, [sky, sky], BY_NAME["arc_easy"].delimiter) == [
        "Question: What is blue?\nAnswer: the sky\n\n"
        "Question: What is blue?\nAnswer: the sky\n\n"
        "Question: What is cold?\nAnswer: fire",
        "Question: What is blue?\nAnswer: the sky\n\n"
        "Question: What is blue?\nAnswer: the sky\n\n"
        "Question: What is cold?\nAnswer: ice",
    ]
    assert render(ice, [], BY_NAME["copa"].delimiter)[1] == "Question: What is cold? ice"


def test_schema() -> None:
    big = Item((("It did not fit, as the cup", "was big."), ("It did not fit, as the box", "was big.")), 0, 1)
    assert render(big, [big], BY_NAME["winograd"].delimiter) == [
        "It did not fit, as the cup was big.\n\nIt did not fit, as the cup was big.",
        "It did not fit, as the cup was big.\n\nIt did not fit, as the box was big.",
    ]


def test_language_modeling() -> None:
    paris, rome = (Item(((f"The capital of {a} is", b),), 0, 1) for a, b in (("F", "Paris"), ("I", "Rome")))
    assert render(rome, [paris], BY_NAME["bigbench_qa_wikidata"].delimiter) == [
        "The capital of F is Paris\n\nThe capital of I is Rome"
    ]
    assert render(rome, [], BY_NAME["jeopardy"].delimiter) == ["The capital of I is\nAnswer: Rome"]


def scored(found: Question, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(row.ids[row.start :]) for row in found.rows]


@pytest.mark.parametrize(
    ("kind", "item", "parts"),
    [
        ("multiple_choice", choice("it is the", "dog", "cat", gold=0), [" dog", " cat"]),
        # What the choices begin with tells nothing apart: it is not scored.
        ("multiple_choice", choice("it is", "the cat", "the dog", gold=0), [" cat", " dog"]),
        # A choice that another one begins with keeps its last id.
        ("multiple_choice", choice("it is", "yes", "yes it is", gold=0), [" yes", " yes it is"]),
        ("multiple_choice", choice("it is", "yes", "yes", gold=0), [" yes", " yes"]),
        ("schema", Item((("as the cat", "sat"), ("as the dog", "sat")), 0, 1), [" sat", " sat"]),
        ("language_modeling", Item((("the cat", "sat"),), 0, 1), [" sat"]),
        ("language_modeling", Item((("the cat", "sat "),), 0, 1), [" sat "]),
        ("language_modeling", Item((("the cat", "cat"),), 0, 1), [" cat"]),
    ],
)
def test_what_is_scored(kind: Kind, item: Item, parts: list[str], tokenizer: Tokenizer) -> None:
    found = question(item, [], kind, " ", tokenizer, context=100)
    assert scored(found, tokenizer) == parts
    assert all(row.ids[0] == tokenizer.eot_id for row in found.rows)
    assert found.cut == 0


def test_what_is_too_long_loses_its_beginning(tokenizer: Tokenizer) -> None:
    item = choice("the cat the cat the cat", "sat", "is yes yes", gold=0)
    whole = question(item, [], "multiple_choice", " ", tokenizer, context=100)
    short = question(item, [], "multiple_choice", " ", tokenizer, context=6)
    lengths = [len(row.ids) for row in whole.rows]
    assert short.cut == max(lengths) - 6
    for before, after in zip(whole.rows, short.rows, strict=True):
        assert after.ids == before.ids[-6:]
    assert scored(short, tokenizer) == scored(whole, tokenizer)
    # A continuation longer than the context is scored as far as something predicts it.
    tiny = question(item, [], "multiple_choice", " ", tokenizer, context=2)
    assert [(len(row.ids), row.start) for row in tiny.rows] == [(2, 1), (2, 1)]


def test_examples_are_drawn_by_the_place_alone() -> None:
    items = [Item((("a", "b"),), 0, line) for line in range(1, 13)]
    drawn = {place: [item.line - 1 for item in examples(items, place, 10)] for place in (0, 5)}
    # random.Random(1234 + place).sample(the other places, 10)
    assert drawn[0] == [8, 2, 1, 10, 7, 5, 9, 6, 4, 11]
    assert all(place not in others and len(set(others)) == 10 for place, others in drawn.items())
    assert examples(items, 3, 0) == []
    with pytest.raises(DataError, match="10 items are too few for 10 examples"):
        examples(items[:10], 0, 10)


def test_common() -> None:
    assert common([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert common([[1], [2]]) == 0
    assert common([[5, 6]]) == 2
