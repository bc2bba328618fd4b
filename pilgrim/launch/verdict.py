"""Why did a run end? From exit codes, signals and the ranks' last notes to one sentence.

When one rank dies the others follow: their next collective fails, or torchrun asks them to stop. So of all
the endings one has to be found that was the cause. A rank that was killed by a signal comes first, unless
that was long after the first ending: then torchrun has killed who did not stop when asked, stuck in a
collective, say. Then comes what a person must mend; then the earliest error; then those that were asked to
stop.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pilgrim.core.errors import PilgrimError, StartAgain, Stopped, ToldElsewhere
from pilgrim.core.files import read_json

REPORT = "report.json"  # how the ranks ended, from the launcher to the supervisor

# Exit codes, as docs/reliability.md and `pilgrim run --help` say.
DONE, CRASHED, MEND = 0, 1, 2
FOLLOWED, AGAIN = 3, 4  # ranks only: another one says why; what went wrong is noted, and will not come again
STOPPED = {128 + number: signal.Signals(number) for number in (signal.SIGINT, signal.SIGTERM)}  # 130, 143

TORCHRUN_KILLS_S = 20.0  # a rank killed so long after the first has ended is killed by torchrun (after 30 s)

OOM_HINT = (
    "the kernel kills so when memory runs out (`dmesg` says whether it did); "
    "fewer rows at once, or other programs closed, leave more"
)


def code_of(error: BaseException) -> int:
    """What a process exits with that ends by this."""
    match error:
        case Stopped():
            return 128 + error.signal_number
        case KeyboardInterrupt():
            return 128 + signal.SIGINT
        case ToldElsewhere():
            return FOLLOWED
        case StartAgain():
            return AGAIN
        case PilgrimError():
            return MEND
        case _:
            return CRASHED


@dataclass(frozen=True)
class Ending:
    """How a process ended. `code` as Python tells it: an exit code, or minus a signal's number."""

    rank: int
    code: int
    error: str | None = None  # the last line of its traceback
    time: float = 0.0

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal that asked it to stop, if that is why it ended."""
        if -self.code in (signal.SIGINT, signal.SIGTERM):
            return signal.Signals(-self.code)
        return STOPPED.get(self.code)


def read_endings(file: Path) -> list[Ending]:
    """What the launcher has written down; nothing if it came to no harm, or had no time to."""
    return [Ending(**row) for row in read_json(file)] if file.exists() else []


def cause(endings: Sequence[Ending]) -> Ending:
    """The one that made the others end."""

    first_s = min(ending.time for ending in endings)

    def order(ending: Ending) -> tuple[int, float]:
        if ending.stopped_by or ending.code == FOLLOWED:
            kind = 3
        elif ending.code < 0 and ending.time < first_s + TORCHRUN_KILLS_S:
            kind = 0
        else:
            kind = 1 if ending.code == MEND else 2
        return kind, ending.time

    return min(endings, key=order)


def sentence(ending: Ending, who: str, hung: Path | None = None, ran_out: bool = False) -> str:
    """What happened, and why, as far as it can be told.

    `hung`: the file with its stacks, if the watchdog has ended it. `ran_out`: the kernel has counted
    processes that it killed for want of memory.
    """
    if ending.code < 0:
        number = signal.Signals(-ending.code)
        if number == signal.SIGKILL:
            return f"{who} was killed (SIGKILL); " + (
                "memory ran out, the kernel says" if ran_out else OOM_HINT
            )
        return f"{who} crashed ({number.name}: {signal.strsignal(number)})"
    if hung is not None:
        return f"{who} stood still for longer than runtime.hang_s allows; where it stood: {hung}"
    if ending.code == AGAIN and ending.error:
        return ending.error
    return f"{who} ended with exit code {ending.code}" + (f": {ending.error}" if ending.error else "")
