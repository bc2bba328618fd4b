"""Bad steps in a report: spikes and values that are no numbers (train/health.py), from a stage's events.

A run that was killed and gone on with may have met the same fault twice; the later event counts.
"""

from collections.abc import Sequence
from typing import Any

from pilgrim.lab.report_curves import is_number
from pilgrim.lab.report_run import Row, Stage
from pilgrim.lab.report_text import number, plain

NAMES = {"spike": "a spike", "non_finite_loss": "not finite"}
TOLD = 6  # of a stage, in words; all are marked in the charts, and stand among the events


def faults(stage: Stage) -> list[Row]:
    """The events of its bad steps, by step."""
    found = {
        (int(row["step"]), row["kind"]): row
        for row in stage.events
        if row.get("kind") in NAMES and is_number(row.get("step"))
    }
    return [found[key] for key in sorted(found)]


def marks(stage: Stage) -> list[dict[str, Any]]:
    """What the charts mark: steps, and what is said of them."""
    return [{"step": int(row["step"]), "text": in_words(row)} for row in faults(stage)]


def in_words(row: Row) -> str:
    """One fault: what was found, and what was done."""
    values = [_value(row, name, words) for name, words in (("loss", "loss"), ("grad_norm", "gradient norm"))]
    found = " and ".join(filter(None, values)) or "weights that give no number in evaluation"
    done = plain(row.get("done")) or "stopped"
    return f"step {number(row['step'])}, {NAMES[row['kind']]}: {found}; {done}"


def told(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """(stage, a line about its bad steps) for the stages that had any."""
    lines = []
    for stage in stages:
        if found := faults(stage):
            said = [in_words(row) for row in found[:TOLD]]
            if len(found) > TOLD:
                said.append(f"and {number(len(found) - TOLD)} more, which are among the events")
            lines.append((stage.name, f"{'; '.join(said)}."))
    return lines


def _value(row: Row, name: str, words: str) -> str | None:
    if name not in row:
        return None
    value, limit = row[name], row.get(f"{name}_limit")
    said = f"{words} {value:.4g}" if is_number(value) else f"{words} {plain(value)}"
    return f"{said} (limit {limit:.4g})" if row["kind"] == "spike" and is_number(limit) else said
