"""`pilgrim eval --hf`: an exported run is asked what the run is asked, and answers the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.files import read_json

Pilgrim = Callable[..., Any]


def test_an_export_is_asked_and_compared(run: Path, pilgrim: Pilgrim) -> None:
    assert pilgrim("export", "tiny", "--to", "hf", "--out", "out").exit_code == 0
    before = {file.name: file.read_bytes() for file in Path("out").iterdir()}
    assert pilgrim("eval", "tiny", "--suite", "core", "--items", "1").exit_code == 0
    told = pilgrim("eval", "--hf", "out", "--items", "1", "--compare", "tiny")
    assert told.exit_code == 0, told.output
    assert "a context of 128 tokens; every text begins with <|endoftext|>" in told.output.replace("\n", " ")
    assert "CORE-slice (20 of 22 tasks, 1 item each)" in told.output
    assert "hf-out minus tiny, over the items that both were asked" in told.output
    ours = read_json(run / "evaluate" / "core.json")
    theirs = read_json(run.parent / "hf-out" / "evaluate" / "core.json")
    for name, task in theirs["tasks"].items():
        assert task["mean_log_probs"] == ours["tasks"][name]["mean_log_probs"]  # all the digits that are kept
        assert task["right"] == ours["tasks"][name]["right"]
    assert (theirs["stage"], theirs["begin"]) == ("out", "<|endoftext|>")
    assert {file.name: file.read_bytes() for file in Path("out").iterdir()} == before

    told = pilgrim("eval", "--hf", "out", "--context", "64", "--items", "1", "--compare", "hf-out")
    assert told.exit_code == 0, told.output
    assert "longer than the context of 64 tokens" in told.output


def test_the_chat_suite_with_an_export(run: Path, pilgrim: Pilgrim) -> None:
    assert pilgrim("export", "tiny", "--to", "hf", "--out", "out").exit_code == 0
    told = pilgrim("eval", "--hf", "out", "--suite", "chat", "--items", "1")
    assert told.exit_code == 0, told.output
    assert "spelling" in read_json(run.parent / "hf-out" / "evaluate" / "chat.json")["tasks"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to measure: give a run, such as pocket, or --hf FOLDER"),
        (["tiny", "--hf", "out"], "tiny and --hf out are two models; leave one of them out"),
        (
            ["tiny", "--context", "64"],
            "--context is for --hf; a run has the context that it was trained with",
        ),
        (["--hf", "out", "--suite", "behaviour"], "--suite behaviour needs a run; with --hf there are core"),
        (["--hf", "out", "--text", "a.txt"], "--text needs a run; with --hf there are the suites core and"),
        (["--hf", "nowhere"], "nowhere/config.json: there is no such file; give a Hugging Face folder"),
        (
            ["tiny", "--harness", "piqa", "--suite", "core"],
            "--harness has prompts, data and judgement of its",
        ),
    ],
)
def test_what_cannot_be_done(run: Path, pilgrim: Pilgrim, arguments: list[str], sentence: str) -> None:
    told = pilgrim("eval", *arguments)
    assert told.exit_code == 2, told.output
    assert sentence in told.output.replace("\n", " ")
    assert not (run.parent / "hf-out").exists() and not (run.parent / "hf-nowhere").exists()
