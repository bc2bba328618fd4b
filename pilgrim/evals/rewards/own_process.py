"""The process in which somebody's reward function runs: `python own_process.py FILE`.

A line of JSON in, [prompt, reply, row], a line out: {"reward", "shown"} or {"error", "line"}. The first line
out says whether the file could be read. What the function prints goes to standard error, so that it can't be
mixed up with answers. Needs nothing but Python, as it is started anew after each call that hangs.
"""

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(file: Path) -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    try:
        reward = _function(file)
    except BaseException as error:
        tell(_failed(error, file))
        return
    tell({})
    for line in sys.stdin.buffer:
        try:
            value = reward(*json.loads(line))
            tell({"reward": _as_number(value), "shown": repr(value)[:60]})
        except BaseException as error:
            tell(_failed(error, file))


def _function(file: Path) -> Callable[..., Any]:
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location("reward_file", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, "reward", None)
    if not callable(function):
        raise NameError("there is no function called reward")
    return function  # type: ignore[no-any-return]


def _as_number(value: Any) -> float | None:
    """Python's numbers, and those of numpy and torch, as a float; None for anything else.

    Raises OverflowError for an int that no float can hold.
    """
    item = getattr(value, "item", None)
    found = item() if callable(item) else value
    return float(found) if isinstance(found, int | float) else None


def _failed(error: BaseException, file: Path) -> dict[str, Any]:
    """The error, and the last line of `file` that it passed through."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines.append(error.lineno)
    text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return {"error": text, "line": lines[-1] if lines else None}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
