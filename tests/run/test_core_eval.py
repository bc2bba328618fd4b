"""`pilgrim eval --suite core` on a run: a table, a file, a comparison, a section in the report."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.files import read_json
from pilgrim.evals.core_tasks import BUNDLED
from pilgrim.lab.report import write_report

Pilgrim = Callable[..., Any]


def test_asked_compared_and_reported(
    run: Path, walked: Path, pilgrim: Pilgrim, essence: Callable[[Path], dict[str, str]]
) -> None:
    before = essence(run)
    told = pilgrim("eval", "tiny", "--suite", "core", "--items", "2")
    assert told.exit_code == 0, told.output
    assert "CORE-slice (20 of 22 tasks, 2 items each)" in told.output
    assert "no data for jeopardy, coqa" in told.output
    assert "longer than the context of 128 tokens and lost their beginning" in told.output
    result = read_json(run / "evaluate" / "core.json")
    assert (result["stage"], result["data"], result["context"]) == ("sft", "bundled", 128)
    assert len(result["tasks"]["arc_easy"]["mean_log_probs"]) == 2
    (run / "evaluate" / "core.json").rename(run / "core.json")
    assert essence(run).items() >= before.items()  # nothing else was touched

    assert pilgrim("eval", "tiny", "--suite", "core", "--items", "2").exit_code == 0
    assert read_json(run / "evaluate" / "core.json") == result  # the same again

    shutil.copytree(run, run.parent / "other")
    shutil.rmtree(run.parent / "other" / "sft")  # its newest model is another one now
    told = pilgrim("eval", "other", "--suite", "core", "--items", "3", "--compare", "tiny")
    assert told.exit_code == 0, told.output
    assert "other minus tiny, over the items that both were asked" in told.output
    assert "mean of the centered accuracies: " in told.output
    assert read_json(run.parent / "other" / "evaluate" / "core.json")["stage"] == "midtrain"
    assert "Questions with known answers" in write_report(run).read_text()


def test_data_of_ones_own(run: Path, pilgrim: Pilgrim, tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "commonsense_reasoning", tmp_path / "mine" / "commonsense_reasoning")
    told = pilgrim("eval", "tiny", "--suite", "core", "--items", "1", "--data", "mine")
    assert told.exit_code == 0, told.output
    assert "CORE-slice (4 of 22 tasks, 1 item each)" in told.output
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("assets:evals/core", str(tmp_path / "mine")))
    told = pilgrim("eval", "tiny", "--suite", "core", "--items", "1")
    assert "CORE-slice (4 of 22 tasks, 1 item each)" in told.output
    assert read_json(run / "evaluate" / "core.json")["data"] == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--data", "nowhere"],
            "nowhere holds no task of CORE, such as world_knowledge/arc_easy.jsonl; give",
        ),
        (["--suite", "behaviour", "--items", "5"], "--items, --data and --compare are about questions with"),
        (["--data", "here", "--fetch"], "--fetch and --data here contradict each other; leave one of them"),
        (["--items", "1", "--compare", "base"], "runs/base/evaluate/core.json is missing, and there is"),
        (["--compare", "nobody"], "nobody is no run, neither below runs/ nor as a path"),
    ],
)
def test_what_cannot_be_done(run: Path, pilgrim: Pilgrim, arguments: list[str], sentence: str) -> None:
    (run.parent / "base").mkdir()
    (run.parent / "base" / "recipe.toml").write_text('name = "base"')
    told = pilgrim("eval", "tiny", "--suite", "core", *arguments)
    assert told.exit_code == 2, told.output
    assert "CORE-slice" not in told.output  # it is refused before minutes are spent
    assert sentence in told.output.replace("\n", " ")
