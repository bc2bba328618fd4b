"""What happens to machines: nothing is lost, nothing is written twice, and one sentence says what to do.

Kills are in test_kill.py, bad input and disks that only root can make in test_bad_input.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.files import read_json, read_jsonl_zst
from pilgrim.core.runlog import read_rows
from pilgrim.text.tokenizer import train_tokenizer

Walk = Callable[..., Path]
Essence = Callable[[Path], dict[str, str]]
Pilgrim = Callable[..., Any]

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
POLL_S = 0.001
ONLY_PRETRAIN = ["pretrain.steps=40", "--until", "pretrain"]


def contents(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


@pytest.fixture
def half_done(run: Path) -> Path:
    """A run that was killed before pretraining's last checkpoint; what came after pretraining is gone."""
    for stage in ("midtrain", "sft", "evaluate"):
        shutil.rmtree(run / stage)
    (run / "pretrain" / "DONE.json").unlink()
    store = CheckpointStore(run / "pretrain" / "checkpoints")
    shutil.rmtree(store.folder / f"step_{store.steps()[-1]:06d}")
    return run


# Two runs on one folder ---------------------------------------------------------------------------


@pytest.fixture
def started(recipe: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`pilgrim run` in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "pilgrim", "run", recipe, *ONLY_PRETRAIN],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Returns when the condition holds, or the process has ended."""
    while not condition():
        try:
            process.wait(POLL_S)
            return
        except subprocess.TimeoutExpired:
            continue


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at a process through /proc")
def test_a_ghost_writes_nothing_into_the_run_that_has_gone_on_without_it(
    started: subprocess.Popen[str], walk: Walk, essence: Essence, tmp_path: Path
) -> None:
    """A process is suspended amid training, on a mount that knows no locks; another finishes its run."""
    run = tmp_path / "runs" / "tiny"
    rows = run / "pretrain" / "metrics.jsonl"
    until(started, lambda: rows.exists() and rows.read_bytes().count(b"\n") >= 10)
    os.kill(started.pid, signal.SIGSTOP)
    status = Path(f"/proc/{started.pid}/stat")
    until(started, lambda: status.read_text().rpartition(")")[2].split()[0] == "T")
    (run / ".lock").unlink()  # the next process locks a file of its own, as if no lock had reached it

    walk(tmp_path / "runs", "pretrain.steps=40", until="pretrain")
    before = contents(run)
    os.kill(started.pid, signal.SIGCONT)
    _, complaint = started.communicate()
    assert complaint == (
        "runs/tiny: this process belongs to start 1 of the run, but start 2 is at work there by now, so it "
        "writes nothing more; end this process\n"
    )
    assert started.returncode == 2
    assert contents(run) == before
    assert essence(run) == essence(walk(tmp_path / "undisturbed", "pretrain.steps=40", until="pretrain"))


# Clocks -------------------------------------------------------------------------------------------


def test_no_clock_decides_anything(
    half_done: Path, walk: Walk, essence: Essence, walked: Path, tmp_path: Path
) -> None:
    """The files are from 1970 and from 2100, the newest steps the oldest; the run goes on from the newest."""
    run = half_done
    for number, file in enumerate(sorted(run.rglob("*"))):
        when_s = 0 if number % 2 else 4_102_444_800  # 2100
        os.utime(file, (when_s, when_s))
    for step in CheckpointStore(run / "pretrain" / "checkpoints").steps():
        folder = run / "pretrain" / "checkpoints" / f"step_{step:06d}"
        for file in (folder, *folder.iterdir()):
            os.utime(file, (10**9 - step, 10**9 - step))
    newest = CheckpointStore(run / "pretrain" / "checkpoints").steps()[-1]
    walk(tmp_path / "runs")
    resumed = [row for row in read_rows(run / "pretrain" / "events.jsonl") if row["kind"] == "resume"]
    assert [row["step"] for row in resumed] == [newest]
    assert essence(run) == essence(walked)


# Budget and best ----------------------------------------------------------------------------------


def test_what_was_spent_and_what_was_best_outlive_an_interruption(
    half_done: Path, walk: Walk, tmp_path: Path
) -> None:
    run = half_done
    store = CheckpointStore(run / "pretrain" / "checkpoints")
    before = store.load(store.steps()[-1]).state
    assert before["device_s"] == before["elapsed_s"] > before["train_s"] > 0
    evaluated = read_rows(run / "pretrain" / "evals.jsonl")
    assert before["best_bpb"] == min(row["bpb"] for row in evaluated if row["step"] < before["step"])
    walk(tmp_path / "runs", until="pretrain")
    after = store.load(store.steps()[-1]).state
    assert after["device_s"] > before["device_s"]
    assert after["device_s"] == pytest.approx(after["elapsed_s"], rel=1e-6)


# The tokenizer ------------------------------------------------------------------------------------


COMMANDS = {
    "run": ("recipe", "--until", "pretrain"),
    "chat": ("tiny", "--say", "Hello"),
    "eval": ("tiny", "--suite", "core"),
    "export": ("tiny", "--to", "hf", "--out", "out"),
}


def test_a_changed_tokenizer_is_refused(half_done: Path, pilgrim: Pilgrim, recipe: Path) -> None:
    """One of the same size, so that nothing else would notice."""
    size = read_json(half_done / "tokenizer" / "DONE.json")["summary"]["vocab_size"]
    texts = [row["text"][::-1] for _, row in read_jsonl_zst(recipe.parent / "train.jsonl")]
    train_tokenizer(texts, size).save(half_done / "tokenizer")
    before = contents(half_done / "pretrain" / "checkpoints")
    for command, arguments in COMMANDS.items():
        result = pilgrim(command, *[recipe if a == "recipe" else a for a in arguments])
        assert result.exit_code == 2, result.output
        assert result.stderr == (
            "runs/tiny/tokenizer/tokenizer.json is not the one that this run has learned; put that back "
            "(an export of the run holds a copy), or begin a new run with name=…\n"
        )
    assert contents(half_done / "pretrain" / "checkpoints") == before


# Disks --------------------------------------------------------------------------------------------

ON_A_SMALL_DISK = """
mount -t tmpfs -o size=3m tmpfs runs || exit 77
"$@"
code=$?
cp -r runs kept
exit $code
"""


def test_a_small_disk_that_is_full_without_being_root(
    recipe: Path, walk: Walk, essence: Essence, walked: Path, tmp_path: Path
) -> None:
    """In a namespace of one's own one may mount a disk of 3 MB. The first checkpoint fits, the second not."""
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-m", "pilgrim", "run", str(recipe)]
    try:
        done = subprocess.run(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh", *command],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode in (1, 77):
        pytest.skip(f"no namespace of one's own here: {done.stderr}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(
        "step 6 could not be saved in runs/tiny/pretrain/checkpoints: the disk is full ("
    )
    assert done.stderr.endswith("step_000004\n") and done.stderr.count("\n") == 1
    (tmp_path / "runs").rmdir()
    (tmp_path / "kept").rename(tmp_path / "runs")
    kept = CheckpointStore(tmp_path / "runs" / "tiny" / "pretrain" / "checkpoints")
    assert kept.load_latest(pytest.fail) is not None
    assert essence(walk(tmp_path / "runs")) == essence(walked)


def test_a_lost_file_of_a_step_is_told_and_the_step_before_is_taken(
    half_done: Path, essence: Essence, walked: Path, pilgrim: Pilgrim, recipe: Path
) -> None:
    store = CheckpointStore(half_done / "pretrain" / "checkpoints", keep_last=3)
    last = store.load(store.steps()[-1])
    store.save(last.step + 1, {stem: dict(named) for stem, named in last.tensors.items()}, last.state)
    (store.folder / f"step_{last.step + 1:06d}" / "optimizer.safetensors").unlink()
    result = pilgrim("run", recipe)
    assert result.exit_code == 0, result.output
    assert "optimizer.safetensors is missing; the one before is tried" in result.output
    assert "damaged_checkpoint" in [row["kind"] for row in read_rows(half_done / "pretrain" / "events.jsonl")]
    assert essence(half_done) == essence(walked)


def test_state_is_plain_json(walked: Path) -> None:
    """Whoever wants to know where a run stands needs no program of ours for it."""
    for file in walked.glob("*/checkpoints/step_*/state.json"):
        text = file.read_text()
        assert "NaN" not in text and "Infinity" not in text
        assert {"step", "tokens", "position", "elapsed_s", "device_s", "best_bpb"} <= json.loads(text).keys()
