"""Several processes train, measure and sample as one does: the same walk by one, two and three.

Each group of processes is started once, and walks several times, because starting is what takes long.
"""

import json
import multiprocessing
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import pytest
import torch
from kill import free_port

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.console import Console
from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.core.files import read_json
from pilgrim.core.processes import Processes, joined
from pilgrim.core.runlog import read_rows
from pilgrim.core.runtime import Runtime
from pilgrim.stages.by_stage import evaluate_stages
from pilgrim.stages.chat import evaluate_chat
from pilgrim.stages.core import evaluate_core
from pilgrim.stages.journey import run_journey
from pilgrim.stages.profile import profile_stage
from pilgrim.train.stopping import Agreed

pytestmark = pytest.mark.timeout(400)  # for whichever test comes first, and has to start all of them

STAGES = ("pretrain", "midtrain", "sft", "dpo")
SETTINGS = [
    "runtime.dtype=fp32",
    "model.width=32",
    "model.context=64",
    "pretrain.steps=50",
    "pretrain.rows=6",
    "pretrain.micro_rows=3",
    "pretrain.grow.rows=[[0.0, 3], [0.5, 6]]",  # of which two processes take 2 and 1, and one of three none
    "pretrain.grow.context=[[0.0, 32], [0.4, 64]]",
    "pretrain.eval_every=25",
    "pretrain.checkpoint_every=20",
    "midtrain.steps=50",
    "midtrain.rows=3",
    "midtrain.eval_every=50",
    "midtrain.checkpoint_every=50",
    "sft.steps=50",
    "sft.eval_every=50",
    "sft.checkpoint_every=20",
    "sft.lora.rank=4",  # the other stages train all weights
    "dpo.steps=50",
    "dpo.lr_scale=0.02",  # else the loss is almost 0 soon, and a relative difference of it says nothing
    "dpo.rows=3",
    "dpo.pairs_val=[]",
    "dpo.val_share=0.3",
    "dpo.eval_every=50",
    "dpo.checkpoint_every=50",
    "eval.sample_tokens=3",
    'eval.watch=["lambada_openai"]',
    "eval.watch_items=5",
]
# Among the documents one that is like no other, and is met after the steps in which nothing is a spike.
ODD = [
    "seed=2",
    "runtime.dtype=fp32",
    "model.width=32",
    "model.context=64",
    "pretrain.steps=150",
    "pretrain.rows=3",
    "pretrain.micro_rows=1",
    "pretrain.eval_every=150",
    "pretrain.checkpoint_every=20",
    "eval.sample_tokens=1",
    "health.spike_sigmas=5",
]
# A run that learns from the first one: all weights in pretraining, and then adapters.
TAUGHT = [
    "pretrain.steps=8",
    "pretrain.eval_every=8",
    "pretrain.teacher.top_k=8",
    "midtrain.steps=1",
    "midtrain.warmup=0",
    "sft.steps=8",
    "sft.checkpoint_every=5",
    "sft.teacher.temperature=2",
]
TOLERANCE = 1e-6  # relative, over all of these steps
TIMEOUT_S = 300


def walk(recipe: Path, runs: Path, name: str, *settings: str, until: str = "pretrain") -> Path:
    every = [*SETTINGS, pairs(recipe), f"name={name}", *settings]
    return run_journey(recipe, every, until=until, runs=runs, console=Console(quiet=True))


def pairs(recipe: Path) -> str:
    return f"dpo.pairs={json.dumps([str(recipe.parent / 'pairs.jsonl')])}"


def walk_taught(recipe: Path, runs: Path, name: str, *settings: str) -> Path:
    """A short walk to the end of SFT, with a teacher."""
    teachers = [f"{stage}.teacher.run={runs / 'one'}" for stage in ("pretrain", "sft")]
    return walk(recipe, runs, name, *TAUGHT, *teachers, *settings, until="sft")


