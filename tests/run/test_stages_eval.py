"""`pilgrim eval --stages`: all stages asked the same, a file, two tables, a section in the report."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.files import read_json
from pilgrim.lab.report import write_report

Pilgrim = Callable[..., Any]


def test_every_stage_is_measured_and_compared(
    run: Path, pilgrim: Pilgrim, essence: Callable[[Path], dict[str, str]]
) -> None:
    before = essence(run)
    told = pilgrim("eval", "tiny", "--stages", "--suite", "behaviour")
    assert told.exit_code == 0, told.output
    for line in ("midtrain minus pretrain", "sft minus midtrain", "asked as chatbots: midtrain, sft"):
        assert line in told.output
    result = read_json(run / "evaluate" / "stages.json")
    (run / "evaluate" / "stages.json").unlink()
    assert essence(run) == before  # nothing else was touched
    measures = {measure["name"]: measure for measure in result["measures"]}
    # The same numbers as those of the walk's last stage.
    walked = read_json(run / "evaluate" / "result.json")
    for stage in ("pretrain", "midtrain", "sft"):
        assert measures["text"]["values"][stage]["value"] == pytest.approx(walked["bpb"][stage]["bpb"])
    for name, share in walked["behaviour"].items():
        assert measures[name]["values"]["sft"]["value"] == share["share"]
        assert measures[name]["values"].keys() == {"midtrain", "sft"}
    assert measures["conversations"]["changes"]["midtrain"]["since"] == "pretrain"


def test_questions_are_asked_of_those_who_can_be_asked(run: Path, pilgrim: Pilgrim) -> None:
    told = pilgrim("eval", "tiny", "--stages", "--suite", "core", "--items", "1")
    assert told.exit_code == 0, told.output
    measures = read_json(run / "evaluate" / "stages.json")["measures"]
    assert all(measure["values"].keys() == {"pretrain", "midtrain", "sft"} for measure in measures)
    assert measures[0]["name"] == "CORE-slice (20 of 22 tasks, 1 item each)"
    told = pilgrim("eval", "tiny", "--stages", "--suite", "chat", "--items", "1")
    assert told.exit_code == 0, told.output
    measures = read_json(run / "evaluate" / "stages.json")["measures"]
    assert all(measure["values"].keys() == {"midtrain", "sft"} for measure in measures)
    assert "chat mean over" in write_report(run).read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--compare", "tiny"], "--stages is about the stages of one run, and goes with --suite, --items"),
        (["--suite", "mine.toml"], "--suite mine.toml can't be asked of every stage; try behaviour, core"),
        (["--data", "here"], "--data here needs to know whose tasks they are; add --suite core or chat"),
    ],
)
def test_what_does_not_go_together(run: Path, pilgrim: Pilgrim, arguments: list[str], sentence: str) -> None:
    told = pilgrim("eval", "tiny", "--stages", *arguments)
    assert (told.exit_code, sentence in " ".join(told.output.split())) == (2, True), told.output


def test_a_change_takes_two_stages(run: Path, pilgrim: Pilgrim) -> None:
    for stage in ("midtrain", "sft"):
        shutil.rmtree(run / stage)
    told = pilgrim("eval", "tiny", "--stages")
    assert told.exit_code == 2
    assert "1 of its stages is finished, and a change takes two" in " ".join(told.output.split())
