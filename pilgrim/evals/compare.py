"""Two models on the same questions: is one better, or was it luck?

Compared are two results of `core.evaluate`, task by task over the items that both were asked (statistics.py).
Items are the same if they stand on the same line of the same file; a task whose files differ is left out and
named. The difference of the means is that of the centered accuracies over the tasks that are left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.evals.statistics import Paired, error_of_mean, paired


@dataclass(frozen=True)
class Comparison:
    """What the second model has more than the first: of each task, and of their centered mean."""

    tasks: dict[str, Paired]
    difference: float
    standard_error: float
    left_out: tuple[str, ...]  # tasks without items in common


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """`second` minus `first`, both as `core.evaluate` gives them. DataError if no item is in both."""
    tasks: dict[str, Paired] = {}
    centered: dict[str, dict[int, float]] = {}
    names = [*first["tasks"], *(name for name in second["tasks"] if name not in first["tasks"])]
    for name in names:
        a, b = (_right_by_line(result["tasks"].get(name)) for result in (first, second))
        lines = [line for line in a if line in b]
        if not lines or first["tasks"][name]["sha256"] != second["tasks"][name]["sha256"]:
            continue
        tasks[name] = paired([a[line] for line in lines], [b[line] for line in lines])
        scale = 1 - first["tasks"][name]["chance"]
        centered[name] = {line: (b[line] - a[line]) / scale for line in lines}
    if not tasks:
        raise DataError(
            "the two evaluations have no items in common; evaluate both with the same data, and compare again"
        )
    return Comparison(
        tasks,
        fmean(fmean(values.values()) for values in centered.values()),
        error_of_mean(centered, {name: first["tasks"][name]["sha256"] for name in tasks}),
        tuple(name for name in names if name not in tasks),
    )


def _right_by_line(task: Mapping[str, Any] | None) -> dict[int, bool]:
    return dict(zip(task["lines"], task["right"], strict=True)) if task else {}