def walk_past_the_odd(recipe: Path, runs: Path, policy: str, count: int) -> Path:
    """Pretraining that meets a spike."""
    documents = json.dumps([str(recipe.parent / "train.jsonl"), str(runs / "odd.jsonl")])
    settings = [*ODD, f"data.train={documents}", f"health.on_spike={policy}", f"name={policy}-{count}"]
    return run_journey(recipe, settings, until="pretrain", runs=runs, console=Console(quiet=True))


# In each process of a group -----------------------------------------------------------------------


def start(
    rank: int, count: int, port: int, work: Callable[[Processes, Path, Path], None], recipe: Path, runs: Path
) -> None:
    """What torchrun says to a process, and then its work."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with joined(torch.device("cpu"), timeout_s=TIMEOUT_S) as processes:
        work(processes, recipe, runs)


def of_two(processes: Processes, recipe: Path, runs: Path) -> None:
    walk(recipe, runs, "zero", "runtime.parallel=zero", until="dpo")
    walk(recipe, runs, "ddp", "runtime.parallel=ddp")
    walk(recipe, runs, "fsdp", "runtime.parallel=fsdp", until="sft")
    processes.by_first(lambda: forget_the_end(runs / "fsdp", runs / "fsdp-sft-again", "sft"))
    walk(recipe, runs, "fsdp-sft-again", "runtime.parallel=fsdp", until="sft")
    for parallel in ("zero", "fsdp"):
        short = f"runtime.parallel={parallel}", "runtime.dtype=bf16", "pretrain.steps=8"
        walk(recipe, runs, f"{parallel}-bf16", *short)
    settings = [*SETTINGS, pairs(recipe), "name=zero", "runtime.parallel=zero"]
    profile_stage(
        recipe, settings, steps=1, warmup=1, out=runs / "profile", runs=runs, console=Console(quiet=True)
    )
    for name in ("zero", "fsdp"):
        again(processes, recipe, runs, name, f"runtime.parallel={name}")
    processes.by_first(lambda: forget_the_end(runs / "one", runs / "one-then-two"))
    walk(recipe, runs, "one-then-two")
    for parallel in ("zero", "fsdp"):
        walk_taught(recipe, runs, f"taught-{parallel}", f"runtime.parallel={parallel}")
    processes.by_first(lambda: forget_the_end(runs / "taught-fsdp", runs / "taught-fsdp-again", "sft"))
    walk_taught(recipe, runs, "taught-fsdp-again", "runtime.parallel=fsdp")
    agreements(processes, runs)
    questions(runs / "zero")
    for policy in ("skip", "roll_back"):
        walk_past_the_odd(recipe, runs, policy, 2)


def of_three(processes: Processes, recipe: Path, runs: Path) -> None:
    walk(recipe, runs, "three", until="dpo")
    again(processes, recipe, runs, "three")
    walk(recipe, runs, "three-fsdp", "runtime.parallel=fsdp", "pretrain.steps=8")


def questions(run: Path) -> None:
    """Some of CORE's tasks and of the chat suite's, with answers that are scored, written, and run."""
    evaluate_core(run, limit=3, console=Console(quiet=True))
    evaluate_chat(run, limit=3, console=Console(quiet=True))
    evaluate_stages(run, ["behaviour", "core"], limit=1, console=Console(quiet=True))


def again(processes: Processes, recipe: Path, runs: Path, name: str, *settings: str) -> None:
    """Pretraining from a checkpoint in the middle of a run."""
    processes.by_first(lambda: forget_the_end(runs / name, runs / f"{name}-again"))
    walk(recipe, runs, f"{name}-again", *settings)


def forget_the_end(run: Path, copy: Path, stage: str = "pretrain") -> None:
    """A copy of a run of which a stage was stopped in the middle."""
    shutil.copytree(run, copy)
    for later in STAGES[STAGES.index(stage) + 1 :]:
        shutil.rmtree(copy / later, ignore_errors=True)
    (copy / stage / "DONE.json").unlink()
    store = CheckpointStore(copy / stage / "checkpoints")
    shutil.rmtree(store.folder / f"step_{store.steps()[-1]:06d}")
    recipe = copy / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(f'name = "{run.name}"', f'name = "{copy.name}"'))


def agreements(processes: Processes, runs: Path) -> None:
    """What is agreed upon, and how errors end all: written down, and looked at by the test."""
    stop = Agreed(iter([False, processes.rank == 1, False, False]).__next__, processes)
    heard = [stop() for _ in range(4)]
    told: list[str] = []
    for error in (DataError("x"), KeyError("y")):

        def fail(error: Exception = error) -> None:
            raise error

        try:
            processes.by_first(fail)
        except (PilgrimError, KeyError) as raised:
            told.append(type(raised).__name__)
    cards = processes.collected([card * 10 for card in processes.dealt(range(5))])
    found = {
        "heard": heard,
        "told": told,
        "cards": cards,
        "least": processes.least(7 - processes.rank),
        "shares": processes.share(5),
    }
    (runs / f"agreements-{processes.rank}.json").write_text(json.dumps(found))


# Here ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def context() -> ForkServerContext | SpawnContext:
    """Makes processes of their own. On Linux they are forked from one that has imported all they need."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["pilgrim.stages.dpo", "pilgrim.stages.evaluate", "pilgrim.lab.report"])
    return found


