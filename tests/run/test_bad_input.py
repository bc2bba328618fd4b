"""Whatever a person can get wrong, as they would meet it: one sentence, exit code 2, nothing spoiled."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.runlog import read_rows

NOBODY = 65534

Walk = Callable[..., Path]
Essence = Callable[[Path], dict[str, str]]
Pilgrim = Callable[..., Any]  # ("run", recipe) -> a result with exit_code, output and stderr
Refused = Callable[..., str]


@pytest.fixture
def refused(pilgrim: Pilgrim) -> Refused:
    """refused("run", recipe, "seed=x") is the sentence that this command line ends with."""

    def call(*arguments: object) -> str:
        result = pilgrim(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1
        return str(result.stderr).strip()

    return call


# Settings -----------------------------------------------------------------------------------------


STAGES = "this journey has no such stage; it has tokenizer, shards, pretrain, midtrain, sft, evaluate"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("model.dpeth=3", "command line: model.dpeth is not a setting; did you mean model.depth?"),
        ("steps=3", "command line: steps is not a setting; did you mean pretrain.steps?"),
        ("model.depth=x", 'command line: model.depth = "x" should be a whole number'),
        ("model.depth=0", "command line: model.depth = 0 should be greater than or equal to 1"),
        ("seed=true", "command line: seed = true should be a whole number"),
        ("pretrain=3", "command line: pretrain = 3 should be a table of settings"),
        ("seed", "command line: 'seed' is not of the form key=value, as in model.depth=6"),
        (
            "runtime.dtype=fp16",
            "command line: runtime.dtype = \"fp16\" should be one of 'auto', 'bf16' or 'fp32'",
        ),
        (
            "name=a/b",
            'command line: name = "a/b": it names a folder; use letters, digits, _ - and . only, as in try-2',
        ),
        (
            "model.heads=4 model.kv_heads=3",
            "{recipe} with the command line: model.kv_heads = 3 must divide model.heads = 4; try 2",
        ),
        (
            "model.head_size=48",
            "{recipe} with the command line: model.head_size = 48 must divide model.width = 64; "
            "try 32, or set model.heads",
        ),
        (
            "sft.warmup=6",
            "{recipe} with the command line: sft.warmup = 6 must be less than sft.steps = 6; try 0",
        ),
        (
            "pretrain.micro_rows=3",
            "{recipe} with the command line: pretrain.micro_rows = 3 must divide pretrain.rows = 4; try 1",
        ),
        (
            "pretrain.begin=bigram model.tied=true",
            '{recipe} with the command line: pretrain.begin = "bigram" needs tables of their own for '
            'embedding and head, but model.tied = true; write pretrain.begin = "random", or untie them',
        ),
        (
            "pretrain.begin=bigram tokenizer.vocab_size=20000",
            '{recipe} with the command line: pretrain.begin = "bigram" counts pairs of up to 16384 tokens, '
            'and tokenizer.vocab_size = 20000 is more; write pretrain.begin = "random"',
        ),
        ("--only rl", f"--only rl: {STAGES}"),
        ("--until pre", f"--until pre: {STAGES}"),
        (
            "--only sft --until sft",
            "--only sft and --until sft contradict each other; leave one of them out",
        ),
    ],
)
def test_settings(refused: Refused, recipe: Path, overrides: str, sentence: str) -> None:
    assert refused("run", recipe, *overrides.split()) == sentence.format(recipe=recipe)
    assert not Path("runs").exists()


def test_both_kinds_of_validation(refused: Refused, recipe: Path) -> None:
    sentence = refused("run", recipe, "data.val_share=0.1")
    assert (
        "data.val_share = 0.1: validation needs exactly one of them; name files in val, or write" in sentence
    )


def test_what_is_derived_must_not_contradict_either(refused: Refused, recipe: Path, tmp_path: Path) -> None:
    """Two steps of midtraining follow from twelve of pretraining, and the default warmup is five."""
    short = tmp_path / "short.toml"
    text = recipe.read_text()
    short.write_text(text[: text.index("[midtrain]")] + "[midtrain]\n")
    assert refused("run", short) == (
        f"{short}, with what is derived: midtrain.warmup = 5 must be less than midtrain.steps = 2; try 0"
    )


# Text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        (
            "empty.jsonl",
            b"",
            "[data]: no train document is left of {file}; name files with more text in them",
        ),
        (
            "blank.txt",
            b" \n",
            "[data]: no train document is left of {file}; name files with more text in them",
        ),
        ("latin.txt", b"caf\xe9", "{file}: byte 3 is no valid UTF-8; convert the file, say with iconv"),
        (
            "latin.jsonl",
            b'{"text": "a"}\n{"text": "caf\xe9"}\n',
            "{file}, line 2: not UTF-8 text (0xe9 at byte 14); save the file as UTF-8",
        ),
        (
            "rows.jsonl",
            b'{"text": "a"}\n{"txt": "b"}\n',
            '{file}:2: the row has no "text" that is a string; give it one, or drop the row',
        ),
        (
            "few.txt",
            b"the cat sat on the mat " * 9,
            "tokenizer.vocab_size = 512 is more than this text supports; set it to 284 or less, "
            "or give it more text",
        ),
    ],
)
def test_text(refused: Refused, recipe: Path, tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    told = refused("run", recipe, f'data.train=["{file}"]')
    assert told == sentence.format(file=file)
    assert not (tmp_path / "runs" / "tiny" / "tokenizer" / "DONE.json").exists()


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (['data.conversations=["chats.jsonl"]'], "[data]"),
        (["dpo.steps=10", 'dpo.pairs=["chats.jsonl"]'], "[dpo]"),
        (["rl.steps=1", 'rl.tasks={sums={kind="gsm8k",prompts="chats.jsonl"}}'], "rl.tasks.sums"),
    ],
)
def test_a_file_that_is_not_there_stops_at_the_door(
    refused: Refused, recipe: Path, tmp_path: Path, options: list[str], place: str
) -> None:
    sentence = refused("run", recipe, *options)
    assert sentence.startswith(f"{place} names chats.jsonl, but there is no file chats.jsonl; mend the path")
    assert not (tmp_path / "runs").exists()


def test_a_file_without_conversations(refused: Refused, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    sentence = refused("run", recipe, 'data.conversations_val=["empty.jsonl"]')
    assert sentence.startswith("chat_val: there is no document")


def test_the_cure_can_be_followed_at_once(refused: Refused, pilgrim: Pilgrim, recipe: Path) -> None:
    """Nothing was made with the wrong recipe yet, so changing it needs no leave."""
    assert "set it to " in refused("run", recipe, "tokenizer.vocab_size=60000", "--until", "tokenizer")
    result = pilgrim("run", recipe, "tokenizer.vocab_size=600", "--until", "tokenizer")
    assert result.exit_code == 0, result.output


# A recipe that changed ----------------------------------------------------------------------------


def test_another_recipe_under_a_run(refused: Refused, run: Path, recipe: Path) -> None:
    (run / "sft" / "DONE.json").unlink()
    before = (run / "recipe.toml").read_text()
    assert refused("run", recipe, "sft.steps=8", "seed=2") == (
        "runs/tiny/recipe.toml: this run was started with other settings (seed: 1 -> 2; sft.steps: 6 -> 8); "
        "give it another name with name=…, or go on with the new ones by --accept-changes, "
        "which leaves finished stages as they are"
    )
    assert (run / "recipe.toml").read_text() == before


def test_another_recipe_is_followed_when_one_says_so(
    pilgrim: Pilgrim, run: Path, recipe: Path, essence: Essence, walked: Path
) -> None:
    (run / "sft" / "DONE.json").unlink()
    result = pilgrim("run", recipe, "sft.steps=8", "--accept-changes", "--until", "sft")
    assert result.exit_code == 0, result.output
    assert [row["step"] for row in read_rows(run / "sft" / "metrics.jsonl")] == list(range(1, 9))
    assert "steps = 8" in (run / "recipe.toml").read_text()
    now, before = essence(run), essence(walked)
    unchanged = [name for name in before if name.startswith(("shards", "pretrain", "midtrain"))]
    assert all(now[name] == before[name] for name in unchanged)
    assert pilgrim("run", recipe, "sft.steps=8").exit_code == 0  # and from now on it is the run's


@pytest.mark.parametrize("stage", ["sft", "midtrain"])
def test_what_is_trained_keeps_its_shape(refused: Refused, run: Path, recipe: Path, stage: str) -> None:
    """A half-finished stage finds its own checkpoint, a new one that of the stage before."""
    (run / stage / "DONE.json").unlink()
    if stage == "midtrain":
        shutil.rmtree(run / "midtrain")
    place = {"sft": "runs/tiny/sft/checkpoints/step_000006", "midtrain": "runs/tiny/pretrain"}[stage]
    told = refused("run", recipe, "model.width=96", "--accept-changes")
    if stage == "sft":  # it loads what midtraining ended with before it looks at its own
        place = "runs/tiny/midtrain"
    assert told == (
        f"{place}: the weights there are of a model of another shape (width: 64 -> 96, "
        "head_size: 64 -> 96, mlp_width: 192 -> 288), and what is trained keeps its shape; go back to it, "
        "or give this run another name with name=…"
    )


# Damage -------------------------------------------------------------------------------------------


def flip_last_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_damaged_shard(
    refused: Refused, pilgrim: Pilgrim, run: Path, recipe: Path, essence: Essence, walked: Path
) -> None:
    (run / "sft" / "DONE.json").unlink()
    flip_last_bit(run / "shards" / "chat_train.tokens.npy")
    assert refused("run", recipe) == (
        "runs/tiny/shards/chat_train.tokens.npy is damaged: its sha256 is not the one in chat_train.json; "
        "delete runs/tiny/shards and run again to make it anew"
    )
    shutil.rmtree(run / "shards")
    assert pilgrim("run", recipe).exit_code == 0
    assert essence(run) == essence(walked)


def test_a_damaged_end_of_a_finished_stage(
    refused: Refused, pilgrim: Pilgrim, run: Path, recipe: Path, essence: Essence, walked: Path
) -> None:
    """The checkpoint before is whole, but it is not what the next stage is to begin with."""
    flip_last_bit(run / "pretrain" / "checkpoints" / "step_000012" / "model.safetensors")
    told = refused("run", recipe, "--only", "evaluate")
    assert told.startswith("runs/tiny/pretrain/checkpoints/step_000012/model.safetensors is damaged: ")
    assert told.endswith(
        "the one before is tried, but pretrain had ended with the damaged one; "
        "delete runs/tiny/pretrain/DONE.json and run again to train its end anew"
    )
    shutil.rmtree(run / "midtrain")
    assert refused("run", recipe) == told
    (run / "pretrain" / "DONE.json").unlink()
    result = pilgrim("run", recipe)
    assert result.exit_code == 0, result.output
    assert "goes on from step 8 of 12" in result.output
    assert read_rows(run / "pretrain" / "events.jsonl")[2]["kind"] == "damaged_checkpoint"
    assert essence(run) == essence(walked)


def test_all_checkpoints_damaged(refused: Refused, run: Path, recipe: Path) -> None:
    (run / "pretrain" / "DONE.json").unlink()
    for file in (run / "pretrain" / "checkpoints").glob("*/model.safetensors"):
        flip_last_bit(file)
    told = refused("run", recipe)
    assert told == (
        "runs/tiny/pretrain/checkpoints: none of the 3 checkpoints is whole; remove the folder to begin anew"
    )


# Divergence ---------------------------------------------------------------------------------------


def test_divergence(
    refused: Refused, pilgrim: Pilgrim, recipe: Path, walked: Path, essence: Essence, tmp_path: Path
) -> None:
    huge = [f"optim.{kind}_lr=1e30" for kind in ("matrix", "embedding", "head", "norm")]
    told = refused("run", recipe, *huge, "--until", "pretrain")
    assert told.startswith("runs/tiny/pretrain: training diverged, at step 6 loss = ")  # the fifth in a row
    assert told.endswith("lower the learning rates of [optim] and run again with --accept-changes")
    run = tmp_path / "runs" / "tiny"
    assert read_rows(run / "pretrain" / "events.jsonl")[-1]["kind"] == "non_finite_loss"
    assert not (run / "pretrain" / "DONE.json").exists()
    result = pilgrim("run", recipe, "--until", "pretrain", "--accept-changes")
    assert result.exit_code == 0, result.output
    mine, theirs = essence(run), essence(walked)
    assert mine == {name: theirs[name] for name in mine}


# A system that says no ----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(5) is a folder on a disk of 5 MB; called again, its size changes. Only root can have one."""
    folder = tmp_path / "runs"
    folder.mkdir()

    def resized(megabytes: int) -> Path:
        options = f"{'remount,' if os.path.ismount(folder) else ''}size={megabytes}m"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if not sys.platform.startswith("linux") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("can't mount a small disk here; a limit on the size of files stands for it")
        return folder

    yield resized
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(
    small_disk: Callable[[int], Path],
    refused: Refused,
    pilgrim: Pilgrim,
    recipe: Path,
    walked: Path,
    essence: Essence,
) -> None:
    """The second checkpoint of pretraining finds no room; the first stays, and the run goes on from it."""
    run = small_disk(3) / "tiny"
    told = refused("run", recipe)
    assert told.startswith("step 6 could not be saved in runs/tiny/pretrain/checkpoints: the disk is full (")
    assert told.endswith(
        "MB free); make room and start again; the last good step, 4, is kept in "
        "runs/tiny/pretrain/checkpoints/step_000004"
    )
    CheckpointStore(run / "pretrain" / "checkpoints").load(4)
    small_disk(50)
    result = pilgrim("run", recipe)
    assert result.exit_code == 0, result.output
    assert "goes on from step 4 of 12" in result.output
    assert essence(run) == essence(walked)


