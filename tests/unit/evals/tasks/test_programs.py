"""HumanEval: the program in a reply, and whether it passes."""

import pytest

from pilgrim.evals.tasks.programs import code_in, read_humaneval
from pilgrim.infer.sandbox import refusal

needs_sandbox = pytest.mark.skipif(refusal() is not None, reason=str(refusal()))
ROW = {
    "task_id": "T/0",
    "prompt": 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """Their sum."""\n',
    "entry_point": "total",
    "canonical_solution": "    return sum(numbers)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
}


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("Sure:\n```python\nx = 1\n```\nThat is it.\n```python\ny = 2\n```", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("```py\nx = 1", "x = 1"),
        ("x = 1\n", "x = 1"),
        ("    return 1", "    return 1"),
    ],
)
def test_code_in_a_reply(reply: str, code: str) -> None:
    assert code_in(reply) == code


@needs_sandbox
@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("```python\ndef total(numbers: List[int]) -> int:\n    return sum(numbers)\n```", ""),
        ("    return sum(numbers)", ""),
        ("def total(numbers):\n    return 3", "AssertionError"),
        ("I can't.", "SyntaxError"),
        ("", "AssertionError"),
        ("import sys\ndef total(n):\n    sys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)\ndef total(n): pass", "left before its end"),
        ("def check(candidate): pass\ndef total(n): pass", "AssertionError"),
    ],
)
def test_replies_are_run(reply: str, why: str) -> None:
    verdict = read_humaneval(ROW, 1, "f, line 1").grade(reply)
    assert verdict.right == (why == "")
    assert why in verdict.note


@needs_sandbox
def test_the_solution_of_the_data_is_right() -> None:
    item = read_humaneval(ROW, 1, "f, line 1")
    assert item.grade(item.expected).right
    assert item.id == "T/0" and "```python\nfrom typing import List" in item.prompt
