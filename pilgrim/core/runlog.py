"""A run's diary: rows of JSON, one file a kind, that survive a kill and that anything can read.

Every row is one line, written and flushed at once, so a killed process loses at most the line it was
writing; such a torn last line is dropped when the next row is written. What is a function of seed and
data alone goes to `metrics.jsonl`, which two runs of the same recipe share to the bit; what differs from
run to run (time, speed) is kept apart in `timings.jsonl` and `events.jsonl`.

A resumed run has already logged the steps between its last checkpoint and the kill. `rewind` drops
those rows before the steps are done again, so that the files read as if nothing had happened.

JSON has no NaN or infinity, and the row that holds one is the row one wants to read: they are written as
the strings "nan", "inf" and "-inf", which Python's `float()` reads back.
"""

import json
import math
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from io import SEEK_END, FileIO
from pathlib import Path
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.core.fence import Fence
from pilgrim.core.files import explained, write_atomic, write_json_atomic

STEPPED = ("metrics", "timings", "samples", "evals")  # rows with a step, which `rewind` cuts
DIFF_LIMIT_BYTES = 1_000_000
PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "transformers", "pydantic", "zstandard")
SOURCE = Path(__file__).resolve().parents[2]


class RunLog:
    """The diary in one stage's folder. Raises PilgrimError when a row can't be written (full disk), and
    Fenced when the run is another process's by now. Of several processes one `writes`, and what the others
    have to say is forgotten.
    """

    def __init__(self, folder: Path, fence: Fence | None = None, writes: bool = True) -> None:
        self.folder, self.fence, self._writes = folder, fence, writes

    def metrics(self, step: int, **values: float) -> None:
        """What is a function of seed and data alone: loss, learning_rate, grad_norm, tokens."""
        self._append("metrics", {"step": step, **values})

    def timing(self, step: int, **values: float) -> None:
        """What differs from run to run: elapsed_s, tokens_per_s."""
        self._append("timings", {"step": step, **values})

    def evaluation(self, step: int, **values: Any) -> None:
        """What was measured on held-out text at a step: bpb, loss."""
        self._append("evals", {"step": step, **values})

    def sample(self, step: int, prompt: str, text: str) -> None:
        """What the model made of a fixed prompt at a step."""
        self._append("samples", {"step": step, "prompt": prompt, "text": text})

    def event(self, kind: str, **values: Any) -> None:
        """That something happened, and when: start, resume, non_finite_loss, damaged_checkpoint, done."""
        self._append("events", {"time": _now(), "kind": kind, **values})

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`, each file atomically, and keeps the rest byte by byte."""
        for name in STEPPED:
            path = self._path(name)
            if self._writes and path.exists():
                kept = [line for line, row in _lines_and_rows(path) if row["step"] <= step]
                write_atomic(path, b"".join(kept), self._check_fence)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def _check_fence(self) -> None:
        if self.fence is not None:
            self.fence.check()

    def _append(self, name: str, row: dict[str, Any]) -> None:
        if not self._writes:
            return
        self._check_fence()
        path = self._path(name)
        text = json.dumps(_plain(row), ensure_ascii=False, allow_nan=False)
        line = (
            text.encode("utf-8", "backslashreplace") + b"\n"
        )  # half a surrogate pair becomes its JSON escape
        with explained("written", path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("a+b", buffering=0) as file:
                _drop_torn_line(file)
                # No fsync for each row: what the system has taken survives the death of this process.
                _write_all(file, line)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, without a torn last line; no rows if there is no file.

    Raises DataError, naming file and line, for a damaged line in the middle.
    """
    return [row for _, row in _lines_and_rows(path)] if path.exists() else []


def _lines_and_rows(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    with explained("read", path):
        lines = path.read_bytes().splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break  # torn by a kill
        try:
            found.append((line, json.loads(line)))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error}); remove the line") from None
    return found


def _drop_torn_line(file: FileIO) -> None:
    """What a kill has left without its newline would swallow the next row."""
    size = file.seek(0, SEEK_END)
    if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
        file.seek(0)
        file.truncate(file.readall().rfind(b"\n") + 1)


def _write_all(file: FileIO, line: bytes) -> None:
    while line:  # an unbuffered write may take only a part, on a disk that is just filling up
        line = line[file.write(line) :]


def _plain(value: Any) -> Any:
    """Numbers, text, lists and dicts that strict JSON can hold."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return str(value)
    number = float(value)  # numpy's and torch's numbers too
    return number if math.isfinite(number) else str(number)


# Provenance ---------------------------------------------------------------------------------------


def write_provenance(run_folder: Path, *, command: list[str], seed: int, data_hashes: dict[str, str]) -> None:
    """Writes `provenance.json`: all that one needs to know where a run's numbers come from.

    The commit and the changes to it (when pilgrim runs from a git checkout), versions, hardware, time,
    command, seed and the hashes of the data.
    """
    from pilgrim.core import machine  # imports torch, which a reader of a run's folder can do without

    provenance = {
        "time": _now(),
        "command": command,
        "seed": seed,
        "code": _code(SOURCE),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": machine.summary(),
        "data_sha256": data_hashes,
    }
    write_json_atomic(run_folder / "provenance.json", provenance)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _versions() -> dict[str, str]:
    found = {}
    for package in ("pilgrim", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _code(source: Path) -> dict[str, Any] | None:
    """Commit, and what differs from it; None when `source` is no git checkout of its own."""
    top = _git(source, "rev-parse", "--show-toplevel")
    commit = _git(source, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top.decode().strip()) != source:
        return None
    diff = _git(source, "diff", "HEAD") or b""
    untracked = (_git(source, "ls-files", "--others", "--exclude-standard") or b"").decode().splitlines()
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(diff or untracked),
        "diff": diff[:DIFF_LIMIT_BYTES].decode("utf-8", "replace"),
        "diff_bytes_cut": max(0, len(diff) - DIFF_LIMIT_BYTES),
        "untracked": untracked,
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
