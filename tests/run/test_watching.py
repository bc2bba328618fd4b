"""Accuracy while it trains: with its error, the same items every time, none that was read, no run lost."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pilgrim.core import runtime as machine
from pilgrim.core.config import build, load_toml
from pilgrim.core.console import Console
from pilgrim.core.errors import DataError, SettingsError
from pilgrim.core.files import read_json
from pilgrim.core.runlog import RunLog, read_rows
from pilgrim.evals.core import read_exams
from pilgrim.evals.core_tasks import TASKS
from pilgrim.infer.load import load_model
from pilgrim.stages.contamination import in_training_text
from pilgrim.stages.journey import Journey
from pilgrim.stages.recipe import Recipe
from pilgrim.stages.watching import Watching
from pilgrim.text.tokenizer import Tokenizer

Walk = Callable[..., Path]
Pilgrim = Callable[..., Any]
COPA = [task for task in TASKS if task.name == "copa"]
WATCH = ('eval.watch=["copa", "winograd"]', "eval.watch_items=5")


@pytest.fixture(scope="module")
def watched(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return walk(tmp_path_factory.mktemp("watched"), *WATCH, "eval.watch_full=true", until="pretrain")


def test_every_evaluation_has_its_accuracies(watched: Path) -> None:
    rows = read_rows(watched / "pretrain" / "evals.jsonl")
    assert [row["step"] for row in rows] == [0, 6, 12]
    for row in rows:
        assert list(row["watch"]) == ["copa", "winograd"]
        for task in row["watch"].values():
            p, n = task["accuracy"], task["n"]
            assert n == (100 if row["step"] == 12 else 5)  # a stage's end: all of them
            assert task["standard_error"] == pytest.approx((p * (1 - p) / n) ** 0.5)
            assert task["low"] <= p <= task["high"]
            assert (task["chance"], task["left_out"]) == (0.5, 0)
        assert sum(source["bytes"] for source in row["sources"].values()) > 0
    summary = read_json(watched / "pretrain" / "DONE.json")["summary"]
    assert summary["bpb"] == rows[-1]["bpb"]
    assert not {"watch", "sources"} & set(summary)


def test_watching_changes_no_training(watched: Path, walked: Path) -> None:
    first, second = ((run / "pretrain" / "metrics.jsonl").read_bytes() for run in (watched, walked))
    assert first == second


def test_the_same_seed_asks_the_same_items(watched: Path, walk: Walk, tmp_path: Path) -> None:
    again = walk(tmp_path, *WATCH, "eval.watch_full=true", until="pretrain")
    rows = [(run / "pretrain" / "evals.jsonl").read_bytes() for run in (watched, again)]
    assert rows[0] == rows[1]


def looking(run: Path, log: Path, **settings: Any) -> Watching:
    recipe = build(Recipe, load_toml(run / "recipe.toml"), "")
    recipe = recipe.model_copy(update={"eval": recipe.eval.model_copy(update=settings)})
    journey = Journey(recipe, run, machine.start(recipe.runtime, recipe.seed), Console(quiet=True))
    return Watching(
        journey, Tokenizer.load(run / "tokenizer"), RunLog(log), log, steps=12, every=3, chat=True
    )


def test_when_it_is_asked(run: Path, tmp_path: Path) -> None:
    model = load_model(run / "sft")
    often = looking(run, tmp_path / "a", watch=("copa",), watch_items=3, watch_every=2)
    assert [bool(often.look(model, step)) for step in (0, 3, 6, 9, 12)] == [True, False, True, False, True]
    assert looking(run, tmp_path / "b").look(model, 12) == {}


def test_another_seed_asks_others_and_each_item_once(run: Path, tmp_path: Path) -> None:
    def places(seed: int) -> list[int]:
        watching = looking(run, tmp_path, watch=("copa",), watch_items=10)
        runtime = replace(watching.journey.runtime, seed=seed)
        watching.journey = replace(watching.journey, runtime=runtime)
        [exam] = watching._chosen(3)
        return list(exam.places)

    assert places(1) == places(1) != places(2)
    assert len(set(places(1))) == 10


def small_memory(model: nn.Module, limits: dict[str, int]) -> None:
    """Every pass over more than `limits["tokens"]` tokens at once runs out of memory."""

    def refuse(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[0] * inputs[0].shape[1] > limits["tokens"]:
            raise torch.OutOfMemoryError("out of memory")

    model.model.layers[0].register_forward_pre_hook(refuse)  # type: ignore[union-attr,index]


@pytest.mark.parametrize(("tokens", "attempts"), [(600, 1), (20, 2)])
def test_out_of_memory_costs_nothing_but_the_look(
    run: Path, tmp_path: Path, tokens: int, attempts: int
) -> None:
    model = load_model(run / "sft")
    enough = looking(run, tmp_path / "enough", watch=("copa",), watch_items=60).look(model, 3)
    small_memory(model, {"tokens": tokens})
    found = looking(run, tmp_path / "small", watch=("copa",), watch_items=60).look(model, 3)
    events = [e for e in read_rows(tmp_path / "small" / "events.jsonl") if e["what"] == "watch"]
    assert [event["kind"] for event in events] == ["eval_out_of_memory"] * attempts
    assert [event["skipped"] for event in events] == [False, True][:attempts]
    assert found == (enough if attempts == 1 else {})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_full_gpu_costs_nothing_but_the_look(run: Path, tmp_path: Path) -> None:
    """With room for a few MB only, the look fails, is told, and comes back when there is room."""
    model = load_model(run / "sft").to("cuda")
    watching = looking(run, tmp_path, watch=("copa",), watch_items=100)
    watching._chosen(3)  # so that only the asking is short of memory
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**21) / total)
    try:
        watching.look(model, 3)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    told = {event["kind"] for event in read_rows(tmp_path / "events.jsonl")}
    assert told == {"eval_out_of_memory"}
    assert watching.look(model, 6)["watch"]["copa"]["n"] == 100


def test_what_was_read_is_not_asked(walk: Walk, recipe: Path, tmp_path: Path) -> None:
    """Three items stand in the training text, one of them with its question only."""
    exams = read_exams(tasks=COPA)
    long = [item for item in exams[0].items if len(" ".join(item.options[item.gold]).split()) >= 13][:3]
    planted = [" ".join(item.options[item.gold]) for item in long]
    planted[2] = " ".join(planted[2].split()[:13])
    text = (recipe.parent / "train.jsonl").read_text()
    mine = tmp_path / "mine.jsonl"
    mine.write_text(text + "".join(json.dumps({"text": f"It went so: {each}"}) + "\n" for each in planted))
    run = walk(
        tmp_path, f'data.train=["{mine}"]', "pretrain.steps=6", 'eval.watch=["copa"]', "eval.watch_full=true",
        until="pretrain",
    )  # fmt: skip
    last = read_rows(run / "pretrain" / "evals.jsonl")[-1]["watch"]["copa"]
    assert (last["n"], last["left_out"]) == (97, 3)
    watching = looking(run, tmp_path, watch=("copa",))
    found = in_training_text(watching.journey, {exams[0].sha256: exams[0].items})[exams[0].sha256]
    assert found.overlapping == {item.line for item in long}
    assert len(found.whole) == 2
    [exam] = watching._clean_exams()
    assert not found.overlapping & {exam.items[place].line for place in exam.places}


def test_it_is_looked_for_once(run: Path, tmp_path: Path) -> None:
    exams = {exam.sha256: exam.items for exam in read_exams(tasks=[*COPA, TASKS[0]])}
    journey = looking(run, tmp_path).journey
    counted: list[int] = []
    first = in_training_text(journey, exams, counted.append)
    assert sum(counted) > 100
    counted.clear()
    assert in_training_text(journey, exams, counted.append) == first
    assert counted == []
    file = run / "contamination.json"
    file.write_text(file.read_text().replace("13 words", "12 words"))  # found by another rule
    assert in_training_text(journey, exams, counted.append) == first
    assert counted != []


def test_scores_without_what_was_read(run: Path, pilgrim: Pilgrim) -> None:
    """A file of one's own whose items come from the very text that the run was trained on."""
    recipe = build(Recipe, load_toml(run / "recipe.toml"), "")
    stories = [json.loads(line)["text"] for line in Path(recipe.data.train[0]).read_text().splitlines()]
    rows = [
        {
            "query": " ".join(story.split()[:20]),
            "choices": [" ".join(story.split()[20:24]), "not this"],
            "gold": 0,
        }
        for story in stories[:3]
    ]
    new = "A question that nobody can ever have written down before, as it was made for this"
    rows += [{"query": f"{new}, number {n},", "choices": ["yes", "no"], "gold": 1} for n in range(5)]
    folder = Path("mine/commonsense_reasoning")
    folder.mkdir(parents=True)
    (folder / "copa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = pilgrim("eval", "tiny", "--suite", "core", "--data", "mine")
    assert told.exit_code == 0, told.output
    assert "copa: 3 of 8 items overlap the training text (3 whole); the others: " in told.output
    result = read_json(run / "evaluate" / "core.json")
    task = result["tasks"]["copa"]
    right = [r for r, line in zip(task["right"], task["lines"], strict=True) if line > 3]
    assert task["contamination"] == {"overlapping": 3, "whole": 3, "too_short": 0, "lines": [1, 2, 3]}
    assert (task["clean"]["n"], task["clean"]["accuracy"]) == (5, sum(right) / 5)
    assert result["clean"]["score"] == task["clean"]["centered"]
    assert {len(task["to_read"][kind]) for kind in ("best", "worst")} == {2}

    told = pilgrim("eval", "tiny", "--suite", "core", "--data", "mine", "--no-contamination")
    assert "training text" not in told.output
    assert "rule" not in read_json(run / "evaluate" / "core.json")


def test_tasks_that_cannot_be_watched(run: Path, walk: Walk, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"arc_eezy is no task; did you mean arc_easy\?"):
        walk(tmp_path, 'eval.watch=["arc_eezy"]')
    model = load_model(run / "sft")
    with pytest.raises(DataError, match=r"has no file of jeopardy, which eval\.watch names; take it out"):
        looking(run, tmp_path, watch=("copa", "jeopardy")).look(model, 0)
