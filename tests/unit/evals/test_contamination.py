"""Overlap with the training text: the same as looked for word by word, and what is planted is found."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilgrim.evals import contamination
from pilgrim.evals.contamination import Overlap, overlaps, words
from pilgrim.evals.items import Item

ALPHABET = ("to", "be", "or", "Not", "that's", "the", "—", "question,")


def slow(items: list[Item], documents: list[str]) -> Overlap:
    """Straight from the rule: every run of every item beside every run of every document."""
    plain = [f" {' '.join(words(document))} " for document in documents]
    found = Overlap()
    for item in items:
        texts = [words(f"{context} {continuation}") for context, continuation in item.options]
        right = texts[item.gold]
        runs = [text[at : at + 13] for text in texts for at in range(len(text) - 12)]
        if 8 <= len(right) < 13:
            runs.append(right)
        if not runs:
            found.too_short.add(item.line)
        elif any(f" {' '.join(run)} " in document for run in runs for document in plain):
            found.overlapping.add(item.line)
            if len(right) >= 8 and any(f" {' '.join(right)} " in document for document in plain):
                found.whole.add(item.line)
    return found


@st.composite
def some(draw: st.DrawFn) -> tuple[list[Item], list[str]]:
    """Few different words, so that much overlaps; items are parts of documents, or not."""
    dice = random.Random(draw(st.integers(0, 10**6)))

    def text(length: int) -> list[str]:
        return dice.choices(ALPHABET, k=length)

    documents = [text(draw(st.integers(0, 60))) for _ in range(draw(st.integers(0, 4)))]
    items = []
    for line in range(1, draw(st.integers(1, 6)) + 1):
        options = []
        for _ in range(draw(st.integers(1, 3))):
            taken = dice.choice(documents) if documents and dice.random() < 0.7 else text(30)
            at, size = dice.randrange(len(taken) + 1), dice.randrange(30)
            piece = taken[at : at + size]
            cut = dice.randrange(len(piece) + 1)
            options.append((" ".join(piece[:cut]), " ".join(piece[cut:])))
        items.append(Item(tuple(options), dice.randrange(len(options)), line))
    return items, [" ".join(document) for document in documents]


@settings(max_examples=300, deadline=None)
@given(some())
def test_it_finds_what_is_found_word_by_word(made: tuple[list[Item], list[str]]) -> None:
    items, documents = made
    assert overlaps({"some": items}, documents)["some"] == slow(items, documents)


@settings(max_examples=50, deadline=None)
@given(some())
def test_hashes_that_collide_change_nothing(made: tuple[list[Item], list[str]]) -> None:
    items, documents = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "FACTOR", np.uint64(0))  # only the last word counts
        patch.setattr(contamination, "WORDS_AT_ONCE", 10)
        patch.setattr(contamination, "KNOWN_SPELLINGS", 2)
        assert overlaps({"some": items}, documents)["some"] == slow(items, documents)


QUESTION = (
    "Which of these is the largest of all the planets that go around the sun?",
    "It is Jupiter, by far",
)
ITEMS = [
    Item((QUESTION, (QUESTION[0], "It is Mars, by far")), 0, line=4),
    Item((("Who wrote that famous old story about the whale,", "Melville"), ("Who?", "Poe")), 0, line=7),
    Item((("Is it?", "Yes"), ("Is it?", "No")), 1, line=9),
]


def around(text: str) -> str:
    return f"Something else came first. {text} And then it went on."


@pytest.mark.parametrize(
    ("planted", "whole", "overlapping"),
    [
        ("", set(), set()),
        (" ".join(QUESTION), {4}, {4}),
        ("WHICH, of these is\nthe “largest” of all the planets that go — around", set(), {4}),
        ("which of these is the largest of all the planets that", set(), set()),  # twelve words
        ("that go around the sun? It is Mars, by far, and the", set(), set()),
        ("all the planets that go around the sun? It is Mars, by far", set(), {4}),  # a wrong choice
        ("who wrote that famous old story about the whale? Melville!", {7}, {7}),
        ("who wrote that famous old story about the whale? Poe", set(), set()),
        ("Is it? No", set(), set()),
    ],
)
def test_what_is_planted_is_found(planted: str, whole: set[int], overlapping: set[int]) -> None:
    counted: list[int] = []
    found = overlaps({"planets": ITEMS}, ["", "Nothing here.", around(planted)], counted.append)["planets"]
    assert (found.whole, found.overlapping, found.too_short) == (whole, overlapping, {9})
    assert sum(counted) == 3


def test_a_run_does_not_cross_from_one_document_to_the_next() -> None:
    both = " ".join(QUESTION)
    assert not overlaps({"planets": ITEMS}, [both[:50], both[50:]])["planets"].overlapping


def test_files_are_kept_apart() -> None:
    found = overlaps({"a": ITEMS[:1], "b": ITEMS[1:]}, [around(" ".join(QUESTION))])
    assert (found["a"].overlapping, found["b"].overlapping) == ({4}, set())


def test_words() -> None:
    assert words("“Don't!” — she SAID…\n(twice_over) Ça va") == [
        "dont",
        "she",
        "said",
        "twiceover",
        "ça",
        "va",
    ]
    assert re.fullmatch(r"\w+", words("x_y")[0])
