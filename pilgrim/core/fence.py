"""A fence: a process that outlived its job can't write into the run any more.

A lock (flock) keeps two processes of one machine apart, but not everything that writes: network mounts may
not carry locks over, and of a job on several machines one process can live on for seconds after its node was
given up, while the next job already works in the same folder. So every start takes a number, the *epoch*,
and leaves it in the run's folder with a random token. Whoever is about to write something that others rely
on reads the file first; if it names another start, the writer is a ghost, and raises `Fenced`.

    .epoch      7 9f86d081884c7d65        the seventh start of this run

A check and the write behind it are two operations, and a process can be suspended in between. Therefore a
check is not all: whatever replaces something is written under a temporary name first, then comes the check,
then the rename; and a start removes all temporary files after it has taken its number. So a ghost's rename
fails, if it was not done before. What is left is a row of a log, whose writer was suspended in those few
microseconds. (The idea: Kleppmann, "How to do distributed locking", 2016, where the storage itself compares
the numbers; a file system can't.)
"""

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from pilgrim.core.errors import Fenced
from pilgrim.core.files import explained, write_atomic

FILE = ".epoch"
LINE_BYTES = 64  # more than a line has


@dataclass(frozen=True)
class Fence:
    """One start of a run. Plain values, so that rank 0 can share it with the other processes."""

    file: Path
    epoch: int
    token: str

    def check(self) -> None:
        """Raises Fenced if the run was started again since. Takes some microseconds."""
        found = _read(self.file)
        if found != self._line():
            now = found.split(b" ")[0].decode("ascii", "replace") or "unknown"
            raise Fenced(
                f"{self.file.parent}: this process belongs to start {self.epoch} of the run, but start {now} "
                "is at work there by now, so it writes nothing more; end this process"
            )

    def _line(self) -> bytes:
        return f"{self.epoch} {self.token}\n".encode()


def take(folder: Path) -> Fence:
    """Begin the next epoch of the run in `folder`; every fence taken before refuses from now on.

    Then removes the temporary files in it, of writers that were killed, or that only think they are at work.
    The token tells apart two starts that took the same number at once. It decides nothing else, so it is
    drawn from the system and not from the run's seed.
    """
    file = folder / FILE
    before = _read(file).split(b" ")[0]
    fence = Fence(file, int(before) + 1 if before.isdigit() else 1, secrets.token_hex(8))
    write_atomic(file, fence._line())
    for left in [*folder.rglob(".tmp-*")]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    return fence


def _read(file: Path) -> bytes:
    """The file's line, or nothing if there is no file.

    Opened anew each time: on NFS that is when a client asks the server whether a file has changed, whereas
    the attributes it knows may be some seconds old (nfs(5), "close-to-open cache consistency").
    """
    with explained("read", file):
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            return os.read(descriptor, LINE_BYTES)
        finally:
            os.close(descriptor)
