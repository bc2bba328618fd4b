"""What a result says of itself: its name, its errors, and which items it asked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.core.runtime import Runtime
from pilgrim.data.sources import read_documents
from pilgrim.evals.compare import compare
from pilgrim.evals.core import evaluate, name_of, read_exams, summary
from pilgrim.evals.core_tasks import BUNDLED, TASKS, find_file
from pilgrim.evals.prompts import Row
from pilgrim.evals.scoring import score
from pilgrim.infer.engine import Engine
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

SMALL = ("copa", "winograd", "hellaswag_zeroshot")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([d.text for d in read_documents(["assets:text/val.jsonl.zst"])], 600)


@pytest.fixture(scope="module")
def engine_of(tokenizer: Tokenizer) -> Callable[[int], Engine]:
    def make(seed: int) -> Engine:
        settings = ModelSettings(depth=1, width=16, head_size=8, context=64)
        model = Transformer(settings.config(tokenizer.vocab_size))
        dice = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=dice))
        return Engine(model, Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1))

    return make


Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(engine_of: Callable[[int], Engine], tokenizer: Tokenizer) -> Ask:
    def ask(limit: int, seed: int = 1, names: tuple[str, ...] = SMALL) -> dict[str, Any]:
        exams = [exam for exam in read_exams(limit=limit) if exam.task.name in names]
        return evaluate(engine_of(seed), tokenizer, exams)

    return ask


def test_the_slice_has_twenty_tasks() -> None:
    exams = read_exams()
    assert [exam.task.name for exam in exams] == [
        task.name for task in TASKS if task.name not in ("jeopardy", "coqa")
    ]
    for exam in exams:
        assert len(exam.items) == exam.asked == min(100, exam.task.items)
        assert {len(item.options) == 1 for item in exam.items} == {exam.task.kind == "language_modeling"}
    assert len({(task.name, task.file) for task in TASKS}) == 22


def test_fewer_items_are_the_same_ones(ask: Ask) -> None:
    few, many = ask(3), ask(6)
    for name in SMALL:
        for column in ("lines", "right", "picks", "golds"):
            assert few["tasks"][name][column] == many["tasks"][name][column][:3]
        for a, b in zip(*(r["tasks"][name]["mean_log_probs"] for r in (few, many)), strict=False):
            assert a == pytest.approx(b, abs=1e-5)
    assert few["name"] == "CORE-slice (3 of 22 tasks, 3 items each)"


def test_accuracies_are_centered_and_averaged(ask: Ask) -> None:
    result = ask(10)
    for task in result["tasks"].values():
        assert task["accuracy"] == sum(task["right"]) / 10
        assert task["right"] == [a == b for a, b in zip(task["picks"], task["golds"], strict=True)]
        assert task["centered"] == pytest.approx((task["accuracy"] - task["chance"]) / (1 - task["chance"]))
        assert task["low"] <= task["accuracy"] <= task["high"]
    assert result["score"] == pytest.approx(sum(t["centered"] for t in result["tasks"].values()) / 3)
    assert 0 < result["standard_error"] < 0.3
    assert "jeopardy" in result["missing"] and "copa" not in result["missing"]


def test_only_the_whole_is_core() -> None:
    whole = {task.name: {"n": task.items} for task in TASKS}
    assert name_of(whole) == "CORE"
    assert name_of(whole | {"copa": {"n": 99}}).startswith("CORE-slice (22 of 22 tasks, up to 20,321 items")
    del whole["coqa"]
    assert name_of(whole).startswith("CORE-slice (21 of 22 tasks")


def test_perfect_and_guessing_are_one_and_zero() -> None:
    def result(right: list[bool], chance: float) -> dict[str, Any]:
        accuracy = sum(right) / len(right)
        columns = {"n": len(right), "right": right, "lines": list(range(len(right))), "sha256": str(chance)}
        return columns | {"chance": chance, "centered": (accuracy - chance) / (1 - chance)}

    perfect = summary({"copa": result([True] * 4, 0.5), "arc_easy": result([True] * 4, 0.25)})
    assert (perfect["score"], perfect["standard_error"]) == (1, 0)
    chance = summary({"copa": result([True, False], 0.5), "arc_easy": result([True] + [False] * 3, 0.25)})
    assert chance["score"] == pytest.approx(0)


# Two models ---------------------------------------------------------------------------------------


def test_a_model_does_not_differ_from_itself(ask: Ask) -> None:
    found = compare(ask(5), ask(5))
    assert (found.difference, found.standard_error, found.left_out) == (0, 0, {})
    assert all(pair.p_value == 1 and pair.n == 5 for pair in found.tasks.values())


def test_two_models_are_compared_where_both_were_asked(ask: Ask) -> None:
    first, second = ask(20), ask(12, seed=2, names=("copa", "winograd"))
    found = compare(first, second)
    assert found.left_out == {"hellaswag_zeroshot": "only one of them was asked"}
    for name, pair in found.tasks.items():
        assert pair.n == 12
        before = sum(first["tasks"][name]["right"][:12]) / 12
        assert pair.difference == pytest.approx(second["tasks"][name]["accuracy"] - before)
    assert found.standard_error > 0
    turned = compare(second, first)
    assert turned.difference == pytest.approx(-found.difference)


def test_other_items_are_not_compared(ask: Ask) -> None:
    first, second = ask(3), ask(3)
    for task in second["tasks"].values():
        task["sha256"] = "another file"
    with pytest.raises(DataError, match="no items in common"):
        compare(first, second)


# Wrong input --------------------------------------------------------------------------------------


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    """Plain or packed, with eval_data or without; a task without a file is left out."""
    folder = tmp_path / "eval_data" / "commonsense_reasoning"
    folder.mkdir(parents=True)
    row = {"query": "It rained, therefore", "choices": ["it was wet.", "it was dry."], "gold": 0}
    (folder / "copa.jsonl").write_text(json.dumps(row) + "\n")
    shutil.copytree(BUNDLED / "language_understanding", tmp_path / "language_understanding")
    exams = {exam.task.name: exam for exam in read_exams(tmp_path)}
    assert len(exams["copa"].items) == 1
    assert set(exams) == {"copa"} | {t.name for t in TASKS if t.file.startswith("language_understanding")}


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no task of CORE"):
        read_exams(tmp_path)
    (tmp_path / "world_knowledge").mkdir()
    file = tmp_path / "world_knowledge" / "arc_easy.jsonl"
    row = json.dumps({"query": "a", "choices": ["b", "c"], "gold": 0}) + "\n"
    file.write_text(row * 10)
    with pytest.raises(DataError) as told:
        read_exams(tmp_path)
    assert str(told.value) == (
        f"{file}: 10 items, but arc_easy shows 10 others before each; give it more items"
    )
    file.write_text(row * 11 + "{}\n")
    with pytest.raises(DataError, match=r"arc_easy.jsonl, line 12: \"query\" is missing"):
        read_exams(tmp_path)
    assert find_file(tmp_path, TASKS[0]) is None


def test_models_that_cannot_be_scored(engine_of: Callable[[int], Engine], tokenizer: Tokenizer) -> None:
    engine = engine_of(3)
    with pytest.raises(DataError, match="knows only the ids 0 to 599; use its run's tokenizer"):
        score(engine, [[Row((0, 600), 1)]])
    with torch.no_grad():
        engine.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(PilgrimError, match="not finite, so its weights are spoiled"):
        score(engine, [[Row((0, 1, 2), 1)]])
