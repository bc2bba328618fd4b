"""The walk's own rules: which stages, what counts as done, who may write, and when a recipe may change."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pilgrim.core.config import build, dump_toml
from pilgrim.core.console import Console
from pilgrim.core.errors import ChangedRecipe, CheckpointError, DataError, PilgrimError, SettingsError
from pilgrim.core.files import read_json
from pilgrim.core.runlog import read_rows
from pilgrim.core.runtime import Runtime
from pilgrim.stages.journey import (
    Journey,
    begun,
    chosen,
    finished,
    only_writer,
    refuse_changes,
    refuse_older,
    run_stage,
)
from pilgrim.stages.recipe import Recipe


def recipe(**tables: Any) -> Recipe:
    return build(Recipe, {"name": "x", **tables}, "x.toml").resolved()


@pytest.fixture
def journey(tmp_path: Path) -> Journey:
    """On two files of a few words."""
    files = [tmp_path / "train.txt", tmp_path / "val.txt"]
    for file, text in zip(files, ("the cat sat on the mat ", "a cat "), strict=True):
        file.write_text(text * 9)
    data = {"train": [str(files[0])], "val": [str(files[1])]}
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
    small = recipe(data=data, tokenizer={"vocab_size": 280})
    return Journey(small, tmp_path / "x", runtime, Console(quiet=True))


# Which stages -------------------------------------------------------------------------------------


def test_the_stages_are_those_of_the_recipe() -> None:
    assert chosen(recipe(), None, None) == ["tokenizer", "shards", "pretrain", "evaluate"]
    whole = recipe(midtrain={}, sft={"steps": 9})
    assert chosen(whole, None, None) == ["tokenizer", "shards", "pretrain", "midtrain", "sft", "evaluate"]
    assert chosen(whole, None, "midtrain") == ["tokenizer", "shards", "pretrain", "midtrain"]
    assert chosen(whole, None, "evaluate") == chosen(whole, None, None)
    assert chosen(whole, "sft", None) == ["sft"]


@pytest.mark.parametrize("stage", ["sft", "report", ""])
def test_a_stage_that_the_recipe_does_not_have(stage: str) -> None:
    for only, until in ((stage, None), (None, stage)):
        with pytest.raises(SettingsError, match="has no such stage; it has tokenizer, shards, pretrain, ev"):
            chosen(recipe(), only, until)


# Done ---------------------------------------------------------------------------------------------


def test_a_stage_is_done_once(journey: Journey) -> None:
    with pytest.raises(PilgrimError, match=r"x/tokenizer is not finished, .*; run --until tokenizer first"):
        finished(journey, "tokenizer")
    run_stage(journey, "tokenizer")
    done = read_json(journey.folder / "tokenizer" / "DONE.json")
    assert done["stage"] == "tokenizer"
    assert 0 < done["elapsed_s"] < 60
    assert finished(journey, "tokenizer") == done["summary"]
    assert done["summary"]["vocab_size"] == 280

    (journey.folder / "tokenizer" / "tokenizer.json").unlink()
    run_stage(journey, "tokenizer")
    run_stage(journey, "tokenizer", again=True)  # only an evaluation is made again
    assert not (journey.folder / "tokenizer" / "tokenizer.json").exists()


def test_a_stage_that_fails_is_not_done(journey: Journey) -> None:
    Path(journey.recipe.data.train[0]).write_text("")
    with pytest.raises(DataError, match="no train document is left"):
        run_stage(journey, "tokenizer")
    assert not begun(journey.folder)


def test_an_older_checkpoint_is_no_end_of_a_stage(journey: Journey) -> None:
    with pytest.raises(CheckpointError) as error:
        refuse_older(journey, "pretrain")("step 9 is damaged; the one before is tried")
    assert str(error.value) == (
        "step 9 is damaged; the one before is tried, but pretrain had ended with the damaged one; "
        f"delete {journey.folder / 'pretrain' / 'DONE.json'} and run again to train its end anew"
    )


# Changes ------------------------------------------------------------------------------------------


def test_begun_is_what_has_something_to_lose(tmp_path: Path) -> None:
    assert not begun(tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    (tmp_path / "pretrain" / "checkpoints").mkdir(parents=True)
    (tmp_path / "pretrain" / "metrics.jsonl").write_text("")
    assert not begun(tmp_path)
    (tmp_path / "pretrain" / "checkpoints" / "step_000004").mkdir()
    assert begun(tmp_path)
    (tmp_path / "other" / "tokenizer").mkdir(parents=True)
    (tmp_path / "other" / "tokenizer" / "DONE.json").write_text("{}")
    assert begun(tmp_path / "other")


def test_a_change_is_named_and_needs_leave(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(dump_toml(recipe()))
    refuse_changes(tmp_path, recipe(), accept_changes=False)
    changed = recipe(model={"depth": 5}, sft={"steps": 8})
    refuse_changes(tmp_path, changed, accept_changes=True)
    (event,) = read_rows(tmp_path / "events.jsonl")
    assert event["kind"] == "changed_recipe" and event["changes"]  # what it was before is not forgotten
    with pytest.raises(ChangedRecipe) as error:
        refuse_changes(tmp_path, changed, accept_changes=False)
    sentence = str(error.value)
    for part in ("model.depth: 4 -> 5; model.width: 256 -> 320", "sft.steps: not set -> 8"):
        assert part in sentence
    assert "\n" not in sentence


# One writer ---------------------------------------------------------------------------------------


def test_two_can_not_write(tmp_path: Path) -> None:
    with only_writer(tmp_path / "x"):
        with pytest.raises(PilgrimError, match="x: another process is at work in this run; wait for it"):
            only_writer(tmp_path / "x").__enter__()
        with only_writer(tmp_path / "y"):
            pass
    with only_writer(tmp_path / "x"):
        pass


def test_the_run_is_free_again_after_an_error(tmp_path: Path) -> None:
    """What goes wrong inside is passed on as it is, also if it is the system's no to something else."""
    with pytest.raises(FileNotFoundError), only_writer(tmp_path / "x"):
        (tmp_path / "nowhere").read_text()
    with only_writer(tmp_path / "x"):
        pass


def test_a_file_where_the_run_should_be(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(PilgrimError, match="x could not be made: File exists"):
        only_writer(tmp_path / "x").__enter__()
