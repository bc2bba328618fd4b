"""A process dies with the one that started it, however that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from pilgrim.launch.lifeline import PARENT

ROOT = Path(__file__).parents[3]

CHILD = (
    "from pilgrim.launch.lifeline import die_with_parent; die_with_parent(); print('up', flush=True); input()"
)
# The middle process starts a child, and tells its first word on.
MIDDLE = """
import os, subprocess, sys
os.environ["PILGRIM_PARENT"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=-1, close_fds=False, text=True)
print(child.stdout.readline().strip(), flush=True)
input()
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_kernel_kills_it_when_its_parent_is_killed() -> None:
    """The child holds the pipe's other end; that nobody does any more is its death."""
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", MIDDLE, CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        pass_fds=[writing],
        text=True,
        close_fds=True,
    ) as middle:
        assert middle.stdout is not None
        assert middle.stdout.readline() == "up\n"
        os.close(writing)
        middle.kill()
        assert os.read(reading, 1) == b""  # returns when both are gone
    os.close(reading)


def test_who_comes_too_late_ends_at_once() -> None:
    """The parent had ended before the child could ask."""
    late = subprocess.run(
        [sys.executable, "-c", CHILD], env={**ENVIRONMENT, PARENT: "1"}, capture_output=True, text=True
    )
    assert late.returncode == -signal.SIGKILL
    assert late.stdout == ""
