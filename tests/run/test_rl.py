"""Reinforcement learning as a stage: rounds, their files, resuming in the middle of one, bad rewards."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kill import free_port

from pilgrim.core.console import Console
from pilgrim.core.errors import DataError, PilgrimError, SettingsError, Stopped
from pilgrim.core.files import read_json
from pilgrim.core.processes import joined
from pilgrim.core.runlog import read_rows
from pilgrim.infer.load import load_model
from pilgrim.stages.journey import run_journey

Walk = Callable[..., Path]

# How many e are in a reply. At the call that the file "stop" names, whoever trains is asked to stop.
REWARD = """
import os, signal
from pathlib import Path

calls = 0

def reward(prompt, reply, row):
    global calls
    calls += 1
    stop = Path(__file__).with_name("stop")
    if stop.exists() and calls == int(stop.read_text()):
        os.kill(os.getppid(), signal.SIGTERM)
    if row.get("bad") == "sometimes" and len(reply) % 2 or row.get("bad") == "always":
        raise ValueError("no idea")
    return reply.count("e")
"""
PROMPTS = 12
SETTINGS = [
    "runtime.dtype=fp32",
    "rl.steps=6",
    "rl.rows=2",
    "rl.prompts=4",
    "rl.replies=4",
    "rl.updates=2",
    "rl.reply_tokens=10",
    "rl.eval_every=3",
    "rl.held_out_prompts=3",
    "rl.checkpoint_every=100",
    "rl.kl=0.01",
    'eval.questions=["Hello!"]',
]


@pytest.fixture
def run(walked: Path, tmp_path: Path) -> Path:
    """A run up to sft, with a task beside it."""
    (tmp_path / "reward.py").write_text(REWARD)
    task(tmp_path)
    return shutil.copytree(walked, tmp_path / "runs" / "tiny", ignore=shutil.ignore_patterns("evaluate"))


def task(folder: Path, **more: Any) -> None:
    rows = [json.dumps({"prompt": f"Say e {i}.", **more}) + "\n" for i in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(rows))


def learn(walk: Walk, run: Path, *more: str) -> Path:
    files = f'prompts = "{run.parents[1]}/prompts.jsonl", reward = "{run.parents[1]}/reward.py"'
    tasks = f"rl.tasks={{mine = {{{files}, held_out_share = 0.3}}}}"
    return walk(run.parent, *SETTINGS, tasks, *more, only="rl", accept_changes=True)


def test_a_stage_of_rewards(walk: Walk, run: Path) -> None:
    learn(walk, run)
    metrics, evals = read_rows(run / "rl" / "metrics.jsonl"), read_rows(run / "rl" / "evals.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    names = {
        "reward",
        "reward_error",
        "solved",
        "reply_tokens",
        "cut_off",
        "groups_dropped",
        "without_reward",
    }
    names |= {"entropy", "clipped", "drift", "drift_kl", "largest_ratio", "kl", "learned_tokens"}
    assert all(names <= row.keys() for row in metrics)
    assert [row["step"] for row in evals] == [0, 3, 6]
    assert all(0 <= row["held_out"]["mine"]["low"] <= row["solved"] <= 1 for row in evals)

    # The engine and the training step agree on how likely each token was: in fp32, up to rounding.
    assert metrics[0]["drift"] < 2e-5
    assert metrics[0]["largest_ratio"] < 1.001
    assert metrics[0]["kl"] < 1e-8
    assert metrics[1]["drift"] > 100 * metrics[0]["drift"]  # the second step on the same round is off-policy

    files = sorted((run / "rl" / "rollouts").iterdir())
    assert [file.name for file in files] == ["step-000000.jsonl", "step-000002.jsonl", "step-000004.jsonl"]
    rows = read_rows(files[0])
    assert len(rows) == 16
    assert all(row["reward"] == row["reply"].count("e") for row in rows)
    assert all(len(row["ids"]) == len(row["logprobs"]) == len(row["reference"]) for row in rows)
    assert read_json(run / "rl" / "DONE.json")["summary"]["steps"] == 6


def test_stopped_in_the_middle_of_a_round_it_goes_on_to_the_same_bits(
    walk: Walk, run: Path, tmp_path: Path, essence: Callable[[Path], dict[str, str]]
) -> None:
    other = shutil.copytree(run, tmp_path / "stopped" / "tiny")
    for name in ("prompts.jsonl", "reward.py"):
        shutil.copy(tmp_path / name, tmp_path / "stopped" / name)
    learn(walk, run)
    held_out = read_rows(run / "rl" / "evals.jsonl")[0]["held_out"]["mine"]["n"]
    (tmp_path / "reward.py").with_name("stop").write_text(str(held_out + 20))  # within the second round
    with pytest.raises(Stopped):
        walk(other.parent, *SETTINGS, tasks_of(tmp_path), only="rl", accept_changes=True)
    assert read_rows(other / "rl" / "events.jsonl")[-1]["step"] == 3  # of which a round has steps 3 and 4
    (tmp_path / "stop").unlink()
    walk(other.parent, *SETTINGS, tasks_of(tmp_path), only="rl", accept_changes=True)
    assert essence(other) == essence(run)


def tasks_of(folder: Path) -> str:
    files = f'prompts = "{folder}/prompts.jsonl", reward = "{folder}/reward.py"'
    return f"rl.tasks={{mine = {{{files}, held_out_share = 0.3}}}}"


def test_a_round_whose_file_is_gone_is_told(walk: Walk, run: Path, tmp_path: Path) -> None:
    (tmp_path / "stop").write_text("8")
    with pytest.raises(Stopped):
        learn(walk, run, "rl.eval_every=100")
    (tmp_path / "stop").unlink()
    (run / "rl" / "rollouts" / "step-000000.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"step-000000.jsonl is missing, and the run was stopped in the middle"
    ):
        learn(walk, run, "rl.eval_every=100")


def test_replies_whose_reward_fails_are_counted_and_left_out(walk: Walk, run: Path, tmp_path: Path) -> None:
    task(tmp_path, bad="sometimes")
    learn(walk, run, "rl.steps=1", "rl.updates=1", "rl.prompts=8", "rl.kl=0")
    (row,) = read_rows(run / "rl" / "metrics.jsonl")
    assert 0 < row["without_reward"] < 1
    kept = read_rows(run / "rl" / "rollouts" / "step-000000.jsonl")
    failed = [one for one in kept if one["reward"] is None]
    assert len(failed) == round(row["without_reward"] * len(kept))
    assert all(len(one["reply"]) % 2 and "line 14: reward raised ValueError" in one["why"] for one in failed)
    (event,) = [e for e in read_rows(run / "rl" / "events.jsonl") if e["kind"] == "reward_failed"]
    assert event["replies"] == len(failed)


def test_if_all_fail_the_stage_ends_with_a_sentence(walk: Walk, run: Path, tmp_path: Path) -> None:
    task(tmp_path, bad="always")
    where = (
        r"reward.py, line 14: reward raised ValueError: no idea on .*prompts.jsonl, line \d+, and no reply"
    )
    with pytest.raises(PilgrimError, match=where):
        learn(walk, run)


def test_where_all_are_equally_good_no_weight_moves(walk: Walk, run: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"? {i}", "regex": "never said"}) + "\n" for i in range(PROMPTS)]
    (tmp_path / "never.jsonl").write_text("".join(rows))
    never = f"rl.tasks={{never = {{prompts = '{tmp_path}/never.jsonl', kind = 'questions', tools = true}}}}"
    settings = [*SETTINGS, "rl.steps=2", "rl.prompts=2", "rl.updates=1", "rl.replies=2", "rl.kl=0", never]
    walk(run.parent, *settings, only="rl", accept_changes=True)
    assert [row["groups_dropped"] for row in read_rows(run / "rl" / "metrics.jsonl")] == [1.0, 1.0]
    before, after = (load_model(run / stage).weights() for stage in ("sft", "rl"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["rl.steps=3"], r"rl.tasks names nothing to ask"),
        (["rl.tasks.x={prompts='a.jsonl'}"], r"needs a reward"),
        (["rl.tasks.x={prompts='a.jsonl', kind='gsm8k', reward='r.py'}"], r"grades by itself"),
        (
            ["rl.tasks.x={prompts='a.jsonl', kind='gsm8k'}", "rl.prompts=2", "rl.updates=3", "rl.steps=2"],
            r"3 parts can't be made",
        ),
        (["rl.tasks.x={prompts='a.jsonl', kind='gsm8k'}"], r"rl.steps is missing"),
    ],
)
def test_contradictions_are_refused(walk: Walk, tmp_path: Path, settings: list[str], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        walk(tmp_path, *settings)


def test_a_missing_file_is_told_before_anything_is_done(walk: Walk, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rl.tasks.x names nowhere.jsonl"):
        walk(tmp_path, "rl.steps=3", "rl.tasks.x={prompts='nowhere.jsonl', kind='gsm8k'}")
    assert not (tmp_path / "tiny").exists() or not list((tmp_path / "tiny").glob("*/DONE.json"))


# Two processes -------------------------------------------------------------------------------------


def one_of_two(rank: int, port: int, recipe: Path, runs: Path, settings: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with joined(torch.device("cpu"), timeout_s=100):
        run_journey(recipe, settings, only="rl", runs=runs, console=Console(quiet=True), accept_changes=True)


@pytest.mark.timeout(400)
def test_two_processes_learn_the_same_as_one(walk: Walk, run: Path, recipe: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "two" / "tiny")
    short = ["rl.steps=2", "rl.updates=1", "rl.eval_every=2", "rl.prompts=5", "rl.replies=3"]
    learn(walk, run, *short)
    context = multiprocessing.get_context("spawn")
    settings, port = [*SETTINGS, tasks_of(tmp_path), *short], free_port()
    pair = [
        context.Process(target=one_of_two, args=(rank, port, recipe, other.parent, settings))
        for rank in range(2)
    ]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]
    kept = [read_rows(one / "rl" / "rollouts" / "step-000000.jsonl") for one in (run, other)]
    for first, second in zip(*kept, strict=True):
        assert first["logprobs"] == pytest.approx(second["logprobs"], abs=1e-5)
        assert {k: v for k, v in first.items() if k not in ("logprobs", "reference")} == {
            k: v for k, v in second.items() if k not in ("logprobs", "reference")
        }
    rows = [read_rows(one / "rl" / "metrics.jsonl")[0] for one in (run, other)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-3, abs=1e-5)
