"""Which items are shown, and as what; and the scores that are left when some items are taken out."""

from typing import Any

import pytest

from pilgrim.evals.clean import with_clean
from pilgrim.evals.contamination import RULE, Overlap
from pilgrim.evals.core import summary
from pilgrim.evals.items import Item
from pilgrim.evals.to_read import CHARACTERS, margin, to_read


def item(line: int, gold: int = 0) -> Item:
    return Item((("Is it so?", f"yes {line}"), ("Is it so?", "no")), gold, line)


def test_margins() -> None:
    assert margin([-1.0, -3.0, -2.0], 0) == 1.0
    assert margin([-1.0, -3.0, -2.0], 1) == -2.0
    assert margin([-0.5], 0) == -0.5


def test_the_most_extreme_are_shown() -> None:
    leads = [0.1, -2.0, 3.0, 0.0, -5.0]
    found = to_read([item(line) for line in range(1, 6)], [[lead, 0.0] for lead in leads])
    assert [(each["line"], each["margin"]) for each in found["best"]] == [(3, 3.0), (1, 0.1)]
    assert [(each["line"], each["margin"]) for each in found["worst"]] == [(5, -5.0), (2, -2.0)]
    assert found["best"][0]["context"] == "Is it so?"
    assert found["best"][0]["options"] == ["yes 3", "no"]
    assert found["best"][0]["mean_log_probs"] == [3.0, 0.0]


@pytest.mark.parametrize(("count", "each"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)])
def test_no_item_is_both(count: int, each: int) -> None:
    found = to_read([item(line) for line in range(count)], [[float(n), 0.0] for n in range(count)])
    best, worst = ({entry["line"] for entry in found[kind]} for kind in ("best", "worst"))
    assert len(best) == len(worst) == each
    assert not best & worst


def test_options_of_a_schema_and_long_texts() -> None:
    schema = Item((("A cat slept as it was", "tired."), ("A dog slept as it was", "tired.")), 1, 4)
    long = Item((("word " * 500 + "end", "x"),), 0, 5)
    found = to_read([schema, long], [[-1.0, -2.0], [-0.1]])
    assert found["worst"][0]["options"] == ["A cat slept as it was tired.", "A dog slept as it was tired."]
    assert found["worst"][0]["context"] == ""
    text = found["best"][0]["context"]
    assert text.endswith("word end") and len(text) == CHARACTERS + 2


def task(right: list[bool], sha256: str, chance: float = 0.5) -> dict[str, Any]:
    return {
        "right": right,
        "lines": list(range(1, len(right) + 1)),
        "sha256": sha256,
        "chance": chance,
        "n": len(right),
    }


def test_what_is_clean_is_scored_apart() -> None:
    tasks = {"one": task([True, True, True, False], "a"), "two": task([True, False], "b")}
    found = {"a": Overlap({1}, {1, 2, 99}, set()), "b": Overlap(set(), {1, 2}, {3})}
    result = with_clean({"score": 0.5, "tasks": tasks}, found, summary)
    one, two = result["tasks"]["one"], result["tasks"]["two"]
    assert one["contamination"] == {"overlapping": 2, "whole": 1, "too_short": 0, "lines": [1, 2]}
    assert (one["clean"]["n"], one["clean"]["accuracy"], one["clean"]["centered"]) == (2, 0.5, 0.0)
    assert two["clean"] is None
    assert (result["clean"]["tasks"], result["clean"]["score"]) == (1, 0.0)
    assert (result["score"], result["rule"]) == (0.5, RULE)
    assert with_clean({"tasks": {"two": tasks["two"]}}, found, summary)["clean"] is None


def test_without_overlap_both_scores_are_one() -> None:
    tasks = {"one": task([True, True, True, False], "a"), "two": task([True, False], "b", chance=0.25)}
    result = with_clean({"tasks": tasks}, {"a": Overlap(), "b": Overlap()}, summary)
    assert [t["clean"]["accuracy"] for t in result["tasks"].values()] == [0.75, 0.5]
    assert result["clean"]["score"] == pytest.approx((0.5 + 1 / 3) / 2)
