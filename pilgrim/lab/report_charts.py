"""The charts of a report: which curves, from which rows, and what they say in words.

The page's script draws them from the JSON that `payload` returns; who can't see a chart reads
`in_words` instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pilgrim.lab.report_curves import Point, curve, is_number
from pilgrim.lab.report_faults import marks
from pilgrim.lab.report_run import Row, Stage
from pilgrim.lab.report_text import number

CURVE_POINTS = 1600  # per curve: about twice what a wide screen can show, so that zooming in finds more
SMOOTHING_SHARE = 1 / 50  # the smoothed loss is a mean over about this share of a stage's steps


@dataclass(frozen=True)
class Series:
    """A line of a chart: rows of a stage's file, and how they are drawn."""

    label: str
    rows: str  # the `Stage` field they come from
    key: str
    kind: str  # "raw" (thin), "line", "points" (joined) or "dots"
    smoothed: bool = False
    mark: str = "circle"  # or "square": how its points look


@dataclass(frozen=True)
class Chart:
    """One figure of the report."""

    id: str
    title: str
    unit: str
    series: tuple[Series, ...]
    log: bool = False  # offers a logarithmic scale
    from_zero: bool = False
    stage: str | None = None  # the only one that it is about: without it, it is left out


CHARTS = (
    Chart(
        "loss",
        "Loss",
        "nats per trained token",
        (
            Series("every step", "metrics", "loss", "raw"),
            Series("smoothed", "metrics", "loss", "line", smoothed=True),
            Series("validation", "evals", "loss", "dots"),
            Series("validation, chat", "evals", "chat_loss", "dots", mark="square"),
        ),
        log=True,
    ),
    Chart(
        "bpb",
        "Validation",
        "bits per byte",
        (
            Series("text", "evals", "bpb", "points"),
            Series("chat", "evals", "chat_bpb", "points", mark="square"),
        ),
        log=True,
    ),
    Chart(
        "margin",
        "Margin",
        "reward of chosen replies over rejected ones",
        (
            Series("every step", "metrics", "margin", "raw"),
            Series("smoothed", "metrics", "margin", "line", smoothed=True),
            Series("held-out", "evals", "pair_margin", "points"),
        ),
        stage="dpo",
    ),
    Chart(
        "pair_accuracy",
        "Preferred",
        "share of pairs of which the chosen reply has the higher reward",
        (
            Series("smoothed", "metrics", "accuracy", "line", smoothed=True),
            Series("held-out", "evals", "pair_accuracy", "points"),
        ),
        from_zero=True,
        stage="dpo",
    ),
    Chart(
        "learning_rate",
        "Learning rate",
        "of the matrices",
        (Series("learning rate", "metrics", "learning_rate", "line"),),
        from_zero=True,
    ),
    Chart(
        "speed",
        "Speed",
        "tokens a second",
        (Series("tokens/s", "timings", "tokens_per_s", "line"),),
        from_zero=True,
    ),
    Chart(
        "grad_norm",
        "Gradient norm",
        "of all weights together",
        (Series("norm", "metrics", "grad_norm", "line"),),
        log=True,
    ),
)


def charts_of(stages: Sequence[Stage]) -> list[Chart]:
    """Those that a run with these stages can have something to show in."""
    trained = {stage.name for stage in stages if stage.trained}
    return [chart for chart in CHARTS if chart.stage is None or chart.stage in trained]


def payload(stages: Sequence[Stage], notes: list[str]) -> dict[str, Any]:
    """Everything the page's script draws. Adds to `notes` what the curves leave out."""
    trained = [stage for stage in stages if stage.trained]
    thinned, not_finite = 0, 0
    charts: list[dict[str, Any]] = []
    for chart in charts_of(stages):
        drawn: list[dict[str, Any]] = []
        for index, stage in enumerate(trained):
            for series in chart.series:
                rows: list[Row] = getattr(stage, series.rows)
                window = max(1.0, len(rows) * SMOOTHING_SHARE) if series.smoothed else None
                made = curve(rows, series.key, CURVE_POINTS, window)
                thinned = max(thinned, made.measured if made.measured > CURVE_POINTS else 0)
                not_finite += 0 if series.smoothed else made.not_finite
                if made.points:
                    about = {"stage": index, "label": series.label, "kind": series.kind, "mark": series.mark}
                    drawn.append({**about, **rounded(made.points)})
        charts.append(
            {
                "id": chart.id,
                "title": chart.title,
                "log": chart.log,
                "fromZero": chart.from_zero,
                "series": drawn,
            }
        )
    if thinned:
        notes.append(
            f"The longest curve has {number(thinned)} measurements. Each curve is drawn with at most "
            f"{number(CURVE_POINTS)}: of every bucket of neighbouring steps the lowest and the highest value "
            "are kept, so no spike is lost. The smoothed loss is computed from all of them."
        )
    if not_finite:
        notes.append(f"{number(not_finite)} values were not finite (NaN or infinite) and are not drawn.")
    return {"stages": [extent(stage) for stage in trained], "charts": charts}


def extent(stage: Stage) -> dict[str, Any]:
    """A stage's name, its first and last step, the steps at which it was resumed, and its bad ones."""
    steps = [
        int(row["step"])
        for row in [*stage.metrics, *stage.evals, *stage.timings]
        if is_number(row.get("step"))
    ]
    resumed = [
        int(row["step"]) for row in stage.events if row.get("kind") == "resume" and is_number(row.get("step"))
    ]
    return {
        "name": stage.name,
        "first": min(steps),
        "last": max(steps),
        "resumed": resumed,
        "faults": marks(stage),
    }


def in_words(chart: Chart, stages: Sequence[Stage]) -> str:
    """What a reader who can't see the chart should know: where each stage began and ended."""
    series = chart.series[0]
    parts = []
    for stage in stages:
        points = curve(getattr(stage, series.rows), series.key, CURVE_POINTS).points
        if points:
            (first, start), (last, end) = points[0], points[-1]
            parts.append(f"{stage.name} from {start:.4g} at step {first:,} to {end:.4g} at step {last:,}")
    return f"{chart.title} in {chart.unit}: {'; '.join(parts) if parts else 'nothing measured yet'}."


def rounded(points: Sequence[Point]) -> dict[str, list[float]]:
    """Points as the page's script takes them: five digits are finer than any screen."""
    return {"x": [step for step, _ in points], "y": [float(f"{value:.5g}") for _, value in points]}
