"""What a person sees while a run works: stages, sentences, and a bar with the time left.

In a terminal, rich draws a live bar. Where the output goes to a file or a pipe, the same facts come as plain
lines, one about every ten seconds, so that a log stays readable. `Console(quiet=True)` shows nothing.

    with console.progress(total=300, unit="steps", start=120) as progress:
        progress.advance(loss=1.93, bpb=1.02, tokens_per_s=9700)
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

import rich.console
import rich.progress
from rich.table import Column
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0
# Models write what they like: escape sequences in a sample must not reach the terminal.
CONTROL_CHARACTERS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Progress(Protocol):
    """Work with a known end."""

    def advance(self, n: int = 1, **fields: float) -> None:
        """`n` more units are done. Fields stay shown until they are given anew.

        `loss` (nats), `bpb` (bits per byte), `tokens_per_s`, `mfu` and `mfu_spec` (shares of the machine's
        peak, measured and promised) have their own look; others are shown by name.
        """


class Console:
    """The door to the person in front. `file` is standard output unless given."""

    def __init__(self, quiet: bool = False, file: IO[str] | None = None) -> None:
        self._quiet = quiet
        self._file = file or sys.stdout
        self._rich = rich.console.Console(file=self._file, highlight=False)
        self._live = self._rich.is_terminal and not self._rich.is_dumb_terminal
        self._stage = ""

    def stage(self, name: str, what: str) -> None:
        """A stage begins: its name, and in a few words what it does."""
        self._stage = name
        if self._live:
            self._print(Text.assemble("\n", (name, "bold cyan"), "  ", (what, "dim")))
        else:
            self._print(Text(f"== {name}: {what}"))

    def say(self, text: str) -> None:
        """A line for the person; above the bar, if there is one."""
        self._print(Text(text.translate(CONTROL_CHARACTERS)))

    @contextmanager
    def progress(self, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
        """A bar over `total` units of which `start` were done before; named after the current stage."""
        if self._quiet:
            yield _Silent()
        elif self._live:
            with _bar(self._rich) as bar:
                task = bar.add_task(self._stage, total=total, completed=start, unit=unit, facts="")
                yield _Bar(bar, task)
        else:
            lines = _Lines(self, total, unit, start)
            yield lines
            lines.finish()

    def _print(self, text: Text) -> None:
        if self._quiet:
            return
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        text.plain = text.plain.encode(encoding, "replace").decode(encoding)
        if self._live:
            self._rich.print(text)
        else:
            print(text.plain, file=self._file, flush=True)


class _Silent:
    def advance(self, n: int = 1, **fields: float) -> None:
        pass


class _Bar:
    """The live bar in a terminal."""

    def __init__(self, bar: rich.progress.Progress, task: rich.progress.TaskID) -> None:
        self._bar, self._task = bar, task
        self._fields: dict[str, float] = {}

    def advance(self, n: int = 1, **fields: float) -> None:
        self._fields |= fields
        self._bar.update(self._task, advance=n, facts=_facts(self._fields))


class _Lines:
    """The plain twin: a line at most every ten seconds, and one at the end."""

    def __init__(self, console: Console, total: int, unit: str, start: int) -> None:
        self._console, self._total, self._unit, self._start = console, total, unit, start
        self._done = self._told = start
        self._fields: dict[str, float] = {}
        self._began_s = self._told_s = time.monotonic()

    def advance(self, n: int = 1, **fields: float) -> None:
        self._done += n
        self._fields |= fields
        if time.monotonic() - self._told_s >= SECONDS_BETWEEN_LINES:
            self._tell()

    def finish(self) -> None:
        if self._done != self._told:
            self._tell()

    def _tell(self) -> None:
        self._told, self._told_s = self._done, time.monotonic()
        elapsed_s = self._told_s - self._began_s
        left_s = elapsed_s / max(1, self._done - self._start) * max(0, self._total - self._done)
        times = f"{_clock(elapsed_s)}, {_clock(left_s)} left" if left_s else _clock(elapsed_s)
        parts = [f"{self._done:,}/{self._total:,} {self._unit}", _facts(self._fields), times]
        self._console.say("   " + "  ".join(filter(None, parts)))


def _bar(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", style="cyan"),
        rich.progress.BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        rich.progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        rich.progress.TextColumn("{task.fields[facts]}", style="bold"),
        _Times(),
        console=console,
        expand=True,
    )


class _Times(rich.progress.ProgressColumn):
    """`2:05, 3:10 left`, short enough for everything to fit into 80 columns."""

    def render(self, task: rich.progress.Task) -> Text:
        left = "" if task.finished or task.time_remaining is None else f", {_clock(task.time_remaining)} left"
        return Text(_clock(task.elapsed or 0.0) + left, style="dim")


def _facts(fields: dict[str, float]) -> str:
    return " ".join(_fact(name, value) for name, value in fields.items())


def _fact(name: str, value: float) -> str:
    match name:
        case "loss":
            return f"loss {value:.3f}"
        case "bpb":
            return f"bpb {value:.4f}"
        case "tokens_per_s":
            return f"{value:,.0f} tok/s"
        case "mfu":
            return f"{value:.0%} MFU"
        case "mfu_spec":
            return f"({value:.0%} of spec)"
        case _:
            return f"{name} {value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
