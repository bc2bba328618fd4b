"""Spelling: how many r are in "strawberry", and which letters is it made of?

Tokens hide their letters, so a model knows how a word is spelled only if it has learned that, and it can
count letters by spelling the word first, or by the calculator: 'strawberry'.count('r'). After nanochat's
SpellingBee and SimpleSpelling tasks, with questions of our own. Half the items ask for a count, half for the
letters. The words are drawn from a public list of English words (assets/SOURCES.md), and all items come
along.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.data.questions import count_letter, letters_of, spell
from pilgrim.evals.chat_items import ChatItem, Verdict, text
from pilgrim.evals.tasks.arithmetic import graded
from pilgrim.infer.tools import spoken


def read_spelling(row: Mapping[str, Any], line: int, place: str) -> ChatItem:
    """ "word", and to be counted a "letter"."""
    word = text(row, "word", place)
    if not re.fullmatch("[a-z]{2,}", word):
        raise DataError(f'{place}: "word" is {word!r}, but must be two or more letters from a to z; mend it')
    if "letter" not in row:
        question = spell(word)
        return ChatItem(line, question, letters_of(word), lambda reply: spelled(reply, word), id=word)
    letter = text(row, "letter", place)
    if not re.fullmatch("[a-z]", letter):
        raise DataError(f'{place}: "letter" is {letter!r}, but must be one letter from a to z; mend it')
    count = word.count(letter)
    question = count_letter(letter, word)
    right = Fraction(count)
    return ChatItem(line, question, str(count), lambda reply: graded(reply, right), id=f"{letter} in {word}")


def spelled(reply: str, word: str) -> Verdict:
    """Are the word's letters there, one by one, with signs or spaces between them?"""
    letters = r"[\W_]+".join(word)
    found = re.search(rf"(?<![a-z]){letters}(?![a-z])(?![\W_]+[a-z](?![a-z]))", spoken(reply).lower())
    return Verdict(found is not None, found[0] if found else "")
