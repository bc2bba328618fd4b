"""Of several endings the cause is found, and told in a sentence."""

import signal
from pathlib import Path

import pytest

from pilgrim.launch.verdict import Ending, cause, sentence

KILLED = Ending(1, -signal.SIGKILL, time=12.0)
KILLED_BY_TORCHRUN = Ending(1, -signal.SIGKILL, time=41.0)  # it did not stop when asked, at 11
CRASHED = Ending(0, 1, "RuntimeError: Connection closed by peer", time=11.0)  # times are rounded down
MENDABLE = Ending(2, 2, "the disk is full", time=13.0)
STOPPED = Ending(3, 143, time=10.0)
TERMINATED = Ending(0, -signal.SIGTERM, time=9.0)


@pytest.mark.parametrize(
    ("endings", "first"),
    [
        ([CRASHED, KILLED], KILLED),
        ([CRASHED, MENDABLE], MENDABLE),
        ([TERMINATED, CRASHED], CRASHED),
        ([TERMINATED, STOPPED, KILLED, MENDABLE], KILLED),
        ([CRASHED, KILLED_BY_TORCHRUN], CRASHED),
        ([Ending(0, 4, "run again", 11.0), KILLED_BY_TORCHRUN], Ending(0, 4, "run again", 11.0)),
        ([Ending(0, 1, "second", 5.25), Ending(1, 1, "first", 5.0)], Ending(1, 1, "first", 5.0)),
        ([TERMINATED, STOPPED], TERMINATED),
    ],
)
def test_the_cause_is_found(endings: list[Ending], first: Ending) -> None:
    assert cause(endings) == first
    assert cause(endings[::-1]) == first


@pytest.mark.parametrize(
    ("code", "by"), [(130, "SIGINT"), (143, "SIGTERM"), (-2, "SIGINT"), (-15, "SIGTERM")]
)
def test_a_stop_is_known(code: int, by: str) -> None:
    stopped_by = Ending(0, code).stopped_by
    assert stopped_by is not None and stopped_by.name == by


def test_no_other_ending_is_a_stop() -> None:
    assert [Ending(0, code).stopped_by for code in (0, 1, 2, -9, -11, 137)] == [None] * 6


def test_sentences() -> None:
    assert sentence(KILLED, "rank 1").startswith(
        "rank 1 was killed (SIGKILL); the kernel kills so when memory"
    )
    assert sentence(KILLED, "rank 1", ran_out=True).endswith("memory ran out, the kernel says")
    assert sentence(Ending(0, -11), "the run") == "the run crashed (SIGSEGV: Segmentation fault)"
    assert sentence(CRASHED, "rank 0") == (
        "rank 0 ended with exit code 1: RuntimeError: Connection closed by peer"
    )
    assert sentence(Ending(0, 3), "the run") == "the run ended with exit code 3"
    stood = sentence(Ending(0, 1), "rank 0", hung=Path("runs/x/logs/rank-0.stacks.txt"))
    assert stood.endswith("where it stood: runs/x/logs/rank-0.stacks.txt")
