"""Scores without the items that were read in training, beside the full ones.

If a task's clean subset does as well as the whole, what overlaps has not helped; if it does worse by more
than the errors allow, the full score is too good. That comparison is GPT-3's (Brown et al. 2020, section 4).
It is weak: items that are found in training texts are often easier anyway.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pilgrim.evals.behaviour import Share
from pilgrim.evals.contamination import RULE, Overlap

COLUMNS = ("lines", "right")


def with_clean(
    result: Mapping[str, Any],
    found: Mapping[str, Overlap],
    summary: Callable[[dict[str, dict[str, Any]]], dict[str, Any]],
) -> dict[str, Any]:
    """The result of a suite with what was found: for each task "contamination" and "clean", and the mean over
    clean subsets as "clean".

    `found` has the overlaps by the SHA-256 of the tasks' files, and `summary` is the suite's mean. A task of
    which nothing is clean has None, and no part in that mean.
    """
    tasks = {name: task | _of_task(task, found[task["sha256"]]) for name, task in result["tasks"].items()}
    left = {name: task | task["clean"] for name, task in tasks.items() if task["clean"]}
    clean: dict[str, Any] | None = None
    if left and "score" in (whole := summary(left)):
        members = whole.get("members", left)
        clean = {key: whole[key] for key in ("score", "standard_error")} | {"tasks": len(members)}
    for task in tasks.values():
        if task["clean"]:
            task["clean"] = {key: value for key, value in task["clean"].items() if key not in COLUMNS}
    return {**result, "tasks": tasks, "rule": RULE, "clean": clean}


def _of_task(task: Mapping[str, Any], overlap: Overlap) -> dict[str, Any]:
    """What was found among the items that were asked, and the accuracy over the others."""
    asked = set(task["lines"])
    kept = [
        (line, right)
        for line, right in zip(task["lines"], task["right"], strict=True)
        if line not in overlap.overlapping
    ]
    contamination = {
        "overlapping": len(asked & overlap.overlapping),
        "whole": len(asked & overlap.whole),
        "too_short": len(asked & overlap.too_short),
        "lines": sorted(asked & overlap.overlapping),
    }
    if not kept:
        return {"contamination": contamination, "clean": None}
    share = Share(sum(right for _, right in kept), len(kept))
    low, high = share.interval
    return {
        "contamination": contamination,
        "clean": {
            "n": share.n,
            "accuracy": share.share,
            "standard_error": share.standard_error,
            "low": low,
            "high": high,
            "centered": (share.share - task["chance"]) / (1 - task["chance"]),
            "lines": [line for line, _ in kept],
            "right": [right for _, right in kept],
        },
    }
