"""Questions with known answers, as a chatbot is asked them: one form, for training and for evaluation.

A small model that has learned to answer `- a bat=B` with "B" is lost if it is asked in another layout, so
what is trained (data/adapters.py, data/generated.py) and what is measured (evals/tasks) come from here. The
layout of multiple choice is nanochat's (tasks/common.py): the letter behind its choice, which small models
find easier to bind, and no space before it, so that it is the same token as in the reply.
"""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from pilgrim.core.errors import DataError


def multiple_choice(question: str, choices: Sequence[str]) -> str:
    """A question with its lettered choices, at most 26."""
    listed = "".join(
        f"- {choice}={letter}\n" for choice, letter in zip(choices, ascii_uppercase, strict=False)
    )
    return (
        f"Multiple Choice question: {question}\n{listed}\nRespond only with the letter of the correct answer."
    )


def checked_choices(row: Mapping[str, Any], choices: str, gold: str, place: str) -> tuple[list[str], int]:
    """`row[choices]`, and `row[gold]`, the number of the right one. Raises DataError."""
    options, number = row.get(choices), row.get(gold)
    if not isinstance(options, list) or not 2 <= len(options) <= len(ascii_uppercase):
        raise DataError(f'{place}: "{choices}" must be a list of 2 to 26 texts; mend or drop the row')
    for at, option in enumerate(options):
        if not isinstance(option, str) or not option.strip():
            raise DataError(
                f'{place}: "{choices}"[{at}] is {str(option)!r}, which has no tokens that could be scored; '
                "write text, or drop the row"
            )
    if len({option.strip() for option in options}) < 2:
        raise DataError(f'{place}: all "{choices}" are the same, so none can be right; mend or drop the row')
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(options):
        raise DataError(
            f'{place}: "{gold}" is {number!r}, but must be a number from 0 to {len(options) - 1}, one of '
            f'"{choices}"'
        )
    return options, number


def spell(word: str) -> str:
    """To be answered by `letters_of(word)`."""
    return f'Spell the word "{word}", with a comma after each letter.'


def letters_of(word: str) -> str:
    """The letters of a word: "c,a,t"."""
    return ",".join(word)


def count_letter(letter: str, word: str) -> str:
    """To be answered by a number."""
    return f'How many times does the letter "{letter}" occur in the word "{word}"?'
