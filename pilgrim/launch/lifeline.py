"""A process that must not outlive the one that started it.

If a supervisor is killed outright, it can tell nobody. Workers that went on without it would train, and
write into the run's folder, beside whatever is started next. So each of them asks the kernel to be killed
in the moment in which its parent ends (prctl(2), PR_SET_PDEATHSIG), which needs nobody's help. Only Linux
offers that; elsewhere a thread looks once a second whether the parent is still the same.

    supervisor  ->  torchrun  ->  rank 0, rank 1, ...       each dies with the one to its left
"""

import ctypes
import os
import signal
import sys
import threading
import time

PARENT = "PILGRIM_PARENT"  # in the environment: the process that a child must not outlive
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOK_EVERY_S = 1.0


def die_with_parent() -> None:
    """From now on this process is killed when its parent ends; at once, if that has happened already.

    The kernel means the thread that started this process, so a parent starts its children from its main one.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    else:
        threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()
    _end_without(parent)  # it may have ended before the kernel was asked


def _watch(parent: int) -> None:
    while True:
        time.sleep(LOOK_EVERY_S)
        _end_without(parent)


def _end_without(parent: int) -> None:
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
