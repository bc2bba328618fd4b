"""The supervisor: starts a run's processes, and starts all of them anew when one falls.

    pilgrim run  =  supervisor  ->  one rank                            one GPU, or none
                    supervisor  ->  torchrun  ->  rank 0, 1, 2, ...     several

A run may last days, and machines fail: memory runs out, a GPU falls off the bus, a collective hangs. A
checkpoint makes such a thing cost minutes, provided that somebody starts the run again. So a job that ended
badly is started again, as a whole, after a pause that doubles. Two endings are final: what a person must
mend (exit code 2) would come again, and who asked for a stop wants one.

What crashes always at the same place must not go round for ever. Tries are counted, and the count begins
anew when a checkpoint was made in between: a run of weeks survives any number of evictions, a bug none but
a few.

Nothing here imports torch. The supervisor holds 30 MB for as long as the run lasts, and wakes up when it
ends.
"""

import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType

from pilgrim.core.files import read_json
from pilgrim.core.runlog import RunLog
from pilgrim.launch.lifeline import PARENT
from pilgrim.launch.verdict import (
    AGAIN,
    CRASHED,
    DONE,
    MEND,
    REPORT,
    Ending,
    cause,
    read_endings,
    sentence,
)
from pilgrim.launch.worker import ERROR_FILE

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
ONE_WAVE_S = 1.0  # a machine that shuts down may send a signal to every process, and parents pass theirs on
LOCK_S = 60.0  # a killed process may need so long to give its memory back
STACKS = "rank-*.stacks.txt"  # core/watchdog.py writes them
HUNG = b"Timeout ("  # how faulthandler begins when its time is over
SHOW_CURSOR = "\x1b[?25h"  # a live bar hides it, and was perhaps killed


@dataclass(frozen=True)
class Job:
    """What is to be run: `pilgrim *arguments`, in so many processes, into the folder `run`."""

    arguments: Sequence[str]
    processes: int
    run: Path


@dataclass
class Stop:
    """A stop that was asked for, and the process that has to be told."""

    asked: signal.Signals | None = None
    since_s: float = 0.0
    child: "subprocess.Popen[bytes] | None" = None
    told: bool = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT and SIGTERM. Children are in sessions of their own, so a terminal's Ctrl-C
        reaches the supervisor alone, and each of them hears of it once. A second signal ends everything."""
        if self.asked is None:
            self.asked, self.since_s = signal.Signals(number), time.monotonic()
            self.tell()
        elif time.monotonic() - self.since_s > ONE_WAVE_S and self.child is not None:
            self.child.kill()  # and what it has started dies with it (lifeline.py)

    def tell(self) -> None:
        """Pass the signal on, once."""
        if self.child is not None and self.asked is not None and not self.told:
            self.told = True
            self.child.send_signal(self.asked)


@dataclass
class Tries:
    """How often the job ended badly in a row, with no checkpoint in between."""

    most: int
    run: Path
    failed: int = 0
    seen: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seen = progress(self.run)

    def count(self) -> None:
        """It has ended badly once more."""
        now = progress(self.run)
        got_on = any(step > self.seen.get(place, -1) for place, step in now.items())
        self.failed = 1 if got_on else self.failed + 1
        self.seen = {place: max(step, self.seen.get(place, -1)) for place, step in now.items()}

    @property
    def pause_s(self) -> float:
        return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.failed - 1)))


def progress(run: Path) -> dict[str, int]:
    """How far a run has come: the newest checkpoint of each stage, and which stages are done."""
    found = {str(file): 1 for file in run.glob("*/DONE.json")}
    for file in run.glob("*/checkpoints/LATEST"):
        if step := re.search(r"\d+", file.read_text(encoding="utf-8", errors="replace")):
            found[str(file)] = int(step[0])
    return found


def supervise(job: Job, most_tries: int, say: Callable[[str], None]) -> int:
    """Run the job to its end, through up to `most_tries` bad endings in a row; returns the exit code.

    `say` shows the person a sentence. What went wrong is also kept in the run's events.jsonl.
    """
    tries = Tries(most_tries, job.run)
    with listening() as stop:
        while True:
            code, ending, why = attempt(job, stop)
            if code in (DONE, MEND):
                if why:
                    say(why)
                return code
            if (by := stop.asked or ending.stopped_by) and (ending.stopped_by or ending.code < 0):
                return 128 + by
            # A rank that ran out of memory has halved its microbatch: that has an end of its own.
            if ending.code == AGAIN and not stop.asked:
                if ending.rank:  # rank 0 has said it itself
                    say(why)
                continue
            tries.count()
            last = bool(stop.asked) or tries.failed >= tries.most
            say(f"{why}; {_what_next(tries, last)}")
            _note(job.run, ending, why, tries, last)
            if last:
                return CRASHED
            _pause(tries.pause_s, stop)
            _wait_for_lock(job.run / ".lock", stop)
            if stop.asked:
                return 128 + stop.asked


@contextmanager
def listening() -> Iterator[Stop]:
    """SIGINT and SIGTERM go to a `Stop`. One that is ignored (nohup, a shell's `&`) stays so."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, stop.ask)
    try:
        yield stop
    finally:
        for number in heard:
            signal.signal(number, before[number])


# One attempt --------------------------------------------------------------------------------------


def attempt(job: Job, stop: Stop) -> tuple[int, Ending, str]:
    """Start the job, wait for its end: an exit code, the ending that was the cause, and what to say of it."""
    stacks = {file: file.stat().st_size for file in (job.run / "logs").glob(STACKS)}
    killed = _killed_for_memory()
    with tempfile.TemporaryDirectory(prefix="pilgrim-") as temporary:
        if job.processes == 1:
            note = Path(temporary) / "error.json"
            code = _wait(_rank(job, note), stop)
            told = read_json(note) if note.exists() else {}
            endings, who = [Ending(0, code, told.get("message"))], "the run"
        else:
            logs = job.run / "logs" / datetime.now().strftime("%Y-%m-%dT%H-%M-%S.%f")
            code = _wait(_torchrun(job, logs), stop)
            endings = read_endings(logs / REPORT)
            who = "rank {}" if endings else "torchrun"
            endings = endings or [Ending(0, code)]
    if sys.stdout.isatty():
        sys.stdout.write(SHOW_CURSOR)
    ending = cause(endings)
    hung = _hung(job.run / "logs", stacks)
    if hung is not None:
        ending = next((one for one in endings if f"rank-{one.rank}." in hung.name), ending)
    if ending.code in (DONE, MEND):
        # A single rank, and rank 0, have said themselves what is to be mended.
        return ending.code, ending, ending.error or "" if ending.rank else ""
    why = sentence(ending, who.format(ending.rank), hung, ran_out=_killed_for_memory() > killed)
    return CRASHED, ending, why


def _rank(job: Job, note: Path) -> "subprocess.Popen[bytes]":
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return _start(["-m", "pilgrim", *job.arguments], alone | {ERROR_FILE: str(note)})


def _torchrun(job: Job, logs: Path) -> "subprocess.Popen[bytes]":
    return _start(["-m", "pilgrim.launch.torchrun", str(job.processes), str(logs), *job.arguments], {})


def _start(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, PARENT: str(os.getpid()), **environment},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # see Stop.ask
    )


