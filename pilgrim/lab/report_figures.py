"""The report's small charts, of which there are as many as a run has tasks, sources or rewards to show.

A figure is made of two halves: what stands around it on the page, filled in by the template, and what the
page's script draws in it, handed over as JSON. The script finds the place by the figure's id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pilgrim.lab.report_curves import Point


@dataclass(frozen=True)
class Figure:
    """One small chart."""

    id: str
    title: str
    unit: str
    words: str  # for who can't see it
    series: list[dict[str, Any]]
    chance: float | None = None  # where a dashed line is drawn

    def drawn(self) -> dict[str, Any]:
        """As the page's script takes it."""
        chance = {} if self.chance is None else {"chance": self.chance}
        about = {"id": self.id, "title": self.title, "log": False, "fromZero": False}
        return {**about, **chance, "series": self.series}


def drawn_line(
    stage: int, label: str, kind: str, points: Sequence[Point], mark: str = "circle"
) -> dict[str, Any]:
    """A line of a chart, as the page's script takes it. `stage` is its place among those that train."""
    return {"stage": stage, "label": label, "kind": kind, "mark": mark, **rounded(points)}


def rounded(points: Sequence[Point]) -> dict[str, list[float]]:
    """Points as the page's script takes them: five digits are finer than any screen."""
    return {"x": [step for step, _ in points], "y": [float(f"{value:.5g}") for _, value in points]}
