"""A watchdog: a process that stands still leaves its stacks and ends.

Several GPUs wait for one another in every step. If one of them never comes (a lost message, a stuck driver,
an exception that nobody sees), all others wait for ever, without a word, and are paid for. Nothing written
in Python can be relied on then, as Python itself waits. So the watch is kept by a thread of C,
faulthandler's: unless it is told in time that a step was finished, it writes where each thread of the
process stands into a file and ends the process. A supervisor then starts the run again (pilgrim/launch).

    with watchdog.watching():             compiling, saving, evaluating may take long:
        while training:                       with watchdog.patient(): ...
            step()
            watchdog.alive()              from now on, again limit_s

Who is asked to stop (SIGTERM) and does not get there either, because the others are dead, say, writes its
stacks after some time too: torchrun kills it soon. And `kill -USR1 PID` writes them whenever a person wants
to look.
"""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LONG_S = 3600.0  # for what takes long and is no step: compiling, saving, evaluating
REARM_S = 1.0  # steps that follow one another faster don't reset the timer each
STOP_S = 25.0  # for a stop, before the stacks are written; torchrun may kill after 30 s


def stacks_file(run: Path, rank: int) -> Path:
    """Where the stacks of one of a run's processes go."""
    return run / "logs" / f"rank-{rank}.stacks.txt"


class Watchdog:
    """`limit_s`: seconds without a step that count as standing still. `file` gets the stacks; without one,
    nothing is watched.

    There is one such watch in a process, as faulthandler has but one timer.
    """

    def __init__(self, file: Path | None, limit_s: float) -> None:
        self.file, self.limit_s = file, limit_s
        self._opened: IO[bytes] | None = None
        self._rearm_s = 0.0  # when `alive` sets the timer again

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While inside, the process is watched; patiently, until it has said for the first time `alive`."""
        if self.file is None:
            yield
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as self._opened, _slow_to_stop(self._write):
            faulthandler.register(signal.SIGUSR1, self._opened, all_threads=True)
            self._arm(LONG_S)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                faulthandler.unregister(signal.SIGUSR1)
                _remove_empty(self.file)
        self._opened = None

    def alive(self) -> None:
        """A step is finished. Costs half a millisecond once in a while, and else nothing."""
        if time.monotonic() > self._rearm_s:
            self._arm(self.limit_s)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Inside, something is done that takes longer than a step."""
        self._arm(LONG_S)
        yield
        self._arm(self.limit_s)

    def _arm(self, seconds: float) -> None:
        if self._opened is not None:
            soon_s = min(REARM_S, self.limit_s / 10) if seconds == self.limit_s else 0.0
            self._rearm_s = time.monotonic() + soon_s
            faulthandler.dump_traceback_later(max(seconds, self.limit_s), exit=True, file=self._opened)

    def _write(self) -> None:
        assert self._opened is not None
        faulthandler.dump_traceback(self._opened, all_threads=True)


def _remove_empty(file: Path) -> None:
    with suppress(OSError):  # others have left something in the folder, or removed it
        if file.stat().st_size == 0:
            file.unlink()
            file.parent.rmdir()


UNWATCHED = Watchdog(None, LONG_S)


@contextmanager
def _slow_to_stop(write: Callable[[], None]) -> Iterator[None]:
    """Inside, `write` is called when a stop was asked for (SIGTERM or SIGINT) and STOP_S later is not done.

    Python runs a signal's handler in the main thread only, which may be stuck in a collective. But in the
    moment of the signal it writes the number into a file descriptor of ours, and a thread reads that.
    """
    if threading.current_thread() is not threading.main_thread():  # where no descriptor can be set
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    done = threading.Event()

    def wait() -> None:
        while number := os.read(reading, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM) and not done.wait(STOP_S):
                write()
                return

    thread = threading.Thread(target=wait, name="slow to stop", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        done.set()
        os.close(writing)  # the thread reads its end
        thread.join()
        os.close(reading)
