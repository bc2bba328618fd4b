"""Multiple choice in a chat: ARC (Clark et al. 2018), MMLU (Hendrycks et al. 2021), and what is like them.

The question comes with lettered choices, and the reply is a letter:

    Multiple Choice question: Which of these is a mammal?
    - a trout=A
    - a bat=B

    Respond only with the letter of the correct answer.

The layout is that of data/questions.py, in which a mixture may teach such questions too. One is asked in two
ways. By likelihood: which of the letters does the model find likeliest as its reply? It can't miss the form,
so guessing gets 1 of n. And by its own words: the reply is read, and one that names no letter is wrong. The
first measures knowledge, the second whether it comes out in a chat.
"""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from pilgrim.data.questions import checked_choices, multiple_choice
from pilgrim.evals.chat_items import ChatItem, Verdict, text

_ANNOUNCED = r"\b(?i:answer|option|choice)\b\W*(?i:is\b)?\W*([A-Z])\b(?!['’])"  # The answer is B
_SET_OFF = r"(?<![\w'’])([A-Z])(?=\s*(?:[().:,=*\]]|$))"  # (B), B., at the end: not the "A" of "A bat"


def letter_in(reply: str, choices: Sequence[str]) -> str:
    """The letter that a reply names, or "": "B", "(b)", "The answer is B.", or a choice word for word."""
    letters, said = ascii_uppercase[: len(choices)], reply.strip()
    texts = [choice.strip().casefold() for choice in choices]
    if re.fullmatch(r"\W*[A-Za-z]\W*", said):
        found = [re.sub(r"\W", "", said).upper()]
    elif (whole := said.rstrip(".").casefold()) in texts:
        found = [letters[texts.index(whole)]]
    else:
        found = re.findall(_ANNOUNCED, said) + re.findall(_SET_OFF, said, re.MULTILINE)
    return next((letter for letter in found if letter in letters), "")


def item(question: str, choices: Sequence[str], gold: int, line: int, name: str = "") -> ChatItem:
    """A question with its choices."""
    letters = tuple(ascii_uppercase[: len(choices)])

    def grade(reply: str) -> Verdict:
        letter = letter_in(reply, choices)
        return Verdict(letter == letters[gold], letter, "" if letter else "names none of the letters")

    return ChatItem(
        line,
        multiple_choice(question, choices),
        f"{letters[gold]} ({choices[gold]})",
        grade,
        letters,
        gold,
        name,
        published=tuple((question, choice) for choice in choices),
    )


def read_arc(row: Mapping[str, Any], line: int, place: str) -> ChatItem:
    """A row of CORE's files: "query" ("Question: …"), "choices", "gold"."""
    question = text(row, "query", place).removeprefix("Question: ")
    return item(question, *checked_choices(row, "choices", "gold", place), line)


def read_mmlu(row: Mapping[str, Any], line: int, place: str) -> ChatItem:
    """ "question", "choices", "answer" (a number from 0), and "subject"."""
    return item(text(row, "question", place), *checked_choices(row, "choices", "answer", place), line)
