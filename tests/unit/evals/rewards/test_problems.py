"""Problems of every kind: what is asked, and what replies are worth."""

import json
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.errors import DataError
from pilgrim.evals.rewards.problems import Graded, held_out_of, read_problems


def file_of(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


COUNT = {"word": "banana", "letter": "a"}
CALL = '<tool_call>"banana".count("a")</tool_call><tool_response>3</tool_response>'


@pytest.mark.parametrize(
    ("kind", "row", "right", "wrong"),
    [
        ("spelling", {"word": "cat"}, "c,a,t", "c,a"),
        ("spelling", COUNT, "3.", "2."),
        ("counting", COUNT, CALL + "3.", "3."),
        ("counting", COUNT, CALL.replace('"', "'") + "3.", CALL + "2."),
        ("counting", COUNT, CALL + CALL + "3", CALL.replace("banana", "bananas") + "3."),
        ("gsm8k", {"question": "1 + 1?", "answer": "2\n#### 2"}, "It is 2.", "It is 3."),
        (
            "ifeval",
            {"key": 1, "prompt": "?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
            "No",
            "a, b",
        ),
        ("questions", {"prompt": "Two lines.", "regex": r"^.+\n.+$"}, "a\nb", "a"),
    ],
)
def test_what_is_right_is_worth_1(
    tmp_path: Path, kind: Any, row: dict[str, Any], right: str, wrong: str
) -> None:
    (problem,) = read_problems(file_of(tmp_path, row), kind)
    assert problem.grade(right).reward == 1
    assert problem.grade(right).solved
    assert problem.grade(wrong).reward == 0
    assert not problem.grade(wrong).solved


@pytest.mark.parametrize(
    ("reply", "reward"),
    [
        ("The dog ran home.", 1.0),
        ("Two dogs!", 1.0),
        ("A cat ran home.", 0.5),
        ("The dog ran. It was late.", 0.5),
        ("The dog ran and", 0.5),
        ("It ran. It was late.", 0.0),
        ("", 0.0),
    ],
)
def test_a_sentence_is_worth_a_half_and_its_word_another(tmp_path: Path, reply: str, reward: float) -> None:
    (problem,) = read_problems(file_of(tmp_path, {"prompt": "?", "word": "dog"}), "sentence")
    assert problem.grade(reply).reward == reward
    assert problem.grade(reply).solved == (reward == 1)


def test_own_rows_may_be_conversations(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "?"},
    ]
    file = file_of(tmp_path, {"prompt": "Hi", "wanted": 3}, {"messages": talk})
    one, two = read_problems(file, "own", lambda asked, reply, row, place: Graded(row.get("wanted", 0.5)))
    assert (one.asked, one.grade("x").reward) == ("Hi", 3)
    assert (two.asked, two.grade("x").reward, len(two.messages)) == ("?", 0.5, 3)
    with pytest.raises(DataError, match=r"problems.jsonl, line 1: ends with the assistant"):
        read_problems(file_of(tmp_path, {"messages": talk[:2]}), "own", lambda *a: Graded(0.0))
    with pytest.raises(DataError, match=r'line 1: "prompt" is missing'):
        read_problems(file_of(tmp_path, {"promt": "?"}), "own", lambda *a: Graded(0.0))
    with pytest.raises(DataError, match="holds no problems"):
        read_problems(file_of(tmp_path), "own", lambda *a: Graded(0.0))


def test_a_prompt_is_always_on_the_same_side(tmp_path: Path) -> None:
    rows = [{"word": "w" + "abcdefghij"[i // 10] + "abcdefghij"[i % 10]} for i in range(100)]
    problems = read_problems(file_of(tmp_path, *rows), "spelling")
    learned, held_out = held_out_of(problems, 0.2)
    assert 10 < len(held_out) < 30
    assert len(learned) + len(held_out) == 100
    again, _ = held_out_of(list(reversed(problems)), 0.2)
    assert {p.line for p in again} == {p.line for p in learned}
