"""Questions of one's own: what may be asked, how it is graded, and what is refused with file and line."""

import time
from pathlib import Path

import pytest

from pilgrim.core.errors import DataError
from pilgrim.evals.chat import read_own_exams
from pilgrim.evals.tasks.own import files_of, name_of, read_questions, searched
from pilgrim.infer.sandbox import refusal

QUESTIONS = """
# a comment
[[question]]
prompt = "What is the capital of France?"
exact = ["Paris", "the city of Paris"]

[[question]]
prompt = "Which of these is a mammal?"
choices = ["a trout", "a bat"]
answer = "a bat"

[[question]]
id = "greeting"
prompt = "Say hello to Anna."
regex = '(?i)\\bhello\\b.*\\banna\\b'

[[question]]
prompt = "Write a Python function add(a, b)."
program = "assert add(1, 2) == 3"
"""


def written(folder: Path, text: str, name: str = "mine.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


@pytest.mark.skipif(refusal() is not None, reason=str(refusal()))
def test_four_kinds_of_answer(tmp_path: Path) -> None:
    exact, choice, regex, program = read_questions(written(tmp_path, QUESTIONS))
    assert [item.line for item in (exact, choice, regex, program)] == [3, 7, 12, 17]
    assert exact.grade(" paris.\n").right and exact.grade("The city  of Paris").right
    assert not exact.grade("It is Paris").right
    assert exact.grade("<tool_call>1</tool_call><tool_response>1</tool_response>Paris").right
    assert (choice.choices, choice.gold) == (("A", "B"), 1) and choice.grade("B").right
    assert regex.grade("Hello there, Anna!").right and not regex.grade("Hi Anna").right
    assert regex.id == "greeting"
    assert program.grade("```python\ndef add(a, b):\n    return a + b\n```").right
    assert "AssertionError" in program.grade("def add(a, b): return 4").note
    assert "took more than 5 s" not in program.grade("import os; os._exit(0)").note


def test_lines_of_json(tmp_path: Path) -> None:
    file = written(tmp_path, '{"prompt": "a", "exact": "b"}\n\n{"prompt": "c", "regex": "d"}\n', "q.jsonl")
    assert [item.line for item in read_questions(file)] == [1, 3]


def test_a_regex_that_would_never_end() -> None:
    before = time.monotonic()
    verdict = searched("(a+)+$", "a" * 60 + "b")
    assert not verdict.right and verdict.note == "the regex took more than 2 s"
    assert time.monotonic() - before < 6
    assert searched("(a+)+$", "bä" + "a" * 60).right


def test_a_file_is_a_task_and_choices_are_asked_twice(tmp_path: Path) -> None:
    text = QUESTIONS.partition('[[question]]\nprompt = "Write')[0]
    written(tmp_path, text, "b.toml")
    written(tmp_path, '{"prompt": "a", "exact": "b"}\n', "a.jsonl")
    exams = {exam.task.name: exam for exam in read_own_exams(tmp_path)}
    assert list(exams) == ["a", "b", "b_by_likelihood"]
    assert [len(exam.items) for exam in exams.values()] == [1, 3, 1]
    assert exams["b"].task.chance == pytest.approx(0.5 / 3) and exams["b"].task.member
    assert (exams["b_by_likelihood"].task.chance, exams["b_by_likelihood"].task.member) == (0.5, False)
    first = read_own_exams(tmp_path, limit=1)
    assert [(len(exam.items), exam.task.items) for exam in first] == [(1, 1), (1, 3)], "1 of 3 is not all"
    written(tmp_path, '{"prompt": "a", "exact": "b"}\n', "b.jsonl")
    with pytest.raises(DataError, match="two files of the name b; rename one"):
        read_own_exams(tmp_path)


Q = "[[question]]\n"
GOOD = Q + 'prompt = "a"\nexact = "b"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no questions; write [[question]]"),
        ("[[question]", "is no valid TOML ("),
        ("[[questions]]\nprompt = 'a'", '"questions" is not known here; write each question as [[question]]'),
        ("question = 3", "each question must be a table; write [[question]]"),
        (GOOD + Q + 'exact = "b"', ', line 4: "prompt" is missing where there must be text'),
        (GOOD + Q + 'prompt = " "\nexact = "b"', ", line 4: \"prompt\" is ' ' where there must be text"),
        (GOOD + Q + 'prompt = "a"', ", line 4: has none of them; give exactly one of exact, choices, regex"),
        (GOOD + 'regex = "c"', ", line 1: has exact and regex; give exactly one of"),
        (GOOD + 'anwser = "c"', ', line 1: "anwser" is not known here; a question has id, prompt, answer'),
        (GOOD + 'answer = "b"', ', line 1: "answer" belongs to "choices"; give "exact"'),
        (GOOD + "id = 7", ', line 1: "id" is 7, but must be text; put it in quotation marks'),
        (Q + 'prompt = "a"\nexact = []', ', line 1: "exact" is [], but must be text, or a list of texts'),
        (Q + 'prompt = "a"\nexact = 3', ', line 1: "exact" is 3, but must be text'),
        (Q + 'prompt = "a"\nregex = "(a"', ', line 1: "regex" is no regular expression of Python ('),
        (Q + 'prompt = "a"\nprogram = "def"', ', line 1: "program" is no Python ('),
        (Q + 'prompt = "a"\nchoices = ["b", "c"]', ", line 1: \"answer\" is None, which must be one of"),
        (Q + 'prompt = "a"\nchoices = ["b", "b"]\nanswer = "b"', ', and there once'),
        (Q + 'prompt = "a"\nchoices = ["b", " "]\nanswer = "b"', '[1] is \' \', which has no tokens'),
        (Q + 'prompt = "a"\nchoices = "b"\nanswer = "b"', '"choices" must be a list of 2 to 26 texts'),
        (
            (GOOD + 'id = "x"\n') + GOOD + 'id = "x"\n',
            ", line 5: the id 'x' is that of line 1, too; give each its own",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(DataError) as told:
        read_own_exams(file)
    assert str(told.value).startswith(str(file)) and sentence in str(told.value), str(told.value)


def test_paths_that_are_no_questions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no file of questions"):
        files_of(tmp_path)
    with pytest.raises(DataError, match="does not exist, and is no suite either; give core, chat"):
        files_of(tmp_path / "cor")
    with pytest.raises(DataError, match="is no file of questions; they end with"):
        files_of(written(tmp_path, "x", "x.txt"))
    assert name_of(Path("evals/mine.jsonl.zst")) == "mine"
