"""Conversations that are made: their answers are right, their words are no test's, their seed decides."""

import json
import re
from itertools import islice
from pathlib import Path

import pytest

from pilgrim.core.errors import DataError
from pilgrim.core.files import read_jsonl_zst
from pilgrim.data.generated import HELD_OUT, identity, spelling, words_of
from pilgrim.data.questions import count_letter, spell
from pilgrim.data.sources import find
from pilgrim.evals.tasks.spelling import read_spelling, spelled
from pilgrim.infer.tools import calculator


def test_letters_and_counts_are_right() -> None:
    words = ["banana", "cherry", "kiwi"]
    counts = 0
    for messages in islice(spelling(words, 400, seed=1), 400):
        word = next(w for w in words if w in messages[0]["content"])
        assert spelled(messages[1]["content"], word).right
        if call := messages[1].get("tool_calls"):
            counts += 1
            expression = json.loads(call[0]["function"]["arguments"])["expression"]
            assert calculator(expression) == messages[2]["content"]  # what the engine would have answered
            letter = re.search(r'count\("(.)"\)', expression)
            assert letter and re.search(rf"\b{letter[1]}\b", messages[0]["content"])
            assert messages[-1]["content"] == f"\n#### {word.count(letter[1])}"
    assert counts == 200


def test_some_are_asked_as_the_evaluation_asks() -> None:
    asked = {messages[0]["content"] for messages in spelling(["banana"], 200, seed=1)}
    assert spell("banana") == read_spelling({"word": "banana"}, 1, "f").prompt in asked
    count = read_spelling({"word": "banana", "letter": "a"}, 1, "f")
    assert count_letter("a", "banana") == count.prompt in asked


def test_words_of_the_evaluation_are_left_out(tmp_path: Path) -> None:
    held_out = sorted({row["word"] for _, row in read_jsonl_zst(find(HELD_OUT))})
    others = [f"word{letter}" for letter in "abcdefghijkl"]
    file = tmp_path / "words.txt"
    file.write_text("\n".join([*held_out, *others, *others, "it", "Don't", "x1y"]))
    assert words_of([str(file)]) == others
    file.write_text("too few words")
    with pytest.raises(DataError, match=r"words\.txt: 3 words of 3 to 15 small letters are too few"):
        words_of([str(file)])


def test_identity() -> None:
    every = list(identity("Ada", "my sister", "I am small.", None, seed=1))
    assert len({messages[0]["content"] + messages[1]["content"] for messages in every}) == len(every) > 200
    assert all(
        [m["role"] for m in messages] in (["user", "assistant"] * n for n in (1, 2)) for messages in every
    )
    answers = {m["content"] for messages in every for m in messages if m["role"] == "assistant"}
    assert all(re.search(r"Ada|[Mm]y sister|I am small\.", answer) for answer in answers)
    assert list(identity("Ada", "my sister", "I am small.", 9, seed=1)) == every[:9]


def test_the_maker_begins_a_sentence() -> None:
    said = {answer["content"] for _, answer, *_ in identity("Pip", "my lab", "I am small.", None, 1)}
    assert {"My lab made me.", "I was made by my lab."} <= said


def test_the_seed_decides() -> None:
    words = [f"word{letter}" for letter in "abcdefghijkl"]
    assert list(spelling(words, 20, 1)) == list(spelling(words, 20, 1)) != list(spelling(words, 20, 2))
    one, two = (list(identity("A", "B", "C.", None, seed)) for seed in (1, 2))
    assert one != two