def together(context: Any, count: int, work: Any, recipe: Path, runs: Path) -> None:
    """Let `count` processes work, and wait for them."""
    port = free_port()
    group = [context.Process(target=start, args=(r, count, port, work, recipe, runs)) for r in range(count)]
    for process in group:
        process.start()
    for process in group:
        process.join(TIMEOUT_S)
    try:
        assert [process.exitcode for process in group] == [0] * count
    finally:
        for process in group:
            process.kill()


@pytest.fixture(scope="module")
def runs(context: Any, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All walks, by name: to be looked at only."""
    folder = tmp_path_factory.mktemp("processes")
    dice = random.Random(5)
    odd = "".join(chr(dice.randrange(0x4E00, 0x9000)) for _ in range(60))
    (folder / "odd.jsonl").write_text(json.dumps({"text": odd}) + "\n")
    walk(recipe, folder, "one", until="dpo")
    walk_taught(recipe, folder, "taught")
    together(context, 2, of_two, recipe, folder)
    together(context, 3, of_three, recipe, folder)
    return folder


def rows(run: Path, stage: str, file: str = "metrics") -> list[dict[str, Any]]:
    return read_rows(run / stage / f"{file}.jsonl")


def drift(run: Path, other: Path, stage: str) -> float:
    """The largest relative difference between two runs' losses, of steps and of evaluations."""
    found = 0.0
    for file, names in (("metrics", ("loss",)), ("evals", ("bpb", "loss"))):
        for a, b in zip(rows(run, stage, file), rows(other, stage, file), strict=True):
            assert a["step"] == b["step"]
            for name in names:  # a batch of which nothing is to be learned has a loss of 0, in both
                found = max(found, abs(a[name] - b[name]) / max(a[name], 1e-30))
    return found


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    found = CheckpointStore(run / stage / "checkpoints").load_latest(pytest.fail)
    assert found is not None
    return {
        f"{stem}/{name}": found.tensors[stem][name] for stem in found.tensors for name in found.tensors[stem]
    }


def same(run: Path, other: Path, stage: str = "pretrain") -> bool:
    """To the bit: every row, and all that the last checkpoint holds."""
    a, b = weights(run, stage), weights(other, stage)
    return (
        all(rows(run, stage, file) == rows(other, stage, file) for file in ("metrics", "evals", "samples"))
        and a.keys() == b.keys()
        and all(torch.equal(a[name], b[name]) for name in a)
    )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["zero", "three"])
def test_losses_do_not_depend_on_how_many_train(runs: Path, name: str, stage: str) -> None:
    assert len(rows(runs / name, stage)) == 50
    assert drift(runs / "one", runs / name, stage) < TOLERANCE
    assert [row["tokens"] for row in rows(runs / "one", stage)] == [
        row["tokens"] for row in rows(runs / name, stage)
    ]


