"""`pilgrim eval --suite chat` and `--suite PATH`: a table, a file, a comparison, a section in the report."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.config import load_toml
from pilgrim.core.files import read_json
from pilgrim.infer.sandbox import refusal
from pilgrim.lab.report import write_report

Pilgrim = Callable[..., Any]
OWN = """
[[question]]
prompt = "What is your name?"
regex = "(?i)pilgrim"

[[question]]
prompt = "Which of these is a mammal?"
choices = ["a trout", "a bat"]
answer = "a bat"
"""


def test_asked_compared_and_reported(run: Path, pilgrim: Pilgrim) -> None:
    told = pilgrim("eval", "tiny", "--suite", "chat", "--items", "2")
    assert told.exit_code == 0, told.output
    for expected in (
        "chat mean over arc_easy, arc_challenge, mmlu, gsm8k",
        "(up to 2 items each)",
        "model of sft",
    ):
        assert expected in told.output.replace("\n", " ")
    assert "instructions, loose" in told.output
    assert "longer than the context of 128 tokens and lost their beginning" in told.output
    assert (refusal() is not None) == ("left out: humaneval" in told.output)
    result = read_json(run / "evaluate" / "chat.json")
    assert (result["stage"], result["data"], result["context"]) == ("sft", "bundled", 128)
    assert len(result["tasks"]["gsm8k"]["replies"]) == 2

    shutil.copytree(run, run.parent / "other")
    shutil.rmtree(run.parent / "other" / "sft")  # its newest model is another one now
    told = pilgrim("eval", "other", "--suite", "chat", "--items", "2", "--compare", "tiny")
    assert told.exit_code == 0, told.output
    assert "other minus tiny, over the items that both were asked" in told.output
    assert "mean of the centered accuracies of arc_easy, arc_challenge, mmlu" in told.output.replace(
        "\n", " "
    )
    page = write_report(run).read_text()
    assert "The chat suite" in page and "Answers to read" in page and "right would be: " in page


def test_questions_of_ones_own(run: Path, pilgrim: Pilgrim, tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "mine.toml").write_text(OWN)
    for arguments in (["--suite", "evals/mine.toml"], ["--suite", "evals"]):
        told = pilgrim("eval", "tiny", *arguments)
        assert told.exit_code == 0, told.output
        assert "chat mean over mine (all items)" in told.output and "mine_by_likelihood" in told.output
    result = read_json(run / "evaluate" / "own-mine.json")
    assert result["tasks"] == read_json(run / "evaluate" / "own-evals.json")["tasks"]
    assert result["tasks"]["mine"]["lines"] == [2, 6]
    told = pilgrim("eval", "tiny", "--suite", "evals/mine.toml", "--compare", "tiny")
    assert "mean of the centered accuracies of mine: +0.0000" in told.output.replace("\n", " ")
    assert "Your questions: mine" in write_report(run).read_text()


def test_questions_that_were_read_in_training_are_told(run: Path, pilgrim: Pilgrim, tmp_path: Path) -> None:
    """One of two is the beginning of a training document."""
    data = load_toml(run / "recipe.toml")["data"]["train"][0]
    read = " ".join(json.loads(Path(data).read_text().splitlines()[0])["text"].split()[:25])
    rows = [
        {"prompt": f"Go on: {read}", "exact": "no"},
        {"prompt": "What is seven times eight?", "exact": "56"},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = pilgrim("eval", "tiny", "--suite", "mine.jsonl")
    assert told.exit_code == 0, told.output
    assert "mine: 1 of 2 items overlap the training text; the others: " in told.output.replace("\n", " ")
    task = read_json(run / "evaluate" / "own-mine.json")["tasks"]["mine"]
    assert task["contamination"]["lines"] == [1] and task["contamination"]["too_short"] == 1
    assert task["clean"]["n"] == 1
    page = write_report(run).read_text()
    assert "1 item overlaps the training text" in page and "1 in the training text: " in page
    pilgrim("eval", "tiny", "--suite", "mine.jsonl", "--no-contamination")
    assert "contamination" not in read_json(run / "evaluate" / "own-mine.json")["tasks"]["mine"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--suite", "cores"],
            "cores does not exist, and is no suite either; give core, chat, behaviour, all,",
        ),
        (["--suite", "bad.toml"], 'bad.toml, line 3: "prompt" is missing where there must be text'),
        (["--suite", "chat", "--data", "nowhere"], "nowhere holds no task of the chat suite, such as gsm8k/"),
        (["--suite", "chat", "--fetch"], "--fetch is about CORE's tasks, and --suite chat has none of them"),
        (["--data", "here"], "--data here needs to know whose tasks they are; add --suite core or --suite"),
        (["--suite", "chat", "--compare", "base"], "runs/base/evaluate/chat.json is missing, and there is"),
    ],
)
def test_what_cannot_be_done(run: Path, pilgrim: Pilgrim, arguments: list[str], sentence: str) -> None:
    (run.parent / "base").mkdir()
    (run.parent / "base" / "recipe.toml").write_text('name = "base"')
    (run.parent.parent / "bad.toml").write_text('\n\n[[question]]\nexact = "a"\n')
    told = pilgrim("eval", "tiny", *arguments)
    assert told.exit_code == 2, told.output
    assert "chat mean" not in told.output  # it is refused before minutes are spent
    assert sentence in told.output.replace("\n", " ")
