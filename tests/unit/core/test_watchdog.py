"""A process that stands still leaves its stacks and ends; one that works is left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pilgrim.core.watchdog import UNWATCHED, Watchdog, stacks_file

ROOT = Path(__file__).parents[3]


def script(file: Path, body: str, limit_s: float = 0.3) -> "subprocess.Popen[str]":
    """A process of its own with a watchdog called `dog`."""
    head = f"""
import signal, sys, threading, time
from pathlib import Path
from pilgrim.core import watchdog
dog = watchdog.Watchdog(Path({str(file)!r}), {limit_s})
def stands_still():
    print("up", flush=True)
    threading.Event().wait(60)
"""
    return subprocess.Popen(
        [sys.executable, "-c", head + body],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_stands_still_leaves_its_stacks_and_ends(tmp_path: Path) -> None:
    file = stacks_file(tmp_path, rank=3)
    with script(file, "with dog.watching():\n    dog.alive()\n    stands_still()") as process:
        assert process.wait(30) == 1
    assert file == tmp_path / "logs" / "rank-3.stacks.txt"
    assert file.read_text().startswith("Timeout (0:00:00.300000)!\n")
    assert "in stands_still" in file.read_text()


def test_not_while_it_works_or_does_something_long(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "stacks.txt"
    body = """
with dog.watching():
    time.sleep(0.7)                # compiling: until the first step, patience
    for _ in range(4):
        dog.alive()
        time.sleep(0.2)
    with dog.patient():
        time.sleep(0.7)            # saving
print("done")
"""
    with script(file, body) as process:
        output, error = process.communicate(timeout=30)
    assert (output, process.returncode) == ("done\n", 0), error
    assert not file.exists()  # nothing to tell


def test_an_error_or_a_stop_leaves_no_empty_file(tmp_path: Path) -> None:
    file = stacks_file(tmp_path, rank=0)
    with pytest.raises(KeyError), Watchdog(file, 60.0).watching():
        raise KeyError
    assert not file.parent.exists()


def test_after_something_long_it_watches_again(tmp_path: Path) -> None:
    body = "with dog.watching():\n    with dog.patient():\n        pass\n    stands_still()"
    with script(tmp_path / "stacks.txt", body) as process:
        assert process.wait(30) == 1


def test_who_is_asked_to_stop_and_does_not_leaves_its_stacks(tmp_path: Path) -> None:
    """The main thread is stuck where no handler of Python's runs; the handler there is only waits to."""
    file = tmp_path / "stacks.txt"
    body = """
watchdog.STOP_S = 0.2
signal.signal(signal.SIGTERM, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [])
with dog.watching():
    print("up", flush=True)
    time.sleep(1.5)
"""
    with script(file, body, limit_s=60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(30) == 0
    assert "watching" in file.read_text() or "<module>" in file.read_text()
    assert "Timeout" not in file.read_text()


def test_a_person_may_ask(tmp_path: Path) -> None:
    file = tmp_path / "stacks.txt"
    body = "with dog.watching():\n    stands_still()"
    with script(file, body, limit_s=60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGUSR1)
        while "in stands_still" not in file.read_text() and process.poll() is None:  # written frame by frame
            os.sched_yield()
        process.kill()
    assert "in stands_still" in file.read_text()


def test_without_a_file_nothing_is_watched_or_changed() -> None:
    before = signal.getsignal(signal.SIGUSR1), signal.set_wakeup_fd(-1)
    with UNWATCHED.watching():
        UNWATCHED.alive()
        with UNWATCHED.patient():
            pass
    assert before == (signal.getsignal(signal.SIGUSR1), signal.set_wakeup_fd(-1))


def test_what_was_set_is_put_back(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path / "stacks.txt", 60.0)
    for _ in range(2):  # a run trains several stages
        with dog.watching():
            dog.alive()
        assert signal.set_wakeup_fd(-1) == -1