def test_sources_are_told_as_by_one(runs: Path) -> None:
    for one, three in zip(rows(runs / "one", "midtrain"), rows(runs / "three", "midtrain"), strict=True):
        assert one["sources"].keys() == three["sources"].keys()
        for name, of_one in one["sources"].items():
            assert of_one["tokens"] == three["sources"][name]["tokens"]
            assert of_one["epoch"] == pytest.approx(three["sources"][name]["epoch"])
            assert of_one.get("loss") == pytest.approx(three["sources"][name].get("loss"), rel=TOLERANCE)


@pytest.mark.parametrize("policy", ["skip", "roll_back"])
def test_a_bad_step_is_dealt_with_alike(runs: Path, recipe: Path, policy: str) -> None:
    """Found by all at the same step, and skipped or gone back behind by all."""
    one, two = walk_past_the_odd(recipe, runs, policy, 1), runs / f"{policy}-2"
    told = [
        [(row["step"], row["done"]) for row in rows(run, "pretrain", "events") if row["kind"] == "spike"]
        for run in (one, two)
    ]
    assert told[0] == told[1] and 64 < told[0][0][0] < 150
    assert len(rows(two, "pretrain")) == 150
    assert drift(one, two, "pretrain") < 10 * TOLERANCE  # of three times as many steps as above


def test_slices_train_as_wholes_do(runs: Path) -> None:
    assert drift(runs / "one", runs / "fsdp", "pretrain") < TOLERANCE
    assert weights(runs / "fsdp", "pretrain").keys() == weights(runs / "one", "pretrain").keys()
    losses = [row["loss"] for row in rows(runs / "three-fsdp", "pretrain")]
    assert len(losses) == 8 and losses[0] == pytest.approx(
        rows(runs / "one", "pretrain")[0]["loss"], rel=1e-6
    )


def test_adapters_are_sliced_too(runs: Path) -> None:
    """And what a checkpoint of theirs holds for others is merged, whole, and where it goes on from."""
    assert drift(runs / "one", runs / "fsdp", "sft") < TOLERANCE
    alone, sliced = weights(runs / "one", "sft"), weights(runs / "fsdp", "sft")
    assert alone.keys() == sliced.keys()
    assert sum(name.startswith("adapter/") for name in alone) == 2 * 7 * 2
    assert all(alone[name].shape == sliced[name].shape for name in alone)
    assert same(runs / "fsdp", runs / "fsdp-sft-again", "sft")


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("parallel", ["zero", "fsdp"])
def test_a_teacher_tells_several_what_it_tells_one(runs: Path, parallel: str, stage: str) -> None:
    one, several = runs / "taught", runs / f"taught-{parallel}"
    assert drift(one, several, stage) < TOLERANCE
    for a, b in zip(rows(one, stage), rows(several, stage), strict=True):
        for name in ("teacher_kl", "cross_entropy"):
            assert a[name] == pytest.approx(b[name], rel=1e-5), name
    assert rows(one, stage)[0]["teacher_kl"] > 0


def test_several_that_are_taught_go_on_to_the_same_bits(runs: Path) -> None:
    assert same(runs / "taught-fsdp", runs / "taught-fsdp-again", "sft")


def test_slices_round_as_wholes_do(runs: Path) -> None:
    """In bf16 a rounding that falls another way changes all that follows; the first steps tell."""
    whole, sliced = (rows(runs / f"{name}-bf16", "pretrain")[:4] for name in ("zero", "fsdp"))
    assert [row["grad_norm"] for row in whole] == pytest.approx([r["grad_norm"] for r in sliced], rel=1e-5)


def test_divided_optimizer_state_changes_no_bit(runs: Path) -> None:
    assert same(runs / "ddp", runs / "zero")


@pytest.mark.parametrize("name", ["zero", "fsdp", "three"])
def test_as_many_processes_go_on_to_the_same_bits(runs: Path, name: str) -> None:
    """From a checkpoint in the middle; which also says that a run repeats."""
    assert [row["kind"] for row in rows(runs / f"{name}-again", "pretrain", "events")][-2:] == [
        "resume",
        "done",
    ]
    assert same(runs / name, runs / f"{name}-again")


