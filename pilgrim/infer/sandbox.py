"""The sandbox: runs a Python program that a model wrote, and tells whether it came to its end.

Such a program may loop, fork, fill memory and disk, open sockets and delete files, mostly by accident. It
runs as a process of its own, which gives up everything first (confined.py): no network, no other processes,
no files but Python's library, to read, and those in a temporary folder of its own. From the outside come the
limits that the kernel has no numbers for: seconds on the clock, bytes of output, and bytes in the folder,
which are looked at every few milliseconds. Whoever goes over one is killed. The process can't have children,
so killing it leaves nothing behind, and its folder is removed.

    outcome = run("assert sorted([2, 1]) == [1, 2]")
    outcome.passed      # True: every line was run, and nothing was raised

It needs Linux with Landlock (5.13, of 2021, or newer) and seccomp, on x86_64 or aarch64, and no rights at
all. Anywhere else it refuses: there is no half a sandbox. The program can still see that a file exists and
how large it is, as Landlock guards what is in files, and not that they are there.
"""

import json
import os
import platform
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pilgrim.core.errors import PilgrimError
from pilgrim.infer import confined

LOOK_EVERY_S = 0.02
RESULT_BYTES = 1000


class SandboxError(PilgrimError):
    """This machine can't run a program safely."""


@dataclass(frozen=True)
class Limits:
    """What a program may use up."""

    wall_s: float = 10.0
    cpu_s: int = 5
    memory_bytes: int = 1 << 29  # of address space, Python itself included
    disk_bytes: int = 1 << 24
    output_bytes: int = 1 << 16


@dataclass(frozen=True)
class Outcome:
    """`passed`: the program came to its end. `why`: in a few words, why not. `output`: what it printed."""

    passed: bool
    why: str
    output: str


def refusal() -> str | None:
    """Why nothing can be run safely here, and the cure, in one sentence; None if it can."""
    cure = "use Linux 5.13 or newer with Landlock, in a container or a virtual machine if need be"
    if sys.platform != "linux":
        return f"programs of a model can't be run safely on {platform.system()}; {cure}"
    if platform.machine() not in confined.MACHINES:
        known = " or ".join(confined.MACHINES)
        return f"programs of a model are run on {known} only, and this is {platform.machine()}; use one"
    if confined.landlock_version() < 1:
        return f"programs of a model can't be run safely, as this kernel has no Landlock; {cure}"
    return None


def run(program: str, limits: Limits | None = None, show_value: bool = False) -> Outcome:
    """Run `program` to its end or to a limit. Raises SandboxError where that isn't safe.

    With `show_value`, a last line that is an expression has its value printed, as in a notebook.
    """
    if (why := refusal()) is not None:
        raise SandboxError(why)
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="pilgrim-sandbox-") as folder:
        return _run(program, limits, show_value, Path(folder))


def _run(program: str, limits: Limits, show_value: bool, folder: Path) -> Outcome:
    secret = secrets.token_hex(16)
    control_read, control_write = os.pipe()
    result_read, result_write = os.pipe()
    deadline = time.monotonic() + limits.wall_s
    # -P, -s, -S, -B: nothing of the user's is on the path, and nothing is written beside the library.
    # -u: what it has printed is there, even if it is killed.
    command = [sys.executable, "-P", "-s", "-S", "-B", "-u", "-X", "utf8", confined.__file__]
    process = subprocess.Popen(
        [*command, str(control_read), str(result_write)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(control_read, result_write),
        cwd=folder,
        env={"PYTHONHASHSEED": "0"},  # sets come in the same order each time; no secret of ours is inherited
        start_new_session=True,  # Ctrl-C is ours
    )
    os.close(control_read)
    os.close(result_write)
    assert process.stdout is not None
    try:
        asked = {"program": program, "show_value": show_value, "parent": os.getpid()}
        order = json.dumps({**asked, **asdict(limits)})
        try:
            with os.fdopen(control_write, "wb") as control:
                control.write(f"{order}\n{secret}".encode())
        except BrokenPipeError:
            pass  # it ended before it had read everything, and its exit code says so
        said, output, why = _watch(process, result_read, limits, deadline, folder)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.close(result_read)
    return _judged(said, output, why, secret, process.returncode, limits)


def _watch(
    process: subprocess.Popen[bytes], result: int, limits: Limits, deadline: float, folder: Path
) -> tuple[bytes, bytes, str]:
    """Read until the process ends or has to be stopped: (its result, its output, why it was stopped)."""
    assert process.stdout is not None
    kept = {"result": b"", "output": b""}
    most = {"result": RESULT_BYTES, "output": limits.output_bytes}
    why, running = "", True
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "output")
        selector.register(result, selectors.EVENT_READ, "result")
        while not why and selector.get_map():
            ready = selector.select(LOOK_EVERY_S if running else 0)
            if not running and not ready:
                break  # ended, and all that it wrote is read
            for key, _ in ready:
                some = os.read(key.fd, 1 << 16)
                kept[key.data] += some
                if not some:
                    selector.unregister(key.fileobj)
                if len(kept[key.data]) > most[key.data]:
                    why = f"wrote more than {limits.output_bytes:,} bytes of output"
            running = process.poll() is None
            if running and time.monotonic() > deadline:
                why = f"took more than {limits.wall_s:g} s"
            if _bytes_in(folder) > limits.disk_bytes:
                why = f"wrote more than {limits.disk_bytes:,} bytes of files"
        if not why and process.poll() is None:  # it has closed both pipes, and is still there
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                why = f"took more than {limits.wall_s:g} s"
    return kept["result"], kept["output"][: limits.output_bytes], why


def _bytes_in(folder: Path) -> int:
    """Of the files in the folder, which has no others below it."""
    total = 0
    for entry in os.scandir(folder):
        try:
            total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue  # the program has just removed it
    return total


def _judged(said: bytes, output: bytes, why: str, secret: str, returncode: int, limits: Limits) -> Outcome:
    """What became of it."""
    text = output.decode("utf-8", errors="replace")
    begun, _, rest = said.decode("utf-8", errors="replace").partition("\n")
    if begun.startswith("refused"):
        raise SandboxError(
            f"programs of a model can't be run safely here ({begun.removeprefix('refused ')}); "
            "use Linux 5.13 or newer with Landlock and seccomp"
        )
    if why:
        return Outcome(False, why, text)
    if begun != "ready":
        last = text.strip().rpartition("\n")[2][:200] or f"exit code {returncode}"
        raise SandboxError(f"the sandbox's Python did not begin ({last}); mend {sys.executable}")
    if rest == f"passed {secret}":
        return Outcome(True, "", text)
    if rest.startswith("failed "):
        return Outcome(False, rest.removeprefix("failed ").strip(), text)
    if returncode == -signal.SIGXCPU:
        return Outcome(False, f"took more than {limits.cpu_s} s of CPU", text)
    if returncode < 0:
        return Outcome(False, f"was ended by {signal.Signals(-returncode).name}", text)
    return Outcome(False, "left before its end", text)
