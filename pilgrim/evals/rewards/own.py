"""Your own reward: a Python file with a function.

    def reward(prompt: str, reply: str, row: dict) -> float: ...

`prompt` is what was asked last, `reply` the model's text with its tool calls, `row` the prompt's row of JSON
with whatever else you have written there. The number may be anything finite; groups of replies are compared
by it, and 1 or more counts as solved.

The function runs in a process of its own (own_process.py), for three reasons: it may hang, and a process can
be killed; it may print, or change what is global; and whatever it raises is about a reply, and no end of the
run. It is your program and not the model's, so it isn't fenced in otherwise: it may import and read what you
may.

A call that raises, returns no finite number, or takes too long gives no reward. It is told in a sentence with
the place in your file and that of the prompt; the reply is not learned from, and is counted.
"""

import json
import math
import select
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.evals.rewards import own_process
from pilgrim.evals.rewards.problems import Graded

START_S = 60.0  # for imports


class OwnReward:
    """The function of a file, called in a child process that is started when it is needed."""

    def __init__(self, file: Path, seconds: float) -> None:
        """Calls may take `seconds`. Raises DataError if the file has no such function."""
        self.file, self.seconds = file, seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._started()

    def grade(self, prompt: str, reply: str, row: Mapping[str, Any], place: str) -> Graded:
        """What the function says about a reply; else why there is no reward."""
        child = self._started()
        request = json.dumps([prompt, reply, row]).encode() + b"\n"
        try:
            assert child.stdin
            child.stdin.write(request)
            child.stdin.flush()
            answer = self._answer(child, self.seconds)
        except (BrokenPipeError, TimeoutError, EOFError) as error:
            self.close()
            what = (
                f"took more than {self.seconds:g} s"
                if isinstance(error, TimeoutError)
                else "ended its process"
            )
            return Graded(None, f"{self.file}: reward {what} on {place}")
        if "error" in answer:
            where = f"{self.file}, line {answer['line']}" if answer["line"] else str(self.file)
            return Graded(None, f"{where}: reward raised {answer['error']} on {place}")
        value = answer["reward"]
        if not isinstance(value, int | float) or not math.isfinite(value):
            return Graded(
                None, f"{self.file}: reward returned {answer['shown']}, no finite number, on {place}"
            )
        return Graded(float(value))

    def close(self) -> None:
        """End the child. The next call starts another one."""
        if self._child is not None:
            self._end()  # once only
            self._child, self._unread = None, b""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None:
            return self._child
        command = [sys.executable, "-u", str(Path(own_process.__file__)), str(self.file)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._end = weakref.finalize(self, _ended, self._child)  # also when nobody needs this any more
        try:
            found = self._answer(self._child, START_S)
        except (TimeoutError, EOFError) as error:
            self.close()
            what = f"took more than {START_S:g} s" if isinstance(error, TimeoutError) else "ended its process"
            raise DataError(f"{self.file}: importing it {what}; mend that") from None
        if "error" in found:
            self.close()
            where = f"{self.file}, line {found['line']}" if found["line"] else str(self.file)
            raise DataError(f"{where}: {found['error']}; it must define reward(prompt, reply, row)")
        return self._child

    def _answer(self, child: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
        """The child's next line. Raises TimeoutError, and EOFError if it has ended."""
        assert child.stdout
        while b"\n" not in self._unread:
            ready, _, _ = select.select([child.stdout], [], [], seconds)
            if not ready:
                raise TimeoutError
            data = child.stdout.read1(1 << 16)  # type: ignore[attr-defined]
            if not data:
                raise EOFError
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found


def _ended(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate()
