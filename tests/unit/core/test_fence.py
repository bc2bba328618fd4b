"""The fence: who belongs to an earlier start of a run writes nothing more, wherever it was when it began."""

import dataclasses
import multiprocessing
import os
import pickle
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import Fenced
from pilgrim.core.fence import FILE, Fence, take
from pilgrim.core.runlog import RunLog


def sentence(folder: Path, mine: int, now: str) -> str:
    return (
        f"{folder}: this process belongs to start {mine} of the run, but start {now} is at work there by "
        "now, so it writes nothing more; end this process"
    )


def test_each_start_has_a_number_and_only_the_last_may_write(tmp_path: Path) -> None:
    first = take(tmp_path)
    first.check()
    second = take(tmp_path)
    assert (first.epoch, second.epoch) == (1, 2)
    second.check()
    with pytest.raises(Fenced) as error:
        first.check()
    assert str(error.value) == sentence(tmp_path, 1, "2")


def test_two_starts_at_once_take_the_same_number_and_one_of_them_writes(tmp_path: Path) -> None:
    take(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    one = take(tmp_path)
    (tmp_path / FILE).write_bytes(before)  # the other start had read the file before this one wrote it
    other = take(tmp_path)
    assert one.epoch == other.epoch == 2
    other.check()
    with pytest.raises(Fenced):
        one.check()


def test_a_file_that_was_lost_or_is_damaged_lets_nobody_write(tmp_path: Path) -> None:
    fence = take(tmp_path)
    for data in (b"", b"\xff\x00", b"two tokens"):
        (tmp_path / FILE).write_bytes(data)
        with pytest.raises(Fenced):
            fence.check()
    (tmp_path / FILE).unlink()
    with pytest.raises(Fenced) as error:
        fence.check()
    assert str(error.value) == sentence(tmp_path, 1, "unknown")
    assert take(tmp_path).epoch == 1


def test_it_travels_to_the_other_processes(tmp_path: Path) -> None:
    fence = take(tmp_path)
    copy: Fence = pickle.loads(pickle.dumps(fence))
    copy.check()
    assert copy == fence
    with pytest.raises(Fenced):
        dataclasses.replace(copy, token="another").check()


def test_a_check_takes_microseconds(tmp_path: Path) -> None:
    """Measured: 4 on an idle machine. The limit only tells a read of a line from something that waits."""
    fence = take(tmp_path)
    fastest_s = 1.0
    for _ in range(20):
        began_s = time.perf_counter()
        for _ in range(50):
            fence.check()
        fastest_s = min(fastest_s, (time.perf_counter() - began_s) / 50)
    assert fastest_s < 100e-6


# What is behind it --------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tensors(number: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"a": torch.full((4,), number)}}


def test_a_ghost_writes_no_row_and_no_checkpoint(tmp_path: Path) -> None:
    old = take(tmp_path)
    log, store = RunLog(tmp_path, old), CheckpointStore(tmp_path / "checkpoints", fence=old)
    log.metrics(1, loss=1.0)
    store.save(1, tensors(1), {})
    new = take(tmp_path)
    CheckpointStore(tmp_path / "checkpoints", fence=new).save(2, tensors(2), {})
    before = contents(tmp_path)
    for write in (
        lambda: log.metrics(2, loss=0.5),
        lambda: log.event("resume"),
        lambda: log.rewind(0),
        lambda: store.save(3, tensors(3), {}),
        lambda: store.save(1, tensors(3), {}),
        lambda: store.mark_best(1),
        lambda: store.remove(2),
    ):
        with pytest.raises(Fenced) as error:
            write()
        assert str(error.value) == sentence(tmp_path, 1, "2")
    assert contents(tmp_path) == before


def test_a_ghost_removes_nothing_that_the_next_start_is_writing(tmp_path: Path) -> None:
    old, new = take(tmp_path), take(tmp_path)
    unfinished = tmp_path / f".tmp-step_000002-e{new.epoch}"
    unfinished.mkdir()  # of the new start
    store = CheckpointStore(tmp_path, fence=old)
    store._remove_leftovers()  # as if it had been suspended between its check and this
    assert unfinished.exists()
    CheckpointStore(tmp_path, fence=new).save(3, tensors(3), {})
    assert not unfinished.exists()


# Real processes -----------------------------------------------------------------------------------


POLL_S = 0.001


class Pause:
    """Stops this process (SIGSTOP) at its n-th call that changes the file system, from when it is armed."""

    EVENTS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"})

    def __init__(self, calls: int) -> None:
        self.calls_left, self.armed = calls, False
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed or event not in self.EVENTS:
            return
        self.calls_left -= 1
        if self.calls_left == 0:
            os.kill(os.getpid(), signal.SIGSTOP)


def old_writer(folder: Path, calls: int, parent: Connection) -> None:
    fence = take(folder)
    store = CheckpointStore(folder / "checkpoints", fence=fence)
    log = RunLog(folder, fence)
    store.save(1, tensors(1), {})
    pause = Pause(calls)
    pause.armed = True
    try:
        store.save(2, tensors(2), {})
        log.metrics(2, loss=1.0)
        said = "wrote"
    except Fenced as error:
        said = str(error)
    pause.armed = False
    parent.send(said)


@pytest.mark.skipif(sys.platform != "linux", reason="forks processes, which only Linux does well")
@pytest.mark.parametrize("calls", [1, 4, 8, 9, 10, 11, 12, 13])
def test_a_process_that_slept_while_the_next_start_worked_writes_nothing(tmp_path: Path, calls: int) -> None:
    """It is suspended anywhere in a save, even between the check and the rename behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pilgrim.core.checkpoint_write"])
    ours, theirs = context.Pipe()
    process = context.Process(target=old_writer, args=(tmp_path, calls, theirs))
    process.start()
    theirs.close()
    assert process.pid is not None
    status = Path(f"/proc/{process.pid}/stat")  # it is the fork server's child, so waitpid can't tell
    while status.read_text().rpartition(")")[2].split()[0] != "T":
        process.join(POLL_S)
        assert process.exitcode is None

    new = take(tmp_path)
    store = CheckpointStore(tmp_path / "checkpoints", fence=new)
    store.save(5, tensors(5), {"from": "new"})
    RunLog(tmp_path, new).metrics(5, loss=0.25)
    before = contents(tmp_path)

    os.kill(process.pid, signal.SIGCONT)
    said = ours.recv()
    process.join()
    assert process.exitcode == 0
    assert said == sentence(tmp_path, 1, "2")
    assert contents(tmp_path) == before
