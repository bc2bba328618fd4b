"""The diary: rows survive a kill, a rewind leaves the files as if the later steps had never been."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pilgrim.core import runlog
from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.core.runlog import RunLog, read_rows, write_provenance

Limit = Callable[[int], AbstractContextManager[None]]


def log_steps(log: RunLog, steps: range) -> None:
    for step in steps:
        log.metrics(step, loss=1 / (step + 3), tokens=step * 8192)
        log.timing(step, elapsed_s=step / 7, tokens_per_s=9700.5)
        if step % 2 == 0:
            log.evaluation(step, bpb=1.01)
            log.sample(step, "Once", "upon\u2028a\ntime")


def test_each_kind_of_row_has_its_file(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "pretrain")
    log_steps(log, range(1, 4))
    log.event("start", device="cpu", folder=tmp_path)
    assert read_rows(tmp_path / "pretrain" / "metrics.jsonl")[2] == {
        "step": 3,
        "loss": 1 / 6,
        "tokens": 24576,
    }
    assert read_rows(tmp_path / "pretrain" / "samples.jsonl") == [
        {"step": 2, "prompt": "Once", "text": "upon\u2028a\ntime"}
    ]
    [event] = read_rows(tmp_path / "pretrain" / "events.jsonl")
    assert (event["kind"], event["device"], event["folder"]) == ("start", "cpu", str(tmp_path))
    assert event["time"].endswith("+00:00")


def test_rows_are_in_the_file_at_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.metrics(1, loss=0.5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_numbers_of_every_make_and_those_json_lacks(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    numbers: dict[str, Any] = {"a": np.float32(0.1), "b": torch.tensor(2.5)}
    log.metrics(1, **numbers, c=float("nan"), d=float("-inf"), e=2**60)
    log.event("non_finite_loss", losses=[float("inf"), 1.0], more={"at": (1, None, True)}, text="\udce9")
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "a": float(np.float32(0.1)), "b": 2.5, "c": "nan", "d": "-inf", "e": 2**60}
    ]
    [event] = read_rows(tmp_path / "events.jsonl")
    assert (event["losses"], event["more"], event["text"]) == (
        ["inf", 1.0],
        {"at": [1, None, True]},
        "\udce9",
    )
    strict = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert strict["c"] == "nan"


def test_a_rewound_and_repeated_run_has_the_same_bytes(tmp_path: Path) -> None:
    log_steps(RunLog(tmp_path / "whole"), range(1, 11))
    log_steps(RunLog(tmp_path / "killed"), range(1, 9))
    for name in ("metrics", "samples"):
        with (tmp_path / "killed" / f"{name}.jsonl").open("ab") as file:
            file.write(b'{"step": 9, "lo')  # the kill came here
    resumed = RunLog(tmp_path / "killed")
    resumed.rewind(5)
    assert [row["step"] for row in read_rows(tmp_path / "killed" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    log_steps(resumed, range(6, 11))
    for name in ("metrics", "timings", "evals", "samples"):
        whole, killed = (tmp_path / run / f"{name}.jsonl" for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()
    assert len(list((tmp_path / "killed").iterdir())) == 4, "nothing is left beside the files"


def test_rewinding_to_the_start_and_without_files(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.rewind(5)
    assert list(tmp_path.iterdir()) == []
    log_steps(log, range(1, 4))
    log.event("start")
    log.rewind(0)
    assert read_rows(tmp_path / "metrics.jsonl") == []
    assert len(read_rows(tmp_path / "events.jsonl")) == 1, "what happened has happened"


@pytest.mark.parametrize("torn", [b'{"kind": "res', b'{"kind": "resume"}', b"\0\0\0"])
def test_a_torn_last_line_is_no_row_and_does_not_spoil_the_next(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "start"}\n' + torn)
    assert read_rows(path) == [{"kind": "start"}]
    RunLog(tmp_path).event("done")
    assert [row["kind"] for row in read_rows(path)] == ["start", "done"]


def test_a_damaged_line_in_the_middle_is_told(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: not valid JSON"):
        read_rows(tmp_path / "metrics.jsonl")


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_a_row_that_can_not_be_written_is_told_and_the_next_one_is_whole(
    tmp_path: Path, no_file_beyond: Limit
) -> None:
    log = RunLog(tmp_path)
    log.metrics(1, loss=0.5)
    with (
        no_file_beyond(40),
        pytest.raises(PilgrimError, match=r"metrics\.jsonl could not be written: .*limit"),
    ):
        log.metrics(2, loss=0.25)
    log.metrics(2, loss=0.25)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_no_permission_is_told(foreign_folder: Path) -> None:
    with pytest.raises(PilgrimError, match=r"metrics\.jsonl could not be written: Permission denied"):
        RunLog(foreign_folder / "pretrain").metrics(1, loss=0.5)


def test_reading_a_run_needs_no_torch() -> None:
    code = "import sys, pilgrim.core.runlog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=runlog.SOURCE).returncode == 0


# Provenance ---------------------------------------------------------------------------------------


def test_provenance_says_where_the_numbers_come_from(tmp_path: Path) -> None:
    write_provenance(tmp_path, command=["pilgrim", "run"], seed=3, data_hashes={"train": "ab"})
    found = json.loads((tmp_path / "provenance.json").read_text())
    assert (found["command"], found["seed"], found["data_sha256"]) == (["pilgrim", "run"], 3, {"train": "ab"})
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_bytes"] > 1e8


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_what_differs_from_it_are_kept(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    git(folder, "init", "-q")
    assert runlog._code(folder) is None, "no commit yet"
    (folder / "a.py").write_text("one\n")
    git(folder, "add", "a.py")
    git(folder, "commit", "-qm", "one")
    code = runlog._code(folder)
    assert code is not None
    assert (code["commit"], code["dirty"], code["diff"]) == (git(folder, "rev-parse", "HEAD"), False, "")
    (folder / "a.py").write_text("two\n" * 300_000)
    (folder / "b.py").write_text("new\n")
    code = runlog._code(folder)
    assert code is not None
    assert (code["dirty"], code["untracked"]) == (True, ["b.py"])
    assert "-one\n+two\n" in code["diff"]
    assert len(code["diff"]) == runlog.DIFF_LIMIT_BYTES
    assert code["diff_bytes_cut"] > 100_000
    (folder / "inner").mkdir()
    assert runlog._code(folder / "inner") is None, "the checkout of something around pilgrim is not pilgrim's"
