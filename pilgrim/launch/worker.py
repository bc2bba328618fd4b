"""One process of a run: a *rank*. It walks through the recipe beside the others, and is watched by a
launcher.

Whoever starts ranks tells each its number in the environment (RANK and WORLD_SIZE): our own supervisor, or a
torchrun of yours. `pilgrim run` is a rank where it finds them, and a supervisor where it doesn't.

A rank owes its launcher two things. It ends when the launcher ends (lifeline.py). And it leaves a note of
the error that it dies of, in the file that torch's launcher names in TORCHELASTIC_ERROR_FILE, so that a
supervisor can say why the run stopped.
"""

import faulthandler
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pilgrim.core.errors import PilgrimError, ToldElsewhere
from pilgrim.core.files import write_json_atomic
from pilgrim.launch.lifeline import PARENT, die_with_parent
from pilgrim.launch.verdict import code_of

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def is_rank() -> bool:
    """Whether this process was started as one of a run's."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def speaks() -> bool:
    """Whether this process tells the person how a run has ended: no supervisor of ours does."""
    return PARENT not in os.environ and os.environ.get("RANK", "0") == "0"


@contextmanager
def working() -> Iterator[None]:
    """What a rank does is done inside: it dies with its launcher, and errors leave a note.

    The launcher is our supervisor or torchrun. Of others (mpirun, srun) we don't know how they start
    processes, and they end theirs themselves.
    """
    if PARENT in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
        faulthandler.enable()  # a crash in C code (SIGSEGV) prints where Python was
    try:
        yield
    except ToldElsewhere:
        raise
    except Exception as error:
        if file := os.environ.get(ERROR_FILE):
            write_json_atomic(Path(file), note(error))
        raise


def note(error: Exception) -> dict[str, object]:
    """As torch's launcher reads it (elastic/multiprocessing/errors), with a finer time: who was the first?"""
    now = time.time()
    return {
        "message": last_line(error),
        "timestamp": int(now),
        "time": now,
        "rank": int(os.environ["RANK"]),
        "code": code_of(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


def last_line(error: Exception) -> str:
    """`ValueError: what is wrong`, in one line; of what a person can mend just the sentence."""
    if isinstance(error, PilgrimError):
        return str(error)
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
