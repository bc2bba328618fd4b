"""GSM8K: school arithmetic in a few sentences (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168).

The model may work as long as it likes, and use the calculator (infer/tools.py). Its answer is the number
behind "####", which is how the data set ends its solutions and so how a model that learned from it ends; a
reply without that mark is read for its last number. nanochat takes the mark only, other harnesses report
both: a model that never saw GSM8K would get 0 for the form alone.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.evals.chat_items import ChatItem, Verdict, text
from pilgrim.infer.tools import spoken

_NUMBER = r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
LONGEST = 100  # characters of a number
_MARKED = re.compile(rf"####\s*({_NUMBER})")


def number_in(reply: str) -> str:
    """What the reply gives as its answer: behind the last "####", else its last number; "": nothing."""
    said = spoken(reply)
    found = _MARKED.findall(said) or re.findall(_NUMBER, said)
    return re.sub(r"[$,]", "", found[-1]) if found else ""


def graded(reply: str, right: Fraction) -> Verdict:
    """Is the reply's number this one?"""
    number = number_in(reply)
    if not number:
        return Verdict(False, "", "gives no number")
    # No answer is that long, and Python refuses to read numbers of thousands of digits.
    return Verdict(len(number) < LONGEST and Fraction(number) == right, number)


def read_gsm8k(row: Mapping[str, Any], line: int, place: str) -> ChatItem:
    """ "question" and "answer", a solution that ends with "#### 18"."""
    answer, question = text(row, "answer", place), text(row, "question", place)
    marked = _MARKED.findall(answer)
    if not marked:
        raise DataError(f'{place}: "answer" does not end with "#### " and a number; mend or drop the row')
    right = Fraction(re.sub(r"[$,]", "", marked[-1]))
    published = ((question, answer),)
    return ChatItem(line, question, marked[-1], lambda reply: graded(reply, right), published=published)
