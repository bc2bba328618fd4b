"""School arithmetic: which number does a reply give? And spelling, which asks alike."""

from fractions import Fraction

import pytest

from pilgrim.core.errors import DataError
from pilgrim.evals.tasks.arithmetic import graded, number_in, read_gsm8k
from pilgrim.evals.tasks.spelling import read_spelling, spelled


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("#### 18", "18"),
        ("#### 1,234.50 dollars", "1234.50"),
        ("#### -3", "-3"),
        ("#### $5", "5"),
        ("first #### 4, no: #### 5", "5"),
        ("She makes 9 * 2 = 18 dollars.", "18"),
        ("It is .5", ".5"),
        ("3, 4, 5", "5"),
        ("<tool_call>9*2</tool_call><tool_response>18</tool_response>", ""),
        ("9*2 is <tool_call>9*2</tool_call><tool_response>18</tool_response>18", "18"),
        ("none", ""),
        ("#### none", ""),
    ],
)
def test_numbers(reply: str, number: str) -> None:
    assert number_in(reply) == number


def test_numbers_are_compared_as_numbers() -> None:
    assert graded("18.00", Fraction(18)).right
    assert graded("#### 1,234.50", Fraction(2469, 2)).right
    assert not graded("9" * 10_000, Fraction(18)).right


def test_a_solution_of_the_data_is_right() -> None:
    row = {"question": "How many?", "answer": "9*2=<<9*2=18>>18\n#### 1,018"}
    item = read_gsm8k(row, 4, "f, line 4")
    assert item.grade(row["answer"]).right
    assert item.grade("about 1018.0 in all").right
    assert not item.grade("18").right
    assert item.grade("many").note == "gives no number"
    with pytest.raises(DataError, match='f, line 4: "answer" does not end with "#### " and a number'):
        read_gsm8k({"question": "How many?", "answer": "many"}, 4, "f, line 4")


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("b,a,t", True),
        ("The letters are B, A, T.", True),
        ("B-A-T", True),
        ("b a t s", False),
        ("a,b,a,t", True),
        ("bat", False),
        ("b,at", False),
        ("ab,a,t", False),
        ("", False),
    ],
)
def test_letters_one_by_one(reply: str, right: bool) -> None:
    assert spelled(reply, "bat").right == right


def test_spelling() -> None:
    count = read_spelling({"word": "strawberry", "letter": "r"}, 1, "f, line 1")
    assert count.prompt == 'How many times does the letter "r" occur in the word "strawberry"?'
    assert count.grade("There are 3.").right and not count.grade("2").right
    letters = read_spelling({"word": "bat"}, 1, "f, line 1")
    assert letters.grade(letters.expected).right
    with pytest.raises(DataError, match="f, line 1: \"word\" is 'Bat', but must be two or more letters"):
        read_spelling({"word": "Bat"}, 1, "f, line 1")
    with pytest.raises(DataError, match="f, line 1: \"letter\" is 'xy', but must be one letter"):
        read_spelling({"word": "bat", "letter": "xy"}, 1, "f, line 1")
