"""The person's side of a chat: lines come in, replies go out word by word.

In a terminal, words are kept whole at the right edge, and input has editing and history. With pipes,
lines are read from standard input and standard output gets the replies and nothing else, so that both can
be used by other programs. Everything beside the conversation (speed, help, what is wrong) goes to
standard error, dimly.

A call of a tool and its answer stand in the midst of a reply, in a terminal dimly as well.

Models write what they like. Control characters, with which a text could take over a terminal, are taken
out of it, and no markup is read from it.
"""

import io
import shutil
import sys
from contextlib import suppress
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pilgrim.core.console import CONTROL_CHARACTERS

with suppress(ImportError):  # some Pythons are built without it; lines are then read without editing
    import readline  # noqa: F401

PROMPT = "> "
WIDEST = 100  # columns: longer lines are hard to read
DIM, BRIGHT = "\x1b[2m", "\x1b[22m"  # ECMA-48: faint, and neither faint nor bold
LONG_WORD = 24  # columns: what has no spaces for longer is not held back; some scripts have none at all


class Screen:
    """Reads lines and shows replies and notes; `interactive` if both ends are a terminal."""

    def __init__(self, source: TextIO, out: TextIO, notes: TextIO) -> None:
        for stream in (source, out):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # neither end has to know all of Unicode
        self.interactive = source.isatty() and out.isatty()
        self._source, self._out = source, out
        self._notes = Console(file=notes, highlight=False, soft_wrap=True)
        width = min(WIDEST, shutil.get_terminal_size().columns - 1)
        self._wrap = Wrap(width) if self.interactive else None
        self._dims = self.interactive and not self._notes.is_dumb_terminal
        self._aside = False

    @classmethod
    def standard(cls) -> "Screen":
        """On this process's own input and outputs."""
        return cls(sys.stdin, sys.stdout, sys.stderr)

    def read_line(self) -> str | None:
        """The next line without its end; None when there will be no more."""
        if self.interactive:
            self._out.write("\n")
            try:
                return input(PROMPT)
            except EOFError:
                self._out.write("\n")
                return None
        line = self._source.readline()
        return line.rstrip("\r\n") if line else None

    def reply(self, piece: str, aside: bool = False) -> None:
        """Shows a piece of a reply: at once, or in a terminal as soon as its last word is whole.

        `aside`: it is of a call, or of a tool's answer.
        """
        text = printable(piece)
        self._put_aside(aside)
        self._out.write(self._wrap.feed(text) if self._wrap else text)
        self._out.flush()

    def end_reply(self) -> None:
        """The reply is over: a new line begins."""
        self._put_aside(False)
        self._out.write((self._wrap.finish() if self._wrap else "") + "\n")
        self._out.flush()

    def _put_aside(self, aside: bool) -> None:
        """From here on dimly, or no longer."""
        if self._wrap and self._dims and aside != self._aside:
            self._out.write(self._wrap.flush() + (DIM if aside else BRIGHT))
            self._aside = aside

    def note(self, text: str) -> None:
        """Something beside the conversation."""
        self._notes.print(Text(printable(text)), style="dim")


def printable(text: str) -> str:
    """`text` without control characters, line ends and tabs excepted."""
    return text.translate(CONTROL_CHARACTERS)


class Wrap:
    """Breaks lines between words while the words are still coming in, in pieces."""

    def __init__(self, width: int) -> None:
        """`width` in columns of the terminal; some characters take up two, some none."""
        self._width = width
        self._column = 0
        self._gap, self._word = "", ""  # white space, and the word after it, that are not shown yet

    def feed(self, text: str) -> str:
        """What can be shown now that `text` has come."""
        shown = ""
        for character in text:
            if character == "\n":
                shown += self._place() + "\n"
                self._column, self._gap = 0, ""
            elif character.isspace():
                shown += self._place()
                self._gap += "    " if character == "\t" else " "
            else:
                self._word += character
        return shown + self._place() if cell_len(self._word) > LONG_WORD else shown

    def flush(self) -> str:
        """What is held back of the last word."""
        return self._place()

    def finish(self) -> str:
        """The rest; the next text begins on a new line."""
        rest = self._place()
        self._column, self._gap = 0, ""
        return rest

    def _place(self) -> str:
        """The word that has come: on this line if it fits, else on the next."""
        if not self._word:
            return ""
        size = cell_len(self._gap + self._word)
        if self._column and self._column + size > self._width:
            shown, self._column = "\n" + self._word, cell_len(self._word)
        else:
            shown, self._column = self._gap + self._word, self._column + size
        self._gap = self._word = ""
        return shown
