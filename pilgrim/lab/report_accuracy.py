"""Accuracy while it trains: a small chart for each task that evaluations asked about.

    a point      the share of right answers at an evaluation
    the band     its 95% interval: with few items it is wide, and a curve that stays within it says nothing
    dashed line  what chance is taken to give

The tasks lie in the rows of evals.jsonl under "watch", each with its own interval and chance.
"""

from collections.abc import Sequence
from typing import Any

from pilgrim.lab.report_curves import is_number
from pilgrim.lab.report_figures import Figure
from pilgrim.lab.report_run import Row, Stage, mapping
from pilgrim.lab.report_text import number, percent, plain

CHARTS = 24  # tasks that are drawn


def watched(stages: Sequence[Stage], notes: list[str]) -> list[Figure]:
    """A figure for each task. Adds to `notes` what is left out."""
    trained = [stage for stage in stages if stage.trained]
    tasks = list(dict.fromkeys(name for stage in trained for row in stage.evals for name in _watch(row)))
    if len(tasks) > CHARTS:
        notes.append(f"Of {number(len(tasks))} tasks asked while it trained, the first {CHARTS} are drawn.")
    figures = []
    for place, task in enumerate(tasks[:CHARTS]):
        rows = [
            [(row["step"], asked) for row in stage.evals if (asked := _asked(row, task))] for stage in trained
        ]
        of_all = [asked for of_stage in rows for _, asked in of_stage]
        if of_all:
            title, chance = plain(task).replace("_", " "), of_all[-1]["chance"]
            series = [_series(index, of_stage) for index, of_stage in enumerate(rows) if of_stage]
            words = _in_words(title, of_all)
            figures.append(Figure(f"accuracy-{place}", title, _unit(of_all), words, series, 100 * chance))
    return figures


def _watch(row: Row) -> Row:
    return mapping(row.get("watch")) if is_number(row.get("step")) else {}


def _asked(row: Row, task: str) -> Row | None:
    """What a row says of a task; None if it lacks a number."""
    asked = mapping(_watch(row).get(task))
    whole = all(is_number(asked.get(key)) for key in ("accuracy", "low", "high", "n", "chance"))
    return asked if whole else None


def _series(stage: int, rows: Sequence[tuple[int, Row]]) -> dict[str, Any]:
    """Percentages, as nobody reads accuracies otherwise."""
    shown = {
        key: [round(100 * asked[value], 2) for _, asked in rows]
        for key, value in (("y", "accuracy"), ("low", "low"), ("high", "high"))
    }
    about = {"stage": stage, "label": "right", "kind": "points", "mark": "circle"}
    return {**about, "x": [step for step, _ in rows], **shown}


def _unit(asked: Sequence[Row]) -> str:
    fewest, most = (number(pick(row["n"] for row in asked)) for pick in (min, max))
    return f"% right of {fewest if fewest == most else f'{fewest} to {most}'}"


def _in_words(title: str, asked: Sequence[Row]) -> str:
    first, last = asked[0], asked[-1]
    left_out = last.get("left_out")
    removed = f"; {number(left_out)} items of the training text are left out" if left_out else ""
    return (
        f"{title}: from {percent(first['accuracy'])} at first to {percent(last['accuracy'])} at last, "
        f"between {percent(last['low'])} and {percent(last['high'])} of {number(last['n'])} items; "
        f"chance {percent(last['chance'])}{removed}."
    )
