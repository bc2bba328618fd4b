"""Multiple choice in words: which letter does a reply name?"""

import pytest

from pilgrim.core.errors import DataError
from pilgrim.data.questions import multiple_choice
from pilgrim.evals.tasks.choice import item, letter_in, read_arc, read_mmlu

CHOICES = ["a trout", "a bat", "a fly", "none of these"]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        (" b. ", "B"),
        ("(b)", "B"),
        ("**B**", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is: (C), a fly.", "C"),
        ("B. a bat", "B"),
        ("B=a bat", "B"),
        ("Well, I think it is C", "C"),
        ("a bat", "B"),
        ("A bat.", "B"),
        ("A bat is a mammal, so B.", "B"),
        ("Option D is right, as A, B and C are wrong.", "D"),
        ("A flying animal", ""),
        ("I'd say so.", ""),
        ("F", ""),
        ("", ""),
        ("Once upon a time", ""),
    ],
)
def test_letters(reply: str, letter: str) -> None:
    assert letter_in(reply, CHOICES) == letter


def test_a_letter_comes_before_a_choice_of_that_name() -> None:
    assert letter_in("A", ["B", "A"]) == "A"


def test_the_question_is_laid_out() -> None:
    assert multiple_choice("Which of these is a mammal?", CHOICES[:2]) == (
        "Multiple Choice question: Which of these is a mammal?\n- a trout=A\n- a bat=B\n\n"
        "Respond only with the letter of the correct answer."
    )
    question = item("Which?", CHOICES, 1, 7)
    assert (question.choices, question.gold, question.line) == (("A", "B", "C", "D"), 1, 7)
    assert question.expected == "B (a bat)"
    assert question.grade("It is B.").right and not question.grade("A").right
    assert question.grade("who knows").note == "names none of the letters"


def test_rows() -> None:
    arc = read_arc({"query": "Question: Which?", "choices": CHOICES, "gold": 1}, 1, "f, line 1")
    assert arc.prompt == multiple_choice("Which?", CHOICES)
    mmlu = read_mmlu({"question": "Which?", "choices": CHOICES, "answer": 3, "subject": "x"}, 2, "f")
    assert mmlu.gold == 3


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"question": " "}, "\"question\" is ' ' where there must be text"),
        ({"choices": ["a"]}, '"choices" must be a list of 2 to 26 texts'),
        ({"choices": ["a"] * 27}, '"choices" must be a list of 2 to 26 texts'),
        ({"choices": ["a", " "]}, "\"choices\"[1] is ' ', which has no tokens that could be scored"),
        ({"choices": ["a", 3]}, "\"choices\"[1] is '3', which has no tokens"),
        ({"choices": ["a", "a "]}, 'all "choices" are the same'),
        ({"answer": 4}, '"answer" is 4, but must be a number from 0 to 3'),
        ({"answer": True}, '"answer" is True, but must be'),
        ({"answer": "B"}, "\"answer\" is 'B', but must be"),
    ],
)
def test_rows_that_cannot_be_asked(change: dict[str, object], problem: str) -> None:
    with pytest.raises(DataError) as told:
        read_mmlu({"question": "Which?", "choices": CHOICES, "answer": 0} | change, 3, "mmlu.jsonl, line 3")
    assert str(told.value).startswith(f"mmlu.jsonl, line 3: {problem}")