def test_files_that_must_not_grow(
    refused: Refused, pilgrim: Pilgrim, run: Path, recipe: Path, walked: Path, essence: Essence
) -> None:
    """What stands for a full disk where no small one can be had."""
    (run / "midtrain" / "DONE.json").unlink()
    for step in (4, 6):
        shutil.rmtree(run / "midtrain" / "checkpoints" / f"step_{step:06d}")
    (run / "midtrain" / "checkpoints" / "LATEST").unlink()
    shutil.copytree(
        walked / "midtrain" / "checkpoints" / "step_000004", run / "midtrain" / "checkpoints" / "step_000004"
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        told = refused("run", recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.startswith("step 6 could not be saved in runs/tiny/midtrain/checkpoints: the file grew over")
    assert told.endswith("the last good step, 4, is kept in runs/tiny/midtrain/checkpoints/step_000004")
    assert pilgrim("run", recipe).exit_code == 0
    assert essence(run) == essence(walked)


@pytest.mark.usefixtures("walked")  # so that all is imported before the rights are gone
def test_no_permission(refused: Refused, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to nobody
        folder = Path(name)
        for file in recipe.parent.iterdir():
            shutil.copy(file, folder)
        (folder / recipe.name).write_text(recipe.read_text().replace(str(recipe.parent), name))
        (folder / "runs").mkdir()
        (folder / "runs").chmod(0o555)
        folder.chmod(0o755)
        monkeypatch.chdir(folder)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        try:
            told = refused("run", recipe.name)
        finally:
            if is_root:
                os.seteuid(0)
            (folder / "runs").chmod(0o755)
    assert told == (
        "runs/tiny could not be made: Permission denied; "
        "choose another folder or change the permissions of runs"
    )


# Stages out of order ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "missing"),
    [("shards", "tokenizer"), ("pretrain", "tokenizer"), ("sft", "midtrain"), ("evaluate", "tokenizer")],
)
def test_a_stage_before_its_time(
    refused: Refused, pilgrim: Pilgrim, recipe: Path, stage: str, missing: str
) -> None:
    if stage == "sft":
        assert pilgrim("run", recipe, "pretrain.steps=6", "--until", "pretrain").exit_code == 0
    told = refused("run", recipe, *(["pretrain.steps=6"] if stage == "sft" else []), "--only", stage)
    assert told == (
        f"runs/tiny/{missing} is not finished, and what comes after builds on it; run --until {missing} first"
    )


def test_evaluating_what_is_not_finished(refused: Refused, run: Path, recipe: Path) -> None:
    (run / "sft" / "DONE.json").unlink()
    expected = "runs/tiny/sft is not finished, and what comes after builds on it; run --until sft first"
    assert refused("run", recipe, "--only", "evaluate") == expected
    assert refused("eval", "tiny") == expected


def test_a_context_too_short_for_the_questions(refused: Refused, recipe: Path) -> None:
    """Prompts of the evaluation that don't fit are left out; if none fits, there is nothing to ask."""
    short = ["model.context=16", "pretrain.steps=6", "midtrain.steps=1", "sft.steps=3", "eval.questions=[]"]
    assert refused("run", recipe, *short) == (
        "assets:prompts/heldout.jsonl: no prompt fits into model.context = 16 tokens; train with a longer one"
    )


def test_an_override_with_a_list_is_toml(pilgrim: Pilgrim, recipe: Path) -> None:
    """The sentences above tell people to write lists; that has to work from a shell."""
    files = json.dumps([str(recipe.parent / "val.jsonl"), str(recipe.parent / "train.jsonl")])
    result = pilgrim("run", recipe, f"data.train={files}", "--until", "tokenizer")
    assert result.exit_code == 0, result.output


def test_conversations_longer_than_the_context_are_told(pilgrim: Pilgrim, recipe: Path) -> None:
    told = " ".join(pilgrim("run", recipe, "--until", "shards").output.split())
    assert re.search(r"\d+ of 40 conversations of chat_train are longer than the context of 128 tokens", told)
    assert re.search(r"cut into \d+ pieces; in \d+ of these nothing is learned: left out", told)
