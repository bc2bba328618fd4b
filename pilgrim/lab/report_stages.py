"""The report's section "What each stage changed", from what `pilgrim eval --stages` left.

A panel for each of the main measures: a bar for what a stage's model reached, and beside it by how much that
differs from the stage before, on a strip whose middle is no change. A strip is as long as the measure's
largest change, so panels can't be compared with one another by their strips, and need not be. Single sources
and tasks are in a table.
"""

from typing import Any

from pilgrim.lab.report_curves import is_number
from pilgrim.lab.report_run import Row, mapping
from pilgrim.lab.report_sections import BEHAVIOURS
from pilgrim.lab.report_text import number, plain

LABELS = {
    "text": "Held-out text",
    "conversations": "Held-out conversations",
    **{name: label for name, (label, _) in BEHAVIOURS.items()},
}
UNITS = {"bits": "bits per byte", "share": "of the replies", "score": "centered: 0 is guessing"}
ROWS = 80  # of the table


def stage_changes(result: Row) -> dict[str, Any] | None:
    """Panels and table; None if nothing was measured."""
    stages = _texts(result.get("stages"))
    known = result.get("measures")
    measures = [m for m in known if isinstance(m, dict)] if isinstance(known, list) else []
    panels = [panel for m in measures if m.get("main") is True and (panel := _panel(m, stages))["rows"]]
    if not panels:
        return None
    chatbots = _texts(result.get("asked_as_chat"))
    return {
        "stages": stages,
        "chatbots": ", ".join(chatbots),
        "panels": panels,
        "rows": [_row(m, stages) for m in measures if m.get("main") is not True][:ROWS],
    }


def _texts(value: object) -> list[str]:
    return [plain(text) for text in value] if isinstance(value, list) else []


def _panel(measure: Row, stages: list[str]) -> dict[str, Any]:
    name, kind = plain(measure.get("name")), plain(measure.get("kind"))
    found = {stage: pair for stage in stages if (pair := _value(measure, stage)) is not None}
    lowest = min([0.0, *(value for value, _ in found.values())])
    highest = max([0.0, *(value for value, _ in found.values())])
    if kind == "share":
        lowest, highest = 0.0, 1.0
    width = (highest - lowest) or 1.0
    changed = {stage: change for stage in found if (change := _change(measure, stage)) is not None}
    reach = max([abs(end) for change in changed.values() for end in change], default=0.0) or 1.0
    rows = []
    for stage, (value, error) in found.items():
        row: dict[str, Any] = {
            "stage": stage,
            "value": _written(value, kind),
            "error": "–" if error is None else _written(error, kind),
            "bar_from": 100 * (min(0.0, value) - lowest) / width,
            "bar_width": 100 * abs(value) / width,
            "change": None,
        }
        if stage in changed:
            places = [50 + 50 * end / reach for end in changed[stage]]
            row |= dict(zip(("change_at", "low_at", "high_at"), places, strict=True))
            row |= _in_words(changed[stage], measure)
        rows.append(row)
    better = f"{plain(measure.get('better'))} is better"
    return {"title": LABELS.get(name, name), "unit": f"{UNITS.get(kind, '')}, {better}", "rows": rows}


def _row(measure: Row, stages: list[str]) -> dict[str, Any]:
    kind, cells = plain(measure.get("kind")), []
    for stage in stages:
        found, change = _value(measure, stage), _change(measure, stage)
        cell: dict[str, str | None] = {"value": "–", "change": None}
        if found is not None:
            value, error = found
            cell["value"] = f"{_written(value, kind)} ± {'–' if error is None else _written(error, kind)}"
        if change is not None:
            said = _in_words(change, measure)
            cell |= {"change": f"{said['change']} ({said['interval']})", "tone": said["tone"]}
        cells.append(cell)
    sizes = (mapping(value).get("n") for value in mapping(measure.get("values")).values())
    return {"name": plain(measure.get("name")), "n": number(next(sizes, None)), "cells": cells}


def _value(measure: Row, stage: str) -> tuple[float, float | None] | None:
    """A stage's value and its standard error."""
    found = mapping(mapping(measure.get("values")).get(stage))
    value, error = found.get("value"), found.get("standard_error")
    return (value, error if is_number(error) else None) if is_number(value) else None


def _change(measure: Row, stage: str) -> tuple[float, float, float] | None:
    """A stage's difference to the one before, and the ends of its interval."""
    found = mapping(mapping(measure.get("changes")).get(stage))
    difference, low, high = (found.get(key) for key in ("difference", "low", "high"))
    whole = is_number(difference) and is_number(low) and is_number(high)
    return (difference, low, high) if whole else None  # type: ignore[return-value]


def _in_words(change: tuple[float, float, float], measure: Row) -> dict[str, str]:
    """The change, its interval, and what to think of it."""
    kind = plain(measure.get("kind"))
    difference, low, high = change
    better = (difference > 0) == (measure.get("better") == "higher")
    verdict = "not told apart" if low <= 0 <= high else "better" if better else "worse"
    return {
        "change": _written(difference, kind, "+"),
        "interval": f"{_written(low, kind, '+')} to {_written(high, kind, '+')}",
        "verdict": verdict,
        "tone": {"better": "good", "worse": "bad"}.get(verdict, "even"),
    }


def _written(value: float, kind: str, sign: str = "") -> str:
    if kind == "share":
        return f"{value:{sign}.1%}"
    return f"{value:{sign}.3f}"
