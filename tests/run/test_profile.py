"""`pilgrim profile` on a real run: every stage, nothing else touched, and wrong input in one sentence."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.console import Console
from pilgrim.core.errors import SettingsError
from pilgrim.lab.profile.findings import Findings
from pilgrim.stages.profile import profile_stage

Pilgrim = Callable[..., Any]


def hashes(run: Path) -> dict[str, str]:
    files = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(run)): sha256(path.read_bytes()).hexdigest() for path in files}


def profiled(recipe: Path, runs: Path, *overrides: str, **options: Any) -> tuple[Findings, Path]:
    console = Console(quiet=True)
    return profile_stage(recipe, [*overrides], steps=2, warmup=1, runs=runs, console=console, **options)


@pytest.mark.parametrize("stage", ["pretrain", "midtrain", "sft", "generate"])
def test_a_stage_of_a_finished_run(recipe: Path, run: Path, stage: str) -> None:
    before = hashes(run)
    found, folder = profiled(recipe, run.parent, stage=stage)
    assert folder == run / "profile" / stage
    written = {"trace.json.gz", "profile.json", "recipe.toml", "provenance.json"}
    assert {file.name for file in folder.iterdir()} == written
    assert Findings.load(folder / "profile.json") == found
    assert found.recipe == "tiny" and found.stage == stage and found.steps == 2
    assert any("checkpoint of step" in note or "the model of sft" in note for note in found.notes)
    after = hashes(run)
    assert {name: found for name, found in after.items() if not name.startswith("profile/")} == before


def test_a_run_that_is_not_there_gets_tokenizer_and_shards_as_a_run_would(
    recipe: Path, tmp_path: Path, walk: Callable[..., Path]
) -> None:
    found, folder = profiled(recipe, tmp_path / "runs", out=tmp_path / "elsewhere")
    assert folder == tmp_path / "elsewhere"
    assert "Steps began from fresh weights." in found.notes
    run = tmp_path / "runs" / "tiny"
    assert not (run / "pretrain").exists() and not (run / "profile").exists()
    walk(tmp_path / "runs", until="pretrain")  # goes on as if nothing had happened
    assert (run / "pretrain" / "DONE.json").exists()


def test_another_shape_begins_fresh(recipe: Path, run: Path) -> None:
    found, _ = profiled(recipe, run.parent, "model.depth=1")
    assert "Steps began from fresh weights." in found.notes
    assert not any("layers.1" in layer.name for layer in found.layers)


@pytest.mark.parametrize(
    ("overrides", "options", "sentence"),
    [
        (
            [],
            {"stage": "shards"},
            "--stage shards: no stage of that name can be profiled; those are pretrain, midt",
        ),
        ([], {"steps": 0}, "--steps 0: at least one step is needed to see anything; try 5"),
        ([], {"warmup": 0}, "--warmup 0: the first step is never like the others"),
        (
            ["tokenizer.vocab_size=300"],
            {},
            r"another \[tokenizer\] \(tokenizer.vocab_size: 512 -> 300\); give this profile",
        ),
    ],
)
def test_wrong_input(
    recipe: Path, run: Path, overrides: list[str], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        profile_stage(recipe, overrides, runs=run.parent, console=Console(quiet=True), **options)


def test_a_stage_that_the_recipe_lacks(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text()
    without = tmp_path / "without.toml"
    without.write_text(text[: text.index("[midtrain]")])
    with pytest.raises(
        SettingsError, match=r"no \[sft\] table; add one, or profile one of pretrain, generate"
    ):
        profiled(without, tmp_path, stage="sft")


def test_the_command_line(pilgrim: Pilgrim, recipe: Path, run: Path) -> None:
    """It prints the summary, writes the page, explains words, and compares."""
    assert pilgrim("profile", recipe, "--steps", 1, "--warmup", 1).exit_code == 0
    assert (run / "profile" / "pretrain" / "index.html").exists()
    again = pilgrim("profile", recipe, "pretrain.micro_rows=4", "--steps", 2, "--warmup", 1, "--out", "other")
    assert again.exit_code == 0 and "other/index.html" in again.output
    compared = pilgrim("profile", "--diff", "tiny", "other")
    assert compared.exit_code == 0 and "pretrain.micro_rows" in compared.output
    assert "peak" in pilgrim("profile", "--explain", "MFU").output
    refused = pilgrim("profile")
    assert refused.exit_code == 2 and "needs a recipe, --diff A B, or --explain TERM" in refused.stderr