def test_another_number_of_processes_goes_on(runs: Path, recipe: Path, tmp_path: Path) -> None:
    assert drift(runs / "one", runs / "one-then-two", "pretrain") < TOLERANCE
    for name in ("zero", "fsdp"):
        forget_the_end(runs / name, tmp_path / f"{name}-then-one")
        run = walk(recipe, tmp_path, f"{name}-then-one", f"runtime.parallel={name}")
        assert drift(runs / "one", run, "pretrain") < TOLERANCE


def test_samples_are_all_written_once(runs: Path) -> None:
    for stage in STAGES:
        asked = [(row["step"], row["prompt"]) for row in rows(runs / "one", stage, "samples")]
        for name in ("zero", "three"):
            assert [(row["step"], row["prompt"]) for row in rows(runs / name, stage, "samples")] == asked


def test_questions_are_answered_alike(runs: Path, tmp_path: Path) -> None:
    """By two processes, which divide them, and by one; five of lambada's while it trains, by three, too."""
    alone = shutil.copytree(runs / "zero", tmp_path / "zero")
    questions(alone)
    for file in ("core.json", "chat.json"):
        two, one = (read_json(run / "evaluate" / file) for run in (runs / "zero", alone))
        assert two["tasks"].keys() == one["tasks"].keys() and len(one["tasks"]) > 5
        for name, task in one["tasks"].items():
            scores, scores_of_two = (
                task.pop("mean_log_probs", []),
                two["tasks"][name].pop("mean_log_probs", []),
            )
            assert two["tasks"][name] == task
            for mine, theirs in zip(scores, scores_of_two, strict=True):
                assert mine == pytest.approx(theirs, abs=2e-5)  # they are rounded to six places
    two, one = (read_json(run / "evaluate" / "stages.json")["measures"] for run in (runs / "zero", alone))
    assert [m["name"] for m in two] == [m["name"] for m in one]
    for mine, theirs in zip(one, two, strict=True):
        assert mine["values"].keys() == theirs["values"].keys()
        for stage, value in mine["values"].items():
            assert value["n"] == theirs["values"][stage]["n"]
            assert value["value"] == pytest.approx(theirs["values"][stage]["value"], rel=1e-5)
    for stage in STAGES:
        watched = [
            [row["watch"] for row in rows(runs / run, stage, "evals")] for run in ("one", "zero", "three")
        ]
        assert watched[0] == watched[1] == watched[2]


def test_a_profile_sees_what_processes_say_to_each_other(runs: Path) -> None:
    found = read_json(runs / "profile" / "profile.json")
    shares = {loss["name"]: loss["share"] for loss in found["losses"]}
    assert 0 < shares["exposed_communication"] < 1
    talk = {kernel["name"] for kernel in found["kernels"]}
    assert {"gloo:all_reduce", "gloo:broadcast"} <= talk


def test_processes_agree(runs: Path) -> None:
    first, second = (json.loads((runs / f"agreements-{rank}.json").read_text()) for rank in (0, 1))
    for found in (first, second):
        assert found["heard"] == [False, False, True, False]  # asked at the second step, heard at the third
        assert found["cards"] == [0, 10, 20, 30, 40]
        assert (found["least"], found["shares"]) == (6, 3)
    assert first["told"] == ["DataError", "KeyError"]
    assert second["told"] == ["ToldElsewhere", "ToldElsewhere"]


def test_a_process_knows_what_is_its_own() -> None:
    alone = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
    assert alone.processes.first and alone.processes.collected([1, 2]) == [1, 2]
    third = replace(alone.processes, rank=2, count=3)
    assert list(third.dealt(range(7))) == [2, 5]
    assert [third.share(n) for n in (3, 4, 6)] == [1, 2, 2]


def test_validation_is_the_same_to_the_bit(runs: Path) -> None:
    """However many share it: here of the first weights, which all have alike."""
    first = rows(runs / "one", "pretrain", "evals")[0]
    assert [rows(runs / name, "pretrain", "evals")[0] for name in ("zero", "fsdp", "three")] == [first] * 3
