"""Values and differences of several stages, against formulas and against luck that was drawn."""

import math
from typing import Any

import numpy as np
import pytest

from pilgrim.evals.by_stage import Measure, Read, bits_measures, share_measure, suite_measures
from pilgrim.evals.statistics import Z95, paired

BYTES = np.array([100, 300, 200, 400], np.int64)
SOURCE = np.array([0, 1, 0, 1], np.int32)


def read(*nats: float) -> Read:
    return Read(np.array(nats), BYTES)


def task(right: list[bool], chance: float = 0.25) -> dict[str, Any]:
    accuracy = sum(right) / len(right)
    return {
        "n": len(right), "accuracy": accuracy, "standard_error": 0.1, "chance": chance, "sha256": "a",
        "centered": (accuracy - chance) / (1 - chance), "lines": [*range(len(right))], "right": right,
    }  # fmt: skip


def result(**tasks: dict[str, Any]) -> dict[str, Any]:
    score = sum(t["centered"] for t in tasks.values()) / len(tasks)
    return {"name": "a slice", "score": score, "standard_error": 0.05, "tasks": tasks, "context": 64}


def test_bits_and_their_differences() -> None:
    of = {"pretrain": read(80, 200, 150, 310), "sft": read(90, 220, 160, 330)}
    whole, *parts = bits_measures("text", of, ["letters", "stories"], SOURCE)
    assert [m.name for m in (whole, *parts)] == ["text", "text: letters", "text: stories"]
    assert whole.main and not parts[0].main
    assert whole.values["pretrain"].value == pytest.approx(740 / math.log(2) / 1000)
    assert (whole.values["sft"].n, parts[0].values["sft"].n) == (4, 2)
    change = whole.changes["sft"]
    assert change.difference == pytest.approx(60 / math.log(2) / 1000)
    # Documents differ by far more than what the stage did to each of them.
    reach = (change.high - change.low) / 2
    assert reach < whole.values["sft"].standard_error  # type: ignore[operator]
    assert whole.verdict("sft") == "worse"


def test_the_interval_is_that_of_documents_drawn_anew() -> None:
    dice = np.random.default_rng(1)
    sizes = dice.integers(50, 500, 60)
    first = sizes * dice.normal(0.8, 0.2, 60)
    second = first + sizes * dice.normal(0.03, 0.05, 60)
    of = {"a": Read(first, sizes), "b": Read(second, sizes)}
    (measure,) = bits_measures("text", of, ["one"], np.zeros(60, np.int32))
    drawn = []
    for _ in range(2000):
        some = dice.integers(0, 60, 60)
        drawn.append((second - first)[some].sum() / sizes[some].sum() / math.log(2))
    reach = measure.changes["b"].high - measure.changes["b"].difference
    assert reach == pytest.approx(Z95 * float(np.std(drawn)), rel=0.1)


def test_one_document_and_a_source_without_bytes() -> None:
    of = {"a": Read(np.array([8.0]), np.array([10])), "b": Read(np.array([9.0]), np.array([10]))}
    (measure,) = bits_measures("text", of, ["one"], np.zeros(1, np.int32))
    assert measure.values["a"].standard_error is None
    assert measure.changes == {}
    empty = {"a": Read(np.array([8.0, 0]), np.array([10, 0]))}
    names = [m.name for m in bits_measures("text", empty, ["one", "none"], np.array([0, 1], np.int32))]
    assert names == ["text", "text: one"]


def test_shares_of_the_same_prompts() -> None:
    hits = {"midtrain": [False] * 30 + [True] * 10, "sft": [True] * 30 + [True] * 10}
    measure = share_measure("named", "higher", hits)
    assert (measure.values["midtrain"].value, measure.values["sft"].n) == (0.25, 40)
    assert measure.changes["sft"].since == "midtrain"
    assert measure.changes["sft"].difference == 0.75
    assert measure.verdict("sft") == "better"
    assert share_measure("looped", "lower", hits).verdict("sft") == "worse"


def test_suites_mean_first_then_tasks() -> None:
    before, after = [True] * 5 + [False] * 35, [True] * 30 + [False] * 10
    of = {
        "pretrain": result(arc=task(before), piqa=task(before)),
        "sft": result(arc=task(after), piqa=task(before)),
    }
    mean, arc, piqa = suite_measures("core", of)
    assert (mean.name, mean.kind, mean.values["sft"].n) == ("a slice", "score", 80)
    assert (arc.name, arc.chance, arc.main) == ("core: arc", 0.25, False)
    assert arc.changes["sft"].difference == pytest.approx(25 / 40)
    assert mean.changes["sft"].difference == pytest.approx(25 / 40 / 0.75 / 2)
    assert (mean.verdict("sft"), piqa.verdict("sft")) == ("better", "not told apart")


@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.0), (0.02, 0.02), (0.1, 0.02), (0.5, 0.1)])
def test_the_interval_of_a_paired_difference_holds_its_promise(gain: float, loss: float) -> None:
    """Of 60 items; with so few disagreements the textbook's interval is a point more often than not."""
    dice = np.random.default_rng(2)
    held = 0
    for _ in range(1000):
        luck = dice.random(60)
        pair = paired((luck < loss).tolist(), ((luck >= loss) & (luck < loss + gain)).tolist())
        low, high = pair.interval
        held += low <= gain - loss <= high
    assert held >= 930


def test_a_longer_context_leaves_no_difference_where_prompts_were_others() -> None:
    assert share_measure("ended", "higher", {"midtrain": [True] * 3, "sft": [True] * 4}).changes == {}
    cut = task([True, False]) | {"cut": 1}
    of = {"pretrain": result(arc=cut), "sft": result(arc=cut) | {"context": 128}}
    mean, arc = suite_measures("core", of)
    assert mean.changes == arc.changes == {}
    of = {"pretrain": result(arc=cut, piqa=task([True, False]))}
    of["sft"] = result(arc=cut, piqa=task([True, True])) | {"context": 128}
    mean, arc, piqa = suite_measures("core", of)
    assert (arc.changes, piqa.changes["sft"].difference, mean.changes) == ({}, 0.5, {})


def test_what_was_not_measured_before_has_no_change() -> None:
    measure = Measure("ended", "behaviour", "share", "higher")
    assert measure.changes == {}
    assert share_measure("ended", "higher", {"sft": [True]}).changes == {}
