"""Killed or stopped anywhere, as processes: the walk goes on, and ends with the same bits."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import kill
import pytest
from kill import Killer

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import read_json
from pilgrim.core.runlog import read_rows
from pilgrim.stages.journey import run_journey

Walk = Callable[..., Path]
Essence = Callable[[Path], dict[str, str]]
Condition = Callable[[], bool]

POLL_S = 0.001

linux = pytest.mark.skipif(sys.platform != "linux", reason="forked processes, and /proc")


@pytest.fixture(scope="module")
def killer(recipe: Path) -> Killer:
    """Starts walks in processes that are forked from one that has imported all they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(kill.PRELOAD)
    return Killer(context, recipe, [])


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


def rows(file: Path, n: int) -> Condition:
    """The file has at least n whole lines."""
    return lambda: file.exists() and file.read_bytes().count(b"\n") >= n


# SIGKILL ------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize(("seed", "outside"), [(1, "supervisor"), (2, "job")])
def test_a_killed_walk_goes_on_to_the_same_bits(
    killer: Killer, walked: Path, tmp_path: Path, seed: int, outside: str
) -> None:
    """In each stage: while a file is written, before it is renamed, in an evaluation, anywhere; and at last
    the supervisor is killed, or what it has started. benchmarks/kill.py does so hundreds of times."""
    struck = kill.walk(killer, tmp_path / "runs", 1, kill.plan(seed, 1, outside))
    assert len(struck) >= 4
    assert struck[-1].kind == outside
    assert kill.essence(tmp_path / "runs" / "tiny") == kill.essence(walked)


@linux
def test_so_does_one_of_two_processes(killer: Killer, tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    struck = kill.walk(killer, disturbed, 2, kill.plan(5, 2))
    assert len(struck) >= 5
    assert {one.together for one in struck} == {False, True}
    kill.walk(killer, undisturbed, 2, [])
    assert kill.essence(disturbed / "tiny") == kill.essence(undisturbed / "tiny")


@linux
def test_a_killed_process_holds_nothing(killer: Killer, recipe: Path, walk: Walk, tmp_path: Path) -> None:
    """While it lives, nobody else may write to its run."""
    arguments = {"runs": tmp_path, "until": "pretrain"}
    process = killer.context.Process(
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


def start(recipe: Path, folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """`python -m pilgrim run`, which hears Ctrl-C even if this process is deaf to it, as below nohup."""
    return subprocess.Popen(
        [sys.executable, "-m", "pilgrim", "run", recipe, *LONG, *arguments, "--until", "pretrain"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_asked_to_stop_it_saves_says_how_to_go_on_and_ends_with_the_same_bits(
    recipe: Path, walk: Walk, essence: Essence, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tiny"
    for number, at_least, code in ((signal.SIGINT, 10, 130), (signal.SIGTERM, 40, 143)):
        with start(recipe, tmp_path) as process:
            wait(process, rows(run / "pretrain" / "metrics.jsonl", at_least))
            process.send_signal(number)
            output, complaint = process.communicate()
        assert process.returncode == code, complaint
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


def ranks_of(supervisor: "subprocess.Popen[str]") -> list[int]:
    """The processes that torchrun has started, which the supervisor has started. By rank."""
    (torchrun,) = kill.children(supervisor.pid)
    return sorted(kill.children(torchrun))


@linux
def test_one_rank_is_asked_and_all_stop_after_the_same_step(recipe: Path, tmp_path: Path) -> None:
    pretrain = tmp_path / "runs" / "tiny" / "pretrain"
    with start(recipe, tmp_path, "--processes", "2") as process:
        wait(process, rows(pretrain / "metrics.jsonl", 10))
        os.kill(ranks_of(process)[1], signal.SIGTERM)
        _, complaint = process.communicate()
    assert process.returncode == 143, complaint
    assert complaint.startswith("stopped; the last checkpoint is kept; go on with: ")
    stopped = read_rows(pretrain / "events.jsonl")[-1]
    assert (stopped["kind"], stopped["step"]) == (
        "stopped",
        CheckpointStore(pretrain / "checkpoints").steps()[-1],
    )
    assert len(read_rows(pretrain / "metrics.jsonl")) == stopped["step"]


@linux
def test_a_hung_collective_ends_the_job_and_leaves_stacks(recipe: Path, tmp_path: Path) -> None:
    """Rank 1 is frozen, so rank 0 waits for it for ever."""
    run = tmp_path / "runs" / "tiny"
    arguments = ["runtime.hang_s=2", "--processes", "2", "--tries", "1"]
    with start(recipe, tmp_path, *arguments, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1") as process:
        wait(process, rows(run / "pretrain" / "metrics.jsonl", 10))
        os.kill(ranks_of(process)[1], signal.SIGSTOP)
        _, complaint = process.communicate()
    assert process.returncode == 1, complaint
    stacks = run / "logs" / "rank-0.stacks.txt"
    assert "rank 0 stood still for longer than runtime.hang_s allows; where it stood: " in complaint
    assert stacks.read_text().startswith("Timeout (0:00:02)!\n")
    assert read_rows(run / "events.jsonl")[-1]["kind"] == "gave_up"
