"""Tools: how a model calls one in the middle of a reply, and what answers.

A reply may hold a call between two marks, and the engine writes the answer behind it:

    She makes 9 * 2 = <tool_call>9*2</tool_call><tool_response>18</tool_response> 18 dollars.
                      ^ drawn by the model      ^ forced by the engine

The marks are special tokens of the tokenizer, so no text of a user can spell a call, and whether one is
complete is a question of ids. A call may stand anywhere in the assistant's turn, as nanochat has it; the
answer belongs to that turn, but is nothing that the model has said. A call that can't be answered is answered
too, by "error: " and the reason, as a model that waits for an answer would make one up.

Two tools answer here (text/calls.py says what their calls look like, and those of other functions):

    calculator    always there; it can't do any harm (calculator.py)
    python        runs a program that the model wrote, in the sandbox (sandbox.py); only for who asks for it

The program's answer is what it printed and, as in a notebook, the value of its last line if that is an
expression. Every program begins anew: nothing is left of the one before, no variable and no file.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from pilgrim.infer import sandbox
from pilgrim.infer.calculator import calculator
from pilgrim.infer.sandbox import Limits
from pilgrim.text.calls import (
    BUILT_IN,
    CALCULATOR,
    CALL,
    END_OF_CALL,
    END_OF_RESPONSE,
    MARKS,
    PYTHON,
    RESPONSE,
    call_of,
)
from pilgrim.text.tokenizer import Tokenizer

__all__ = [
    "CALL",
    "END_OF_CALL",
    "END_OF_RESPONSE",
    "RESPONSE",
    "Tool",
    "ToolUse",
    "calculator",
    "run_python",
    "spoken",
    "tools_with_python",
]

Tool = Callable[[str], str]  # the only argument of a built-in tool -> the answer

LONGEST_ANSWER = 1000  # characters of what a program says: a model's context is small
PROGRAM = Limits(wall_s=5.0)

ALWAYS: Mapping[str, Tool] = MappingProxyType({CALCULATOR: calculator})


def run_python(code: str) -> str:
    """What a program says, or "error: " and why it came to no end. Raises SandboxError where none can run."""
    outcome = sandbox.run(code, PROGRAM, show_value=True)
    said = outcome.output.rstrip("\n")
    if len(said) > LONGEST_ANSWER:
        said = f"{said[:LONGEST_ANSWER]}... ({len(said) - LONGEST_ANSWER} characters more)"
    return "\n".join([said] * bool(said) + [f"error: {outcome.why}"] * (not outcome.passed))


def tools_with_python() -> dict[str, Tool]:
    """The calculator, and Python, if the sandbox runs here. Raises SandboxError if it doesn't."""
    sandbox.run("pass")  # tried now, and not in the middle of a reply
    return {**ALWAYS, PYTHON: run_python}


class ToolUse:
    """Answers the calls in replies: `answer(ids)` has the ids that must follow, mostly none."""

    def __init__(self, tokenizer: Tokenizer, tools: Mapping[str, Tool] = ALWAYS) -> None:
        self._tokenizer = tokenizer
        self._tools = tools

    def answer(self, ids: Sequence[int]) -> list[int]:
        """The forced ids behind a reply that begins with `ids`: the answer, if its last id ends a call."""
        if not ids or ids[-1] != END_OF_CALL:
            return []
        begin = next((i for i in range(len(ids) - 2, -1, -1) if ids[i] in MARKS), None)
        if begin is None or ids[begin] != CALL:
            return []  # an end without a beginning is no call
        text = self._answered(self._tokenizer.decode(ids[begin + 1 : -1]))
        return [RESPONSE, *self._tokenizer.encode(text), END_OF_RESPONSE]

    def _answered(self, text: str) -> str:
        call = call_of(text)
        if call.name not in self._tools:
            return f"error: there is no tool {call.name} here, only {' and '.join(self._tools)}"
        return self._tools[call.name](call.argument(BUILT_IN[call.name]))


def spoken(text: str) -> str:
    """A reply's text without its calls and their answers: what the model said."""
    return re.sub(
        r"<tool_call>.*?(?:</tool_call>|\Z)|<tool_response>.*?(?:</tool_response>|\Z)", "", text, flags=re.S
    )
