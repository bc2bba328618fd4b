"""HumanEval: the beginning of a Python function is given, and tests say whether the rest is right
(Chen et al. 2021, https://arxiv.org/abs/2107.03374).

A chatbot is asked for the whole function. Of its reply the first code block counts, or everything if there is
none; a reply that goes on where the question ends, without the line with `def`, is put behind the question.
The question's own imports come before, as the tests may use what they name. Then the tests are run in the
sandbox (infer/sandbox.py), and right is what comes to its end. One reply to each question, the likeliest:
"pass@1" at temperature 0.
"""

import re
from collections.abc import Mapping
from typing import Any

from pilgrim.evals.chat_items import ChatItem, Verdict, text
from pilgrim.infer.sandbox import run
from pilgrim.infer.tools import spoken

_BLOCK = re.compile(r"```(?:[Pp]ython|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
_IMPORT = re.compile(r"^(?:import|from)\s.*$", re.MULTILINE)


def code_in(reply: str) -> str:
    """The reply's program."""
    said = spoken(reply)
    block = _BLOCK.search(said)
    return block[1] if block else said.strip("\n")


def tested(program: str) -> Verdict:
    """Does it come to its end in the sandbox?"""
    outcome = run(program)
    return Verdict(outcome.passed, "", outcome.why)


def read_humaneval(row: Mapping[str, Any], line: int, place: str) -> ChatItem:
    """ "prompt", "entry_point", "canonical_solution", "test" with its function `check`, "task_id"."""
    begun, name, test = (text(row, key, place) for key in ("prompt", "entry_point", "test"))
    solution = text(row, "canonical_solution", place)

    def grade(reply: str) -> Verdict:
        code = code_in(reply)
        if not re.search(rf"^def {re.escape(name)}\b", code, re.MULTILINE):
            code = begun + code
        imports = "\n".join(_IMPORT.findall(begun))
        return tested(f"{imports}\n\n{code}\n\n{test}\n\ncheck({name})\n")

    question = (
        f"Complete this Python function. Reply with the whole function in one code block.\n\n"
        f"```python\n{begun.strip()}\n```"
    )
    task_id = text(row, "task_id", place)
    return ChatItem(line, question, begun + solution, grade, id=task_id, published=((begun, solution),))
