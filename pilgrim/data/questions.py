"""Questions with known answers, as a chatbot is asked them: one form, for training and for evaluation.

A small model that has learned to answer `- a bat=B` with "B" is lost if it is asked in another layout, so
what is trained (data/adapters.py, data/generated.py) and what is measured (evals/tasks) come from here. The
layout of multiple choice is nanochat's (tasks/common.py): the letter behind its choice, which small models
find easier to bind, and no space before it, so that it is the same token as in the reply.
"""

from collections.abc import Sequence
from string import ascii_uppercase


def multiple_choice(question: str, choices: Sequence[str]) -> str:
    """A question with its lettered choices, at most 26."""
    listed = "".join(
        f"- {choice}={letter}\n" for choice, letter in zip(choices, ascii_uppercase, strict=False)
    )
    return (
        f"Multiple Choice question: {question}\n{listed}\nRespond only with the letter of the correct answer."
    )


def spell(word: str) -> str:
    """To be answered by `letters_of(word)`."""
    return f'Spell the word "{word}", with a comma after each letter.'


def letters_of(word: str) -> str:
    """The letters of a word: "c,a,t"."""
    return ",".join(word)


def count_letter(letter: str, word: str) -> str:
    """To be answered by a number."""
    return f'How many times does the letter "{letter}" occur in the word "{word}"?'
