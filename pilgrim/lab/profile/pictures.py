"""Where things lie in the page's drawings: the arithmetic only; the template writes the SVG.

All drawings are made without a script and fit any screen: what lies along them is given in percent of the
width, what stands up in pixels of a fixed height. Along both axes of the roofline lie logarithms, so
bandwidth times intensity, a line through the origin, becomes a slope of 45 degrees (before the screen
stretches it), and factors become distances.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pilgrim.lab.profile.findings import Findings, Memory
from pilgrim.lab.profile.words import flops, per_second, seconds, size

ROOF_HEIGHT = 380  # pixels
CURVE = 1000.0  # units of the memory curve's own coordinates, both ways
DOT = (8.0, 24.0)  # pixels; the radius of a kernel that takes next to no time, and of one that takes it all
TICKS = 9  # decades that are labelled on one axis, at most


@dataclass(frozen=True)
class Part:
    """A piece of a bar, in percent of its width."""

    name: str
    x: float
    width: float


@dataclass(frozen=True)
class Dot:
    """A kernel in the roofline."""

    rank: int  # its number in the table, from 1
    x: float  # percent
    y: float  # pixels from the top
    r: float  # pixels


@dataclass(frozen=True)
class Line:
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Roofline:
    slope: Line
    flat: Line
    spec_y: float | None  # the maker's promise
    dots: list[Dot]  # the longest first, so that a small one is drawn above a large one
    ticks_x: list[Tick]
    ticks_y: list[Tick]
    height: int = ROOF_HEIGHT


@dataclass(frozen=True)
class Curve:
    """Bytes held over a step: paths in coordinates of 0 to CURVE, y downward."""

    line: str
    area: str
    steady_y: float  # what is held all the time: parameters and the optimizer's state
    peak_x: float  # percent of the width
    ticks_y: list[Tick]  # in units of the drawing
    ticks_x: list[Tick]  # percent of the width
    peak: float  # bytes
    length_s: float


def bar(amounts: Sequence[tuple[str, float]], whole: float | None = None) -> list[Part]:
    """Pieces side by side, each as wide as its share of `whole`, or of their sum; empty ones are left out."""
    total = whole or sum(amount for _, amount in amounts)
    parts, x = [], 0.0
    for name, amount in amounts:
        if amount > 0 and total > 0:
            parts.append(Part(name, x, 100 * amount / total))
            x += 100 * amount / total
    return parts


def roofline(findings: Findings, most: int) -> Roofline | None:
    """The measured limits, and a dot for each of the first `most` kernels that multiplies and is not bound
    by its launch alone. None if there is no such kernel.
    """
    peak, copy = findings.peak_flops, findings.copy_bytes_per_s
    points = []  # rank, intensity, speed, share of the time
    for rank, kernel in enumerate(findings.kernels[:most], 1):
        speed = per_second(kernel.flops, kernel.seconds)
        if speed and kernel.flops and kernel.bytes and kernel.bytes > 0:
            share = kernel.seconds / max(findings.step_s, kernel.seconds)
            points.append((rank, kernel.flops / kernel.bytes, speed, share))
    if not points or peak <= 0 or copy <= 0:
        return None
    ridge = peak / copy
    x_of = _axis([ridge, *(point[1] for point in points)], 0.0, 100.0)
    speeds = [peak, findings.spec_flops or peak, *(point[2] for point in points)]
    y_of = _axis(speeds, float(ROOF_HEIGHT), 0.0)
    left = max(x_of.low, y_of.low / copy)  # where the slope enters the drawing
    return Roofline(
        slope=Line(x_of(left), y_of(left * copy), x_of(ridge), y_of(peak)),
        flat=Line(x_of(ridge), y_of(peak), 100.0, y_of(peak)),
        spec_y=y_of(findings.spec_flops) if findings.spec_flops else None,
        dots=[Dot(rank, x_of(x), y_of(y), _radius(share)) for rank, x, y, share in points],
        ticks_x=[Tick(x_of(value), f"{value:,.4g}") for value in x_of.decades()],
        ticks_y=[Tick(y_of(value), short(flops(value))) for value in y_of.decades()],
    )


def memory_curve(memory: Memory) -> Curve | None:
    """The curve of bytes held, as stairs: what is held stays so until the next change."""
    points = memory.curve
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return None
    start, end = points[0][0], points[-1][0]
    top = 1.05 * max(held for _, held in points) or 1.0
    xs = [CURVE * (time - start) / (end - start) for time, _ in points]
    ys = [CURVE * (1 - held / top) for _, held in points]
    line = f"M{xs[0]:.1f} {ys[0]:.1f}" + "".join(
        f"H{x:.1f}V{y:.1f}" for x, y in zip(xs[1:], ys[1:], strict=True)
    )
    steady = min(memory.parameters + memory.optimizer, top)
    return Curve(
        line=line,
        area=f"{line}V{CURVE:g}H0Z",
        steady_y=CURVE * (1 - steady / top),
        peak_x=100 * xs[min(range(len(ys)), key=ys.__getitem__)] / CURVE,
        ticks_y=[Tick(CURVE * (1 - value / top), short(size(value))) for value in even(top, _unit(top))],
        ticks_x=[Tick(100 * value / (end - start), short(seconds(value))) for value in even(end - start)],
        peak=max(held for _, held in points),
        length_s=end - start,
    )


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis: called with a value, it returns the place."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        along = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + along * (self.end - self.start)

    def decades(self) -> list[float]:
        """Powers of ten within the axis; every other one where they would crowd it."""
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        every = math.ceil((last - first + 1) / TICKS) or 1
        return [10.0**power for power in range(first, last + 1, every)]


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis that holds the values, with room at both ends, over at least two decades."""
    low, high = min(values) / 2.5, max(values) * 2.5
    if high / low < 100:
        low = high / 100
    return Axis(low, high, start, end)


def even(top: float, unit: float = 1.0) -> list[float]:
    """Round values from 0 to `top`, some four of them: multiples of 1, 2 or 5 times a power of ten units."""
    least = top / unit / 5
    power = 10.0 ** math.floor(math.log10(least))
    step = unit * next(power * n for n in (1, 2, 5, 10) if power * n >= least)
    return [step * n for n in range(math.floor(top / step + 1e-9) + 1)]


def _unit(top: float) -> float:
    return next((unit for unit in (2.0**30, 2.0**20, 2.0**10) if top >= unit), 1.0)


def _radius(share: float) -> float:
    """A circle's area tells its share of the time, above the least radius that holds a number."""
    return max(DOT[0], DOT[1] * math.sqrt(share))


def short(text: str) -> str:
    """'10.0 GFLOP/s' -> '10 GFLOP/s': a round number needs no digits after the point."""
    number, unit = text.split(" ")
    return f"{float(number.replace(',', '')):g} {unit}"
