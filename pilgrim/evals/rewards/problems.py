"""Problems whose replies a program can grade: what reinforcement learning asks, and what a reply is worth.

    kind        a row of the file                                     worth 1
    sentence    {"prompt": …, "word": "dog"}                          one sentence with the word
    spelling    {"word": "banana", "letter": "a"}, or no letter       the right count; the right letters
    counting    {"word": "banana", "letter": "a"}                     the same, and counted: see below
    gsm8k       {"question": …, "answer": "… #### 18"}                the right number
    ifeval      {"prompt", "instruction_id_list", "kwargs"}           every instruction followed
    questions   {"prompt": …, "exact" or "regex" or …: …}             the answer; a format
    own         {"prompt": …}, and whatever your function reads       what your function returns

All but the first and the last are graded by the code that grades them in evaluations (evals/tasks), so
what is rewarded is what will be measured. `ifeval` and `questions` are also how formats are asked for: a
reply without commas, of two paragraphs, that a regular expression finds. For the last see own.py.

`sentence` gives a half for one sentence, whatever it says, and a half for the word, wherever it stands. Where
a model hardly ever does both, there are differences to learn from all the same.

`counting` wants more than the right number: the calculator must have counted that letter in that word. Half
of all answers are 1, so a model that guesses is rewarded half the time, and every lucky guess makes whatever
nonsense led to it likelier.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pilgrim.core.errors import DataError
from pilgrim.core.files import read_jsonl_zst
from pilgrim.evals.chat_items import ChatItem, Verdict, text
from pilgrim.evals.tasks.arithmetic import read_gsm8k
from pilgrim.evals.tasks.instruction_checks import sentences
from pilgrim.evals.tasks.instructions import read_ifeval
from pilgrim.evals.tasks.own import read_question
from pilgrim.evals.tasks.spelling import read_spelling
from pilgrim.infer.tools import spoken
from pilgrim.text.chat import Message, messages_from_row

Kind = Literal["sentence", "spelling", "counting", "gsm8k", "ifeval", "questions", "own"]


def read_counting(row: Mapping[str, Any], line: int, place: str) -> ChatItem:
    """ "word" and "letter"."""
    word, letter = text(row, "word", place), text(row, "letter", place)
    item = read_spelling(row, line, place)

    def grade(reply: str) -> Verdict:
        verdict = item.grade(reply)
        counted = re.search(
            rf"""<tool_call>\s*["']{word}["']\.count\(["']{letter}["']\)\s*</tool_call>""", reply
        )
        if verdict.right and not counted:
            return Verdict(False, verdict.answer, "right, but not counted")
        return verdict

    return replace(item, grade=grade)


READERS: dict[str, Callable[[Mapping[str, Any], int, str], ChatItem]] = {
    "spelling": read_spelling,
    "counting": read_counting,
    "gsm8k": read_gsm8k,
    "ifeval": read_ifeval,
    "questions": read_question,
}


@dataclass(frozen=True)
class Graded:
    """What a reply is worth; None: it could not be graded, and `why` says why not."""

    reward: float | None
    why: str = ""

    @property
    def solved(self) -> bool:
        """A reward of 1 means that everything was right."""
        return self.reward is not None and self.reward >= 1


# (what was asked, the reply, the prompt's row, file and line) -> what it is worth
OwnGrade = Callable[[str, str, Mapping[str, Any], str], Graded]


@dataclass(frozen=True)
class Problem:
    """A prompt, and how replies to it are graded. `place` is file and line."""

    line: int
    place: str
    messages: tuple[Message, ...]
    grade: Callable[[str], Graded]

    @property
    def asked(self) -> str:
        """The last message, for who reads along."""
        return self.messages[-1].content


def read_problems(file: Path, kind: Kind, own: OwnGrade | None = None) -> list[Problem]:
    """All problems of a JSONL file. Raises DataError, with file and line, for what can't be asked or
    graded."""
    found = [problem_of(row, line, f"{file}, line {line}", kind, own) for line, row in read_jsonl_zst(file)]
    if not found:
        raise DataError(f"{file} holds no problems; write one JSON object a line")
    return found


def problem_of(
    row: dict[str, Any], line: int, place: str, kind: Kind, own: OwnGrade | None = None
) -> Problem:
    """The problem of a row. `place` is its file and line. Raises DataError if it can't be asked or graded."""
    if kind == "sentence":
        word, prompt = text(row, "word", place), text(row, "prompt", place)
        return Problem(line, place, (Message("user", prompt),), lambda reply: one_sentence(reply, word))
    if kind == "own":
        assert own is not None
        messages = _messages(row, place)
        asked = messages[-1].content
        return Problem(line, place, messages, lambda reply: own(asked, reply, row, place))
    item = READERS[kind](row, line, place)
    return Problem(line, place, (Message("user", item.prompt),), lambda reply: _right(item, reply))


def one_sentence(reply: str, word: str) -> Graded:
    """A half for one whole sentence and no more, a half for the word in it (or its plural)."""
    said = spoken(reply).strip()
    whole = sentences(said) == 1 and said[-1:] in ".!?\"'"
    named = re.search(rf"\b{re.escape(word)}s?\b", said, re.IGNORECASE) is not None
    why = " and ".join(["not one sentence"] * (not whole) + [f"no {word}"] * (not named))
    return Graded(0.5 * whole + 0.5 * named, why)


def _right(item: ChatItem, reply: str) -> Graded:
    verdict = item.grade(reply)
    return Graded(float(verdict.right), verdict.note)


def _messages(row: dict[str, Any], place: str) -> tuple[Message, ...]:
    """Those of the row, which end with the user; or its "prompt" as the user's only one."""
    if "messages" not in row:
        return (Message("user", text(row, "prompt", place)),)
    messages = messages_from_row(row, place)
    if messages[-1].role != "user":
        raise DataError(
            f"{place}: ends with the {messages[-1].role}, but a prompt ends with the user; cut it"
        )
    return messages


def held_out_of(problems: Sequence[Problem], share: float) -> tuple[list[Problem], list[Problem]]:
    """(to learn from, held out): by a hash of what is asked, so the same prompt is always on the same
    side."""

    def held(problem: Problem) -> bool:
        digest = hashlib.sha256("\n".join(m.content for m in problem.messages).encode()).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64

    return [p for p in problems if not held(p)], [p for p in problems if held(p)]
