"""The report's section about the chat suite and the user's own questions: accuracies, and answers to read.

Read are RUN/evaluate/chat.json and own-*.json, as `pilgrim eval` left them. Of each task the worst item and
the best are shown: where choices were compared, those in which the right one lost and won most clearly;
where a reply was written, the first wrong one and the last right one of the file's shuffled order.
"""

from pathlib import Path
from typing import Any

from pilgrim.lab.report_core import overlap_told, overlaps_told
from pilgrim.lab.report_curves import is_number
from pilgrim.lab.report_run import Row, mapping, read_object
from pilgrim.lab.report_text import number, percent, plain, shortened

TEXT_CHARACTERS = 1200  # of one prompt or reply
NUMBERS = ("accuracy", "low", "high", "chance", "standard_error")


def chat_answers(evaluated: Path, notes: list[str]) -> list[dict[str, Any]]:
    """A panel for each evaluation in the folder `evaluated`; none where nothing was asked."""
    panels = []
    for file in (evaluated / "chat.json", *sorted(evaluated.glob("own-*.json"))):
        result = read_object(file)
        tasks = {plain(name): mapping(task) for name, task in mapping(result.get("tasks")).items()}
        if tasks:
            panels.append(_panel(file, result, tasks, notes))
    return panels


def _panel(file: Path, result: Row, tasks: dict[str, Row], notes: list[str]) -> dict[str, Any]:
    read = [example for name, task in tasks.items() for example in _examples(name, task)]
    kept = sum(len(task["samples"]) for task in tasks.values() if isinstance(task.get("samples"), list))
    if kept > len(read):
        notes.append(f"Of each task's answers two are shown; {file.name} has every one.")
    own = file.name != "chat.json"
    missing = result.get("missing")
    return {
        "title": f"Your questions: {file.stem.removeprefix('own-')}" if own else "The chat suite",
        "name": plain(result.get("name", "chat mean")),
        "score": number(result.get("score"), 3),
        "standard_error": number(result.get("standard_error"), 3),
        "stage": plain(result.get("stage", "")),
        "missing": [(plain(name), plain(why)) for name, why in mapping(missing).items()],
        "clean": overlaps_told(result, tasks),
        "rows": [row for name, task in tasks.items() for row in _rows(name, task)],
        "examples": read,
    }


def _rows(name: str, task: Row) -> list[dict[str, Any]]:
    """The task's own row, and one for each other reading of it (strict, loose; questions, instructions)."""
    way = {"likelihood": "by likelihood", "words": "in its own words"}.get(plain(task.get("way")), "")
    if task.get("calculator") is True:
        way += ", with a calculator"
    rows = [_row(name.replace("_", " "), task, way)]
    for reading, shares in mapping(task.get("readings")).items():
        for what, share in mapping(shares).items():
            label = f"{name.replace('_', ' ')}: {plain(what)}, {plain(reading)}"
            rows.append(_row(label, mapping(share), ""))
    return rows


def _row(label: str, task: Row, way: str) -> dict[str, Any]:
    numbers = {key: task[key] if is_number(task.get(key)) else None for key in NUMBERS}
    chance = f"chance {percent(numbers['chance'])}" if numbers["chance"] else ""
    return {
        "task": label,
        "n": number(task.get("n")),
        "how": ", ".join(part for part in (way, chance) if part),
        "read": overlap_told(task),
        **numbers,
    }


def _examples(name: str, task: Row) -> list[dict[str, Any]]:
    """One answer that is wrong and one that is right, if there are such."""
    samples = task.get("samples")
    known = [row for row in samples if isinstance(row, dict)] if isinstance(samples, list) else []
    chosen = []
    for right in (False, True):
        chosen += [row for row in known if row.get("right") is right][:1]
    return [
        {
            "kind": f"{name.replace('_', ' ')}: {'right' if row['right'] else 'wrong'}",
            "right": row["right"],
            "prompt": shortened(plain(row.get("prompt")), TEXT_CHARACTERS),
            "reply": shortened(plain(row.get("reply")), TEXT_CHARACTERS),
            "expected": shortened(plain(row.get("expected")), TEXT_CHARACTERS // 4),
        }
        for row in chosen
    ]
