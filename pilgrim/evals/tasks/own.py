"""Questions of your own: a file of them, TOML or JSON Lines, is a task.

    [[question]]
    prompt = "What is the capital of France?"
    exact = "Paris"                                 # or a list of replies that are all right

    [[question]]
    prompt = "Which of these is a mammal?"
    choices = ["a trout", "a bat"]
    answer = "a bat"

    [[question]]
    id = "greeting"                                 # optional; no two may be the same
    prompt = "Say hello to Anna."
    regex = '(?i)\\bhello\\b.*\\banna\\b'               # found anywhere in the reply

    [[question]]
    prompt = "Write a Python function add(a, b)."
    program = "assert add(1, 2) == 3"               # run behind the reply's code, in the sandbox

In a `.jsonl` file each line is one question with the same keys. A reply is compared without its tool calls.
`exact` looks past capitals, white space and a full stop at the end.

A regular expression can take longer than the universe is old: `(a+)+$` tries every way to split a row of a's.
Python can't stop a search, so it runs in a process of its own that is killed after two seconds; such a reply
is wrong, and the note says why.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.core.files import explained, read_jsonl_zst
from pilgrim.data.questions import checked_choices
from pilgrim.evals.chat_items import ChatItem, Verdict, text
from pilgrim.evals.tasks import choice
from pilgrim.evals.tasks.programs import code_in, tested
from pilgrim.infer.sandbox import SandboxError, refusal
from pilgrim.infer.tools import spoken

ENDINGS = (".toml", ".jsonl", ".jsonl.zst")
KINDS = ("exact", "choices", "regex", "program")
REGEX_S = 2.0
_SEARCH = "import json, re, sys; p, t = json.load(sys.stdin); sys.exit(0 if re.search(p, t) else 1)"


def files_of(path: Path) -> list[Path]:
    """The file itself, or all files of questions in the folder. Raises DataError if there is none."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS))
        if not found:
            raise DataError(f"{path} holds no file of questions ({', '.join(ENDINGS)}); see docs/evals.md")
        return found
    if not path.exists():
        raise DataError(
            f"{path} does not exist, and is no suite either; give core, chat, behaviour, all, or a file of "
            "questions"
        )
    if not path.name.endswith(ENDINGS):
        raise DataError(f"{path} is no file of questions; they end with {', '.join(ENDINGS)}")
    return [path]


def name_of(file: Path) -> str:
    """The task's name: the file's, without its ending."""
    return file.name.partition(".")[0]


def read_questions(file: Path) -> list[ChatItem]:
    """All questions of a file. Raises DataError, with file and line, for what can't be asked or graded."""
    rows = _toml_rows(file) if file.suffix == ".toml" else read_jsonl_zst(file)
    items = [read_question(row, line, f"{file}, line {line}") for line, row in rows]
    if not items:
        raise DataError(f"{file} holds no questions; write [[question]] with a prompt and an answer")
    return items


def _toml_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with explained("read", file):
        data = file.read_bytes()
    try:
        source = data.decode()
        tree = tomllib.loads(source)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{file}: is no valid TOML ({error}); mend it") from None
    if unknown := tree.keys() - {"question"}:
        raise DataError(f'{file}: "{min(unknown)}" is not known here; write each question as [[question]]')
    questions = tree.get("question", [])
    if not isinstance(questions, list) or not all(isinstance(row, dict) for row in questions):
        raise DataError(f"{file}: each question must be a table; write [[question]]")
    # TOML's parser tells no lines; a table begins at its heading.
    begins = [
        number
        for number, line in enumerate(source.splitlines(), start=1)
        if re.match(r"\s*\[\[\s*question\s*\]\]", line)
    ]
    for number, row in enumerate(questions):
        yield begins[number] if number < len(begins) else number + 1, row


def read_question(row: Mapping[str, Any], line: int, place: str) -> ChatItem:
    """One question. Raises DataError if it can't be asked or graded, SandboxError if not here."""
    if unknown := row.keys() - {"id", "prompt", "answer", *KINDS}:
        known = ", ".join(("id", "prompt", "answer", *KINDS))
        raise DataError(f'{place}: "{min(unknown)}" is not known here; a question has {known}')
    kinds = [kind for kind in KINDS if kind in row]
    if len(kinds) != 1:
        given = " and ".join(kinds) or "none of them"
        raise DataError(f"{place}: has {given}; give exactly one of {', '.join(KINDS)}")
    if "answer" in row and kinds != ["choices"]:
        raise DataError(f'{place}: "answer" belongs to "choices"; give "exact" for a reply word for word')
    name = row.get("id", "")
    if not isinstance(name, str):
        raise DataError(f'{place}: "id" is {name!r}, but must be text; put it in quotation marks')
    prompt = text(row, "prompt", place)
    if kinds == ["choices"]:
        return _choices(row, prompt, line, name, place)
    expected, grade = {"exact": _exact, "regex": _regex, "program": _program}[kinds[0]](row, place)
    return ChatItem(line, prompt, expected, grade, id=name)


def _choices(row: Mapping[str, Any], prompt: str, line: int, name: str, place: str) -> ChatItem:
    options, answer = row["choices"], row.get("answer")
    count = options.count(answer) if isinstance(options, list) else 0
    if isinstance(options, list) and count != 1:
        raise DataError(f'{place}: "answer" is {answer!r}, which must be one of "choices", and there once')
    gold = options.index(answer) if count else 0
    choices, gold = checked_choices({"choices": options, "answer": gold}, "choices", "answer", place)
    return choice.item(prompt, choices, gold, line, name)


def _exact(row: Mapping[str, Any], place: str) -> tuple[str, Callable[[str], Verdict]]:
    given = row["exact"]
    answers: Sequence[Any] = given if isinstance(given, list) else [given]
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise DataError(f'{place}: "exact" is {given!r}, but must be text, or a list of texts; mend it')
    plain = {_plain(answer) for answer in answers}
    return answers[0], lambda reply: Verdict(_plain(spoken(reply)) in plain, spoken(reply).strip())


def _plain(reply: str) -> str:
    return " ".join(reply.split()).removesuffix(".").casefold()


def _regex(row: Mapping[str, Any], place: str) -> tuple[str, Callable[[str], Verdict]]:
    pattern = text(row, "regex", place)
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(f'{place}: "regex" is no regular expression of Python ({error}); mend it') from None
    return pattern, lambda reply: searched(pattern, spoken(reply))


def searched(pattern: str, reply: str) -> Verdict:
    """Is the pattern found in the reply, within `REGEX_S`?"""
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _SEARCH]
    try:
        done = subprocess.run(
            command, input=json.dumps([pattern, reply]).encode(), capture_output=True, timeout=REGEX_S
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, "", f"the regex took more than {REGEX_S:g} s")
    return Verdict(done.returncode == 0)


def _program(row: Mapping[str, Any], place: str) -> tuple[str, Callable[[str], Verdict]]:
    tests = text(row, "program", place)
    try:
        compile(tests, "program", "exec")
    except (SyntaxError, ValueError) as error:
        raise DataError(f'{place}: "program" is no Python ({error}); mend it') from None
    if (why := refusal()) is not None:
        raise SandboxError(f"{place}: {why}")
    return tests, lambda reply: tested(f"{code_in(reply)}\n\n{tests}\n")
