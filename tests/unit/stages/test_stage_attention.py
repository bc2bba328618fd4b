"""The attention that a run began with is the one it goes on with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pilgrim.core.console import Console
from pilgrim.core.files import write_json_atomic
from pilgrim.core.runlog import RunLog, read_rows
from pilgrim.core.runtime import Runtime
from pilgrim.model.attention_choice import on_a_cpu
from pilgrim.model.config import ModelSettings
from pilgrim.stages.attention import attention_key, chosen_attention
from pilgrim.stages.journey import Journey
from pilgrim.stages.recipe import Recipe

CONFIG = ModelSettings(depth=2, width=32, head_size=16, context=64, window=8).config(40)
CPU = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)


@pytest.fixture
def journey(tmp_path: Path) -> Journey:
    return Journey(Recipe(name="some"), tmp_path, CPU, Console(quiet=True))


def remember(journey: Journey, backend: str, rows: int) -> None:
    """As a run leaves it that has timed something: JSON, in its folder."""
    entry = {"for": attention_key(journey.runtime, CONFIG, rows), "backend": backend}
    write_json_atomic(journey.folder / "attention.json", [{**entry, "milliseconds": {}, "left_out": {}}])


def test_what_was_timed_before_is_taken_again(journey: Journey) -> None:
    remember(journey, "reference", rows=4)
    log, usual = RunLog(journey.folder / "pretrain"), on_a_cpu(CPU).backend
    assert chosen_attention(journey, CONFIG, 4, log, journey.folder).backend == "reference"
    assert chosen_attention(journey, CONFIG, 2, log, journey.folder).backend == usual  # another shape


def test_what_this_machine_cannot_do_is_not_taken(journey: Journey) -> None:
    remember(journey, "varlen", rows=4)
    assert (
        chosen_attention(journey, CONFIG, 4, RunLog(journey.folder), journey.folder).backend
        == on_a_cpu(CPU).backend
    )


def test_a_choice_of_ones_own_is_told(journey: Journey) -> None:
    asked = replace(journey, runtime=replace(CPU, attention="reference"))
    assert chosen_attention(asked, CONFIG, 4, RunLog(journey.folder), journey.folder).backend == "reference"
    [event] = read_rows(journey.folder / "events.jsonl")
    assert (event["kind"], event["backend"]) == ("attention", "reference")
