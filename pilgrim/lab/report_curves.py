"""From rows of numbers to curves that a page can hold.

A run of a hundred thousand steps writes a hundred thousand rows; a screen is a thousand points wide.
Taking every hundredth row would lose exactly what one looks for, the single spike. So the steps are
cut into buckets, and from each bucket the lowest and the highest value are kept, at the steps where
they happened: drawn, such a curve covers the same pixels as the whole one.

Training loss is also smoothed: each point becomes a mean of its neighbours on both sides, with weights
that fall off exponentially. Looking both ways keeps the smoothed curve where the loss is; the usual
running mean looks back only and hangs above a falling loss. Each mean is divided by the weights that
went into it, so the edges are not drawn towards zero, and a constant 5.0 stays 5.0 from the first row on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

Point = tuple[int, float]  # (step, value)


@dataclass(frozen=True)
class Curve:
    """One curve to draw, and what had to be left out of it."""

    points: list[Point]  # by step, downsampled, all finite
    measured: int  # finite values before downsampling
    not_finite: int  # NaN and infinite values: nowhere to be drawn


def is_number(value: object) -> TypeGuard[int | float]:
    """True for a finite int or float; False for None, text, NaN, infinity, and also for true/false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def downsample(points: Sequence[Point], limit: int) -> list[Point]:
    """At most `limit` of the points (`limit` >= 4), in order, with every bucket's extremes among them.

    The first and last point always stay. The others are cut into (limit - 2) / 2 runs of equal length,
    each of which gives its lowest and its highest point (the earlier one where several are equal).
    """
    if len(points) <= limit:
        return list(points)
    buckets = (limit - 2) // 2
    inner = len(points) - 2
    kept = {0, len(points) - 1}
    for bucket in range(buckets):
        run = range(1 + bucket * inner // buckets, 1 + (bucket + 1) * inner // buckets)
        kept.add(min(run, key=lambda index: points[index][1]))
        kept.add(max(run, key=lambda index: points[index][1]))
    return [points[index] for index in sorted(kept)]


def smooth(points: Sequence[Point], window: float) -> list[Point]:
    """The mean over about `window` (>= 1) neighbouring points, weighted by exp-like decay on both sides.

    The weight of a neighbour n points away is decay**n; the weights of an endless curve add up to `window`.
    """
    decay = (window - 1.0) / (window + 1.0)
    before = _running([value for _, value in points], decay)
    after = _running([value for _, value in reversed(points)], decay)[::-1]
    out = []
    for (step, value), (sum_before, weight_before), (sum_after, weight_after) in zip(
        points, before, after, strict=True
    ):
        # The point itself is in both sums, with weight 1.
        mean = (sum_before + sum_after - value) / (weight_before + weight_after - 1.0)
        out.append((step, mean))
    return out


def _running(values: Sequence[float], decay: float) -> list[tuple[float, float]]:
    """For each value the decayed sum of it and those before it, and the decayed count."""
    total, weight = 0.0, 0.0
    sums = []
    for value in values:
        total = decay * total + value
        weight = decay * weight + 1.0
        sums.append((total, weight))
    return sums


def finite_points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[Point], int]:
    """The (step, value) pairs of the rows that measured `key`, by step, and how many were not finite."""
    measured = [(row["step"], row[key]) for row in rows if is_number(row.get("step")) and key in row]
    points = sorted((int(step), float(value)) for step, value in measured if is_number(value))
    not_finite = sum(value in ("nan", "inf", "-inf") for _, value in measured)  # as the run log writes them
    return points, not_finite


def curve(rows: Sequence[Mapping[str, Any]], key: str, limit: int, window: float | None = None) -> Curve:
    """The rows' values of `key` as a curve of at most `limit` points; smoothed first if given a window."""
    points, not_finite = finite_points(rows, key)
    drawn = smooth(points, window) if window is not None else points
    return Curve(downsample(drawn, limit), measured=len(points), not_finite=not_finite)


def spread(count: int, keep: int) -> list[int]:
    """`keep` (>= 2) of the indices 0..count-1, evenly spread, the first and the last among them."""
    if count <= keep:
        return list(range(count))
    return sorted({round(place * (count - 1) / (keep - 1)) for place in range(keep)})
