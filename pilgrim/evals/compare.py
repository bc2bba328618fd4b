"""Two models on the same questions: is one better, or was it luck?

Compared are two results of `core.evaluate` or of `chat.evaluate`, task by task over the items that both were
asked (statistics.py). Items are the same if they stand on the same line of the same file and were asked in
the same way. Two models with contexts of different lengths were asked the same only where nothing was cut and
no reply ran out of room. A task of which that can't be said is left out, with the reason. The difference of
the means is that of the centered accuracies over the tasks that are left, those that belong to the mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.evals.statistics import Paired, error_of_mean, paired

ASKED_BY = ("kind", "shots", "way", "max_tokens", "calculator", "chance")  # what has to be the same


@dataclass(frozen=True)
class Comparison:
    """What the second model has more than the first: of each task, and of the members' centered mean."""

    tasks: dict[str, Paired]
    members: tuple[str, ...]  # of the mean
    difference: float
    standard_error: float
    left_out: dict[str, str]  # tasks that can't be compared, and why


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """`second` minus `first`. Raises DataError if no item is in both."""
    tasks: dict[str, Paired] = {}
    centered: dict[str, dict[int, float]] = {}
    left_out: dict[str, str] = {}
    same_context = first.get("context") == second.get("context")
    for name in [*first["tasks"], *(name for name in second["tasks"] if name not in first["tasks"])]:
        one, other = (result["tasks"].get(name) for result in (first, second))
        if (why := _why_not(one, other, same_context)) is not None:
            left_out[name] = why
            continue
        a, b = _right_by_line(one), _right_by_line(other)
        lines = [line for line in a if line in b]
        tasks[name] = paired([a[line] for line in lines], [b[line] for line in lines])
        if one.get("member", True):
            scale = 1 - one["chance"]
            centered[name] = {line: (b[line] - a[line]) / scale for line in lines}
    if not centered:
        reasons = "; ".join(sorted(set(left_out.values())))
        raise DataError(
            f"the two evaluations have no items in common ({reasons}); evaluate both with the same data, and "
            "compare again"
        )
    return Comparison(
        tasks,
        tuple(centered),
        fmean(fmean(values.values()) for values in centered.values()),
        error_of_mean(centered, {name: first["tasks"][name]["sha256"] for name in centered}),
        left_out,
    )


def _why_not(
    one: Mapping[str, Any] | None, other: Mapping[str, Any] | None, same_context: bool
) -> str | None:
    """Why a task of the two results can't be compared, in a few words; None if it can."""
    if one is None or other is None:
        return "only one of them was asked"
    if one["sha256"] != other["sha256"]:
        return "their files differ"
    if any(one.get(key) != other.get(key) for key in ASKED_BY):
        return "it was asked in another way"
    if not same_context and any(task.get(key) for task in (one, other) for key in ("cut", "cramped")):
        return "one context cut what the other did not"
    if not set(one["lines"]) & set(other["lines"]):
        return "no item was asked of both"
    return None


def _right_by_line(task: Mapping[str, Any]) -> dict[int, bool]:
    return dict(zip(task["lines"], task["right"], strict=True))
