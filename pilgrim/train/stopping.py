"""Being asked to stop: SIGINT (Ctrl-C) and SIGTERM raise a flag, which the loop reads between two steps.

A machine that is taken away sends SIGTERM and leaves a minute; the loop finishes its step, saves, and ends.
A second signal ends the process at once. But when a whole machine shuts down, every process is sent one,
and a launcher passes its own on to those it has started; so what comes within a second of the first counts
as the same.

A signal reaches several processes at different steps, and they must stop after the same one. So at every
step each says whether it was asked, and hears what all have said at the step before: an answer that has had a
step's time to arrive, so that nobody waits for it.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pilgrim.core.processes import Processes

ONE_WAVE_S = 1.0


@contextmanager
def stop_asked() -> Iterator[Callable[[], int]]:
    """While inside, SIGINT and SIGTERM only raise a flag, to be read at the end of a step: the signal's
    number, or 0 if nobody has asked.

    A second signal does what it always did, at once. A signal that is ignored (nohup, a shell's `&`) stays
    so. Outside the main thread, where no handler can be set, the flag never rises.
    """
    asked, asked_s = 0, 0.0
    here = threading.current_thread() is threading.main_thread()
    found = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if here else {}
    before = {s: handler for s, handler in found.items() if handler not in (signal.SIG_IGN, None)}

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked, asked_s
        if not asked:
            asked, asked_s = number, time.monotonic()
        elif time.monotonic() - asked_s > ONE_WAVE_S:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        restore()


class Agreed:
    """The flag of any process, in all of them: a signal's number, or 0. To be read once a step, by all."""

    def __init__(self, asked: Callable[[], int], processes: Processes) -> None:
        self._asked, self._processes = asked, processes
        self._before: Callable[[], int] = lambda: 0

    def __call__(self) -> int:
        """What any process had been asked when this was read the step before; alone: when it is read."""
        if self._processes.count == 1:
            return self._asked()
        before, self._before = self._before, self._processes.most_soon(self._asked())
        return before()

    def now(self) -> int:
        """What any has been asked by now. Waits for the others."""
        return max(self(), self())