def _wait(child: "subprocess.Popen[bytes]", stop: Stop) -> int:
    stop.child, stop.told = child, False
    stop.tell()  # it may have been asked for while the child was being started
    try:
        return child.wait()
    finally:
        stop.child = None


# Why it ended, and what next ----------------------------------------------------------------------


def _hung(logs: Path, before: Mapping[Path, int]) -> Path | None:
    """The file in which the watchdog has written stacks since, if it has."""
    for file in sorted(logs.glob(STACKS)):
        with file.open("rb") as opened:
            opened.seek(before.get(file, 0))
            if HUNG in opened.read():
                return file
    return None


def _killed_for_memory() -> int:
    """How many processes the kernel has killed for want of memory so far; 0 where it doesn't tell."""
    try:
        counted = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(counted[1]) if counted else 0


def _what_next(tries: Tries, last: bool) -> str:
    if not last:
        following = f"try {tries.failed + 1} of {tries.most}"
        return f"it starts again from the last checkpoint in {tries.pause_s:.0f} s ({following})"
    if tries.failed < tries.most:
        return "it was being stopped, so it is not started again"
    if tries.most == 1:
        return "it is not started again (--tries 1)"
    return f"after {tries.failed} crashes without a new checkpoint in between, it is not started again"


def _note(run: Path, ending: Ending, why: str, tries: Tries, last: bool) -> None:
    if run.is_dir():  # else it has not even begun
        RunLog(run).event(
            "gave_up" if last else "crashed",
            why=why,
            rank=ending.rank,
            code=ending.code,
            error=ending.error,
            failed_in_a_row=tries.failed,
        )


def _pause(seconds: float, stop: Stop) -> None:
    end_s = time.monotonic() + seconds
    while stop.asked is None and (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(0.1, left_s))


def _wait_for_lock(file: Path, stop: Stop) -> None:
    """Wait until those who were killed are gone: they hold the run's folder, and the GPU's memory."""
    end_s = time.monotonic() + LOCK_S
    while file.exists() and stop.asked is None and time.monotonic() < end_s:
        with file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1)
