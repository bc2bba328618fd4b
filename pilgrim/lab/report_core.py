"""The section on questions with known answers: each task's accuracy, what of it was in the training text,
and the items that were answered best and worst, to be read."""

from typing import Any

from pilgrim.lab.report_curves import is_number
from pilgrim.lab.report_run import Row, mapping
from pilgrim.lab.report_text import number, percent, plain, shortened

NUMBERS = ("accuracy", "low", "high", "chance", "standard_error")
ITEM_CHARACTERS = 700
READABLE = 100  # items of all tasks together


def known_answers(result: Row) -> dict[str, Any] | None:
    """The CORE tasks: the mean in words, and a row for each task; None if they were not asked."""
    tasks = {plain(name): mapping(row) for name, row in mapping(result.get("tasks")).items()}
    if not tasks:
        return None
    missing = result.get("missing")
    return {
        "name": plain(result.get("name", "CORE-slice")),
        "score": number(result.get("score"), 3),
        "standard_error": number(result.get("standard_error"), 3),
        "stage": plain(result.get("stage", "")),
        "missing": ", ".join(plain(name) for name in missing) if isinstance(missing, list) else "",
        "clean": overlaps_told(result, tasks),
        "rows": [_row(name, task) for name, task in tasks.items()],
    }


def _row(name: str, task: Row) -> dict[str, Any]:
    shown = {key: task[key] if is_number(task.get(key)) else None for key in NUMBERS}
    texts = {"task": name.replace("_", " "), "n": number(task.get("n")), "shots": number(task.get("shots"))}
    return texts | {"read": overlap_told(task)} | shown


def overlap_told(task: Row) -> str:
    """What of a task was in the training text, and the accuracy without it; empty if nothing was."""
    found = mapping(task.get("contamination")).get("overlapping")
    if not is_number(found) or not found:
        return ""
    clean = mapping(task.get("clean"))
    without = f"{percent(clean.get('accuracy'))} ± {percent(clean.get('standard_error'))} without them"
    return f"{number(found)} in the training text: {without if clean else 'none is clean'}"


def overlaps_told(result: Row, tasks: dict[str, Row]) -> str:
    """Whether the items were looked for in the training text, and what came of it; empty if they were not."""
    counts = [mapping(task.get("contamination")).get("overlapping") for task in tasks.values()]
    found = [count for count in counts if is_number(count)]
    if not found:
        return ""
    rule = f"({plain(result.get('rule'))})"
    if not any(found):
        return f"No item is in the training text {rule}."
    count, clean = sum(found), result.get("clean")
    overlapping = (
        f"{number(count)} {'item overlaps' if count == 1 else 'items overlap'} the training text {rule}"
    )
    if not isinstance(clean, dict):
        return f"{overlapping}; without them there is no mean."
    score, error = (number(clean.get(key), 3) for key in ("score", "standard_error"))
    return f"{overlapping}; without them the mean is {score} ± {error}."


def to_read(result: Row, notes: list[str]) -> list[dict[str, Any]]:
    """Items that were answered best and worst, by task: {"task", "items"}."""
    groups, left = [], READABLE
    tasks = mapping(result.get("tasks"))
    for name, task in tasks.items():
        chosen = mapping(mapping(task).get("to_read"))
        lists = [(kind, chosen.get(kind)) for kind in ("worst", "best")]
        items = [
            _item(mapping(item), kind) for kind, found in lists if isinstance(found, list) for item in found
        ][:left]
        left -= len(items)
        if items:
            groups.append({"task": plain(name).replace("_", " "), "items": items})
    if left <= 0:
        notes.append(f"Of the items to read, the first {READABLE} are shown.")
    return groups


def _item(item: Row, kind: str) -> dict[str, Any]:
    """An item with its options; of each its text, whether it is right, and whether the model took it."""
    texts = item.get("options")
    options = texts if isinstance(texts, list) else []
    found = item.get("mean_log_probs")
    means = [mean for mean in found if is_number(mean)] if isinstance(found, list) else []
    taken = means.index(max(means)) if len(means) == len(options) > 1 else None
    return {
        "kind": kind,
        "line": number(item.get("line")),
        "margin": number(item.get("margin"), 2),
        "context": shortened(plain(item.get("context") or ""), ITEM_CHARACTERS),
        "options": [
            {
                "text": shortened(plain(text), ITEM_CHARACTERS),
                "right": place == item.get("gold"),
                "taken": place == taken,
                "mean": number(means[place], 2) if len(means) == len(options) else "–",
            }
            for place, text in enumerate(options)
        ],
    }
