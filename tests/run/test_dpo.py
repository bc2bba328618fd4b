"""The stage `dpo` in a walk: what it leaves, that it goes on to the same bits, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import ChangedRecipe, DataError
from pilgrim.core.files import read_json
from pilgrim.core.runlog import read_rows
from pilgrim.infer.load import newest_stage

Walk = Callable[..., Path]


@pytest.fixture(scope="module")
def preferred(
    walk: Walk, walked: Path, preferences: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The walk, and then the stage, which its recipe did not have."""
    runs = tmp_path_factory.mktemp("preferred")
    shutil.copytree(walked, runs / "tiny")
    return walk(runs, *preferences, accept_changes=True, until="dpo")


def test_it_leaves_what_every_stage_leaves_and_more(preferred: Path, walked: Path) -> None:
    folder = preferred / "dpo"
    steps = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in steps] == list(range(1, 7))
    assert steps[0]["loss"] == pytest.approx(np.log(2), rel=1e-3)  # nothing is preferred yet
    assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["margin"] > 0
    assert all(row["margin"] == pytest.approx(row["reward_chosen"] - row["reward_rejected"]) for row in steps)
    assert all(row["pairs"] >= 2 and 0 <= row["accuracy"] <= 1 and row["kl_chosen"] >= 0 for row in steps)
    evals = read_rows(folder / "evals.jsonl")
    assert [row["step"] for row in evals] == [0, 3, 6]
    before, after = evals[0], evals[-1]
    assert before["pairs"] == after["pairs"] == read_json(folder / "pairs/val.json")["documents"] // 2
    assert (before["pair_margin"], before["pair_accuracy"]) == (0, 0)
    assert after["pair_accuracy"] > 0.5 and after["pair_margin_error"] > 0
    assert {"bpb", "chat_bpb"} <= after.keys()
    assert before["bpb"] == read_rows(preferred / "sft" / "evals.jsonl")[-1]["bpb"]
    assert read_json(folder / "DONE.json")["summary"]["pair_margin"] == after["pair_margin"]
    assert newest_stage(preferred) == "dpo"
    figure = 'data-chart="margin"'
    assert figure in (preferred / "report.html").read_text()
    assert figure not in (walked / "report.html").read_text()  # of a run without this stage


def without_its_end(preferred: Path, folder: Path) -> Path:
    """A copy that was stopped in the middle of the stage."""
    run = shutil.copytree(preferred, folder / "tiny")
    (run / "dpo" / "DONE.json").unlink()
    store = CheckpointStore(run / "dpo" / "checkpoints")
    shutil.rmtree(store.folder / f"step_{store.steps()[-1]:06d}")
    return run


def test_it_goes_on_to_the_same_bits(
    preferred: Path, walk: Walk, preferences: list[str], essence: Any, tmp_path: Path
) -> None:
    run = without_its_end(preferred, tmp_path)
    reference = run / "dpo" / "pairs" / "train.reference.npy"
    before = reference.stat().st_mtime_ns
    walk(tmp_path, *preferences, until="dpo")
    assert reference.stat().st_mtime_ns == before  # what was computed is found
    assert essence(run) == essence(preferred)


def test_a_changed_beginning_is_noticed(
    preferred: Path, walk: Walk, preferences: list[str], tmp_path: Path
) -> None:
    run = without_its_end(preferred, tmp_path)
    shutil.rmtree(run / "sft")
    shutil.copytree(run / "midtrain", run / "sft")
    with pytest.raises(ChangedRecipe, match=r"reference\.json: the weights that the stage began with"):
        walk(tmp_path, *preferences, until="dpo")
    shutil.rmtree(run / "dpo" / "checkpoints")  # nothing was learned against the old ones: new ones are made
    walk(tmp_path, *preferences, until="dpo")
    assert read_rows(run / "dpo" / "metrics.jsonl")[0]["loss"] == pytest.approx(np.log(2), rel=1e-3)


def test_changed_pairs_are_noticed(
    preferred: Path, walk: Walk, preferences: list[str], recipe: Path, tmp_path: Path
) -> None:
    run = without_its_end(preferred, tmp_path)
    few = tmp_path / "few.jsonl"
    few.write_text(
        "".join(line + "\n" for line in (recipe.parent / "pairs.jsonl").read_text().split("\n")[:12])
    )
    others = [*preferences, f"dpo.pairs={json.dumps([str(few)])}"]
    with pytest.raises(ChangedRecipe, match=r"pairs\.json: the stage has begun with other pairs"):
        walk(tmp_path, *others, until="dpo", accept_changes=True)
    assert (run / "dpo" / "pairs" / "train.json").exists()


def test_pairs_that_are_too_long_are_left_out(
    walked: Path, walk: Walk, preferences: list[str], recipe: Path, tmp_path: Path
) -> None:
    shutil.copytree(walked, tmp_path / "tiny")
    long = tmp_path / "long.jsonl"
    pair = {"prompt": "Hi", "chosen": "A long story. " * 40, "rejected": "No."}
    long.write_text(json.dumps(pair) + "\n")
    both = json.dumps([str(recipe.parent / "pairs.jsonl"), str(long)])
    run = walk(
        tmp_path, *preferences, f"dpo.pairs={both}", "dpo.val_share=0.2", accept_changes=True, until="dpo"
    )
    held = sum(read_json(run / "dpo/pairs" / f"{name}.json")["documents"] for name in ("train", "val"))
    assert held == 2 * 20
    shutil.rmtree(run / "dpo")
    with pytest.raises(DataError, match=r"none of the 1 pairs fits into model\.context = 128 tokens"):
        held_out = f"dpo.pairs_val={json.dumps([str(recipe.parent / 'pairs.jsonl')])}"
        only = f"dpo.pairs={json.dumps([str(long)])}"
        walk(tmp_path, *preferences, only, held_out, "dpo.val_share=0", accept_changes=True, until="dpo")


@pytest.mark.parametrize("loss", ["dpo_norm", "apo_zero"])
def test_the_other_losses_learn_too(
    loss: str, walked: Path, walk: Walk, preferences: list[str], tmp_path: Path
) -> None:
    shutil.copytree(walked, tmp_path / "tiny")
    more = [f"dpo.loss={loss}", "dpo.sft_weight=0.1"]
    run = walk(tmp_path, *preferences, *more, accept_changes=True, until="dpo")
    steps = read_rows(run / "dpo" / "metrics.jsonl")
    assert steps[-1]["preference_loss"] < steps[0]["preference_loss"]
