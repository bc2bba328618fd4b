"""Dry runs of the recipes for assistants: every stage, on stand-ins, with no network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.files import read_json
from pilgrim.core.runlog import read_rows
from pilgrim.stages.journey import chosen
from pilgrim.stages.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["chat-d12", "chat-d20"])
def test_all_stages_of_a_recipe(
    name: str, pilgrim: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilgrim.data.hub.fetched", None)  # who asks the hub falls
    file = RECIPES / f"{name}.toml"
    said = pilgrim("run", file, "--dry-run")
    assert said.exit_code == 0, said.output
    assert "datasets.gsm8k: 40 made rows, gsm8k, instead of main/train-00000-of-00001.parquet" in said.output
    run = tmp_path / "runs" / f"{name}-dry-run"
    real = load_recipe(file, [])
    for stage in chosen(real, None, None):
        assert read_json(run / stage / "DONE.json")["stage"] == stage
    small = load_recipe(run / "recipe.toml", [])
    assert small.midtrain and real.midtrain and small.midtrain.mixture == real.midtrain.mixture
    assert small.sft and real.sft and small.sft.mixture == real.sft.mixture
    (held_out,) = read_rows(run / "rl" / "evals.jsonl")[-1]["held_out"]
    assert held_out == "gsm8k" and small.rl and small.rl.tasks["gsm8k"].prompts == "dataset:gsm8k"


def test_preferences_and_rewards_are_walked_through(pilgrim: Callable[..., Any], tmp_path: Path) -> None:
    missing = 'rl.tasks.counting={kind="gsm8k",prompts="nowhere.jsonl",tools=true}'
    said = pilgrim("run", RECIPES / "pocket.toml", "dpo.steps=20", missing, "--dry-run")
    assert said.exit_code == 0, said.output
    assert "instead of nowhere.jsonl" in " ".join(said.output.split())
    for stage in ("dpo", "rl", "evaluate"):
        assert (tmp_path / "runs" / "pocket-dry-run" / stage / "DONE.json").exists()


def test_what_is_here_is_cut_and_what_is_not_is_made(
    recipe: Path, pilgrim: Callable[..., Any], tmp_path: Path
) -> None:
    missing = ["data.val=[]", "data.val_share=0.1", 'data.conversations=["not/here.jsonl.zst"]']
    said = pilgrim("run", recipe, "--dry-run", "--until", "shards", *missing)
    assert said.exit_code == 0, said.output
    assert "data.train: the first 40 rows of" in said.output
    assert "data.conversations: 40 made rows, conversations, instead of not/here.jsonl.zst" in said.output
    run = tmp_path / "runs" / "tiny-dry-run"
    (run / "mine.txt").write_text("gone, as this is a dry run")
    assert pilgrim("run", recipe, "--dry-run", "--until", "tokenizer").exit_code == 0
    assert not (run / "mine.txt").exists() and not (run / "shards").exists()


def test_what_is_made_for_validation_is_not_what_is_made_for_training(
    recipe: Path, pilgrim: Callable[..., Any], tmp_path: Path
) -> None:
    missing = ['data.train=["not/here.jsonl"]', 'data.val=["nor/here.jsonl"]']
    said = pilgrim("run", recipe, "--dry-run", "--until", "shards", *missing)
    assert said.exit_code == 0, said.output
    assert "training documents are validation documents too" not in said.output


def test_another_run_is_not_thrown_away(recipe: Path, pilgrim: Callable[..., Any], tmp_path: Path) -> None:
    mine = tmp_path / "runs" / "tiny-dry-run" / "recipe.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    said = pilgrim("run", recipe, "--dry-run")
    assert said.exit_code == 2 and "is there and no dry run" in said.output
    assert mine.read_text() == "mine"
    assert "data.vol is not a setting" in pilgrim("run", recipe, "--dry-run", "data.vol=1").output
