"""What a mixture was made of: a small chart of the loss for each of its sources, and a table of how much was
read of each.

A step's row of metrics.jsonl has "sources" where a stage trains on a mixture (train/by_source.py).
"""

from collections.abc import Sequence
from typing import Any

from pilgrim.lab.report_accuracy import TaskChart
from pilgrim.lab.report_charts import CURVE_POINTS, SMOOTHING_SHARE, rounded
from pilgrim.lab.report_curves import curve, is_number
from pilgrim.lab.report_run import Row, Stage, mapping
from pilgrim.lab.report_text import compact, number, percent, plain

CHARTS = 24  # sources that are drawn


def by_source(stages: Sequence[Stage], notes: list[str]) -> tuple[list[TaskChart], list[dict[str, Any]]]:
    """The figures, and what the page's script draws in them. Adds to `notes` what is left out."""
    trained = [stage for stage in stages if stage.trained]
    names = list(dict.fromkeys(name for stage in trained for row in stage.metrics for name in _sources(row)))
    if len(names) > CHARTS:
        notes.append(f"Of {number(len(names))} sources of mixtures the first {CHARTS} are drawn.")
    charts, drawn = [], []
    for place, name in enumerate(names[:CHARTS]):
        series, words = [], []
        for index, stage in enumerate(trained):
            rows = [{"step": row.get("step"), **mapping(_sources(row).get(name))} for row in stage.metrics]
            for label, kind, window in (("every step", "raw", None), ("smoothed", "line", SMOOTHING_SHARE)):
                made = curve(rows, "loss", CURVE_POINTS, window and max(1.0, len(rows) * window))
                if made.points:
                    about = {"stage": index, "label": label, "kind": kind, "mark": "circle"}
                    series.append({**about, **rounded(made.points)})
                    if kind == "line":
                        first, last = made.points[0][1], made.points[-1][1]
                        words.append(f"{stage.name} from {first:.4g} to {last:.4g}")
        if series:
            title = plain(name)
            chart = TaskChart(
                f"source-{place}", title, "nats per token", f"Loss of {title}: {'; '.join(words)}."
            )
            charts.append(chart)
            drawn.append({"id": chart.id, "title": title, "log": False, "fromZero": False, "series": series})
    return charts, drawn


def read_of_each(stages: Sequence[Stage]) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """Of each stage with a mixture: (source, its tokens, their share, how often all of it was read)."""
    found = []
    for stage in stages:
        tokens: dict[str, float] = {}
        epochs: dict[str, float] = {}
        for row in stage.metrics:
            for name, source in _sources(row).items():
                if is_number(count := mapping(source).get("tokens")):
                    tokens[name] = tokens.get(name, 0) + count
                if is_number(epoch := mapping(source).get("epoch")):
                    epochs[name] = epoch
        total = sum(tokens.values())
        rows = [
            (plain(name), compact(count), percent(count / total), number(epochs.get(name), 2))
            for name, count in tokens.items()
            if total
        ]
        if rows:
            found.append((stage.name, rows))
    return found


def _sources(row: Row) -> Row:
    return mapping(row.get("sources"))
