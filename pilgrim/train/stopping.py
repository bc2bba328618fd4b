"""Being asked to stop: SIGINT (Ctrl-C) and SIGTERM raise a flag, which the loop reads between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """While inside, SIGINT and SIGTERM only raise a flag, to be read at the end of a step.

    A second signal does what it always did, at once. A signal that is ignored (nohup, a shell's `&`) stays
    so. Outside the main thread, where no handler can be set, the flag never rises.
    """
    asked = False
    here = threading.current_thread() is threading.main_thread()
    found = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if here else {}
    before = {s: handler for s, handler in found.items() if handler not in (signal.SIG_IGN, None)}

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        restore()
