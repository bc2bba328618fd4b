"""Killed or stopped anywhere, as a process: the walk goes on, and ends with the same bits."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import read_json
from pilgrim.core.runlog import read_rows
from pilgrim.stages.journey import run_journey

Walk = Callable[..., Path]
Essence = Callable[[Path], dict[str, str]]
Condition = Callable[[], bool]

POLL_S = 0.001
LONGEST_DELAY_S = 0.03  # some steps


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext | SpawnContext]:
    """Makes processes of their own. On Linux they are forked from one that has imported all it needs."""
    if sys.platform != "linux":  # elsewhere a forked process can't rely on the system's libraries
        yield multiprocessing.get_context("spawn")
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pilgrim.stages.sft", "pilgrim.stages.evaluate", "pilgrim.lab.report"])
    yield context


def wait(process: BaseProcess | subprocess.Popen[str], condition: Condition) -> None:
    """Return when the condition holds, or the process has ended."""
    while not condition():
        if isinstance(process, BaseProcess):
            process.join(POLL_S)
            if process.exitcode is not None:
                return
        else:
            try:
                process.wait(POLL_S)
                return
            except subprocess.TimeoutExpired:
                continue


# SIGKILL ------------------------------------------------------------------------------------------


def rows(file: Path, n: int) -> Condition:
    """The file has at least n whole lines."""
    return lambda: file.exists() and file.read_bytes().count(b"\n") >= n


def saves(folder: Path, after: int) -> Condition:
    """A checkpoint is just being written, and it is not the first ones."""
    return lambda: (
        len(list((folder / "checkpoints").glob("step_*"))) >= after
        and any((folder / "checkpoints").glob(".tmp-step_*"))
    )


def test_a_killed_walk_goes_on_to_the_same_bits(
    processes: ForkServerContext | SpawnContext,
    recipe: Path,
    walk: Walk,
    walked: Path,
    essence: Essence,
    tmp_path: Path,
) -> None:
    """Without a warning: in each stage, among samples, in a save, and a bit later, as chance will have it."""
    dice = random.Random(1)
    run = tmp_path / "tiny"
    moments = [
        lambda: (run / "shards" / "train.tokens.npy").exists(),
        rows(run / "pretrain" / "metrics.jsonl", dice.randint(1, 8)),
        saves(run / "pretrain", after=dice.randint(0, 1)),
        rows(run / "pretrain" / "samples.jsonl", dice.randint(3, 6)),
        rows(run / "midtrain" / "metrics.jsonl", dice.randint(1, 6)),
        rows(run / "sft" / "evals.jsonl", dice.randint(1, 2)),
        lambda: (run / "evaluate").exists(),
    ]
    killed = 0
    for moment in moments:
        process = processes.Process(target=run_journey, args=(recipe, []), kwargs={"runs": tmp_path})
        process.start()
        wait(process, moment)
        process.join(dice.choice([0, dice.uniform(0, LONGEST_DELAY_S)]))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if (run / "evaluate" / "DONE.json").exists():
            break
    assert killed >= 4
    assert essence(walk(tmp_path)) == essence(walked)


def test_a_killed_process_holds_nothing(
    processes: ForkServerContext | SpawnContext, recipe: Path, walk: Walk, tmp_path: Path
) -> None:
    """While it lives, nobody else may write to its run."""
    arguments = {"runs": tmp_path, "until": "pretrain"}
    process = processes.Process(
        target=run_journey, args=(recipe, ["pretrain.steps=100000"]), kwargs=arguments
    )
    process.start()
    wait(process, (tmp_path / "tiny" / "pretrain").exists)
    with pytest.raises(PilgrimError) as error:
        walk(tmp_path, "pretrain.steps=100000")
    assert str(error.value) == (
        f"{tmp_path / 'tiny'}: another process is at work in this run; "
        "wait for it, or give this one another name with name=…"
    )
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    walk(tmp_path, "pretrain.steps=100000", until="shards")


# Ctrl-C and SIGTERM -------------------------------------------------------------------------------

LONG = ["pretrain.steps=100", "pretrain.checkpoint_every=1000", "pretrain.eval_every=1000"]


def start(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    """`python -m pilgrim run`, which hears Ctrl-C even if this process is deaf to it, as below nohup."""
    return subprocess.Popen(
        [sys.executable, "-m", "pilgrim", "run", recipe, *LONG, "--until", "pretrain"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_asked_to_stop_it_saves_says_how_to_go_on_and_ends_with_the_same_bits(
    recipe: Path, walk: Walk, essence: Essence, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tiny"
    for number, at_least in ((signal.SIGINT, 10), (signal.SIGTERM, 40)):
        with start(recipe, tmp_path) as process:
            wait(process, rows(run / "pretrain" / "metrics.jsonl", at_least))
            process.send_signal(number)
            output, complaint = process.communicate()
        assert process.returncode == 130, complaint
        assert complaint.startswith("stopped; the last checkpoint is kept; go on with: ")
        assert complaint.endswith(f"run {recipe} {' '.join(LONG)} --until pretrain\n")
        assert complaint.count("\n") == 1
        stopped = read_rows(run / "pretrain" / "events.jsonl")[-1]
        assert stopped["kind"] == "stopped"
        assert at_least <= stopped["step"] < 100
        assert CheckpointStore(run / "pretrain" / "checkpoints").steps()[-1] == stopped["step"]
    assert "goes on from step" in output

    before = read_json(run / "pretrain" / "checkpoints" / f"step_{stopped['step']:06d}" / "state.json")
    undisturbed = walk(tmp_path / "undisturbed", *LONG, until="pretrain")
    assert essence(walk(tmp_path / "runs", *LONG, until="pretrain")) == essence(undisturbed)
    assert read_json(run / "pretrain" / "DONE.json")["elapsed_s"] > before["elapsed_s"]
