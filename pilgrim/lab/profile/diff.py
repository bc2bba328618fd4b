"""What really happened between two profiles: `pilgrim profile --diff A B`.

A prediction is cheap, so the comparison asks three questions in order. Can the two be compared at all? Is
the difference beyond the noise? And did the change that A advised keep its promise?

Noise. Steps of one profile scatter, so each gives a sample of times. The ratio B/A of their geometric means
gets a 95% interval by Welch's t-test on the logarithms (Welch 1947), which allows the two to scatter
differently:

    d = mean(log b) - mean(log a)        s² = var(log b)/nb + var(log a)/na        d ± t(ν) s

with Welch's ν for the degrees of freedom, and n the number of independent steps, which is less than that of
all if slow ones come in a row. Logarithms, because a change of speed multiplies a time. The
interval knows the noise within one run only. Two runs of the same program differ by some more, since each
finds other places in memory and another temperature; only repeating tells by how much.

Promise. A fix of A names a setting and the share of the step it would save. If the recipes beside the
profiles are there, the settings that differ are known: a fix whose setting B has is held against what was
measured. If anything else was changed, too, what was measured is the effect of all of it together, and that
is said.
"""

import math
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.lab.profile import words
from pilgrim.lab.profile.findings import Findings, Fix
from pilgrim.lab.report_text import plain, shortened

WIDTH = 80
CONFIDENCE = 0.95
MOVERS = 8  # kernels listed
LEAST_MOVE = 0.005  # of A's step: what moved less isn't listed
PROFILE, RECIPE = "profile.json", "recipe.toml"  # in a profile's folder

Floats = NDArray[np.float64]
Settings = Mapping[str, object]  # "pretrain.micro_rows" -> 16


@dataclass(frozen=True)
class Change:
    """By how much a step's time changed: B's as a multiple of A's, with its interval (None: not known)."""

    a_s: float
    b_s: float
    low: float | None
    high: float | None
    restless: bool = False  # slow steps came in a row: there is far less to go by than the number of steps

    @property
    def ratio(self) -> float:
        return self.b_s / self.a_s

    @property
    def real(self) -> bool:
        """Whether the interval leaves "no difference" out."""
        return self.low is not None and self.high is not None and not self.low <= 1.0 <= self.high


def compare_folders(a: Path, b: Path) -> str:
    """`compare` for two folders that `pilgrim profile` wrote, or the profile.json in them.

    Raises PilgrimError if one isn't such a folder.
    """
    file_a, file_b = _file(a), _file(b)
    return compare(
        Findings.load(file_a), Findings.load(file_b), settings(file_a.parent), settings(file_b.parent)
    )


def compare(
    a: Findings, b: Findings, settings_a: Settings | None = None, settings_b: Settings | None = None
) -> str:
    """What changed from A to B, in plain text. Settings as `settings` reads them; None where not known.

    Raises PilgrimError where the two can't be compared: another machine, another stage.
    """
    refuse(a, b)
    times = 1.0 if a.tokens == b.tokens else a.tokens / b.tokens  # B's times as if for A's tokens
    change = step_change(a.step_s_each or (a.step_s,), [times * s for s in b.step_s_each or (b.step_s,)])
    changed = None if settings_a is None or settings_b is None else differences(settings_a, settings_b)
    blocks = [
        [*_warnings(a, b), *_wrapped(verdict(change, len(a.step_s_each), len(b.step_s_each)))],
        _settings(changed),
        _table("Phases", _phases(a), _phases(b), times),
        _stairs(a, b, times),
        _kernels(a, b, times),
        _memory(a, b),
        _promises(a, change, changed),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


# Can they be compared? -----------------------------------------------------------------------------------


def refuse(a: Findings, b: Findings) -> None:
    """Raises PilgrimError where times would say nothing about each other."""
    for what, of_a, of_b in (("machine", a.machine, b.machine), ("stage", a.stage, b.stage)):
        if of_a != of_b:
            raise PilgrimError(
                f"--diff: {what} {plain(of_a)!r} can't be compared with {what} {plain(of_b)!r}; "
                f"profile both on one {what}"
            )
    if a.tokens <= 0 or b.tokens <= 0:
        raise DataError(f"--diff: steps of {a.tokens} and {b.tokens} tokens can't be compared")


def _warnings(a: Findings, b: Findings) -> list[str]:
    lines = []
    if a.tokens != b.tokens:
        lines += _wrapped(
            f"Careful: a step of A has {a.tokens:,} tokens, one of B {b.tokens:,}; B's times are told for as "
            "many tokens as A's."
        )
    if abs(b.peak_flops / a.peak_flops - 1) > 0.05:
        lines += _wrapped(
            f"Careful: the measured peak is {words.flops(a.peak_flops)} in A ({a.dtype}) and "
            f"{words.flops(b.peak_flops)} in B ({b.dtype}), so their stairs are shares of different peaks."
        )
    return lines


# Is it beyond the noise? ---------------------------------------------------------------------------------


def step_change(a_s: Sequence[float], b_s: Sequence[float]) -> Change:
    """The change of typical times (geometric means), with Welch's interval if both have two times or more."""
    log_a, log_b = np.log(np.asarray(a_s, dtype=float)), np.log(np.asarray(b_s, dtype=float))
    a, b = float(log_a.mean()), float(log_b.mean())
    low = high = None
    restless = False
    if min(len(log_a), len(log_b)) >= 2:
        n_a, n_b = independent(log_a), independent(log_b)
        of_a, of_b = float(log_a.var(ddof=1)) / n_a, float(log_b.var(ddof=1)) / n_b
        half = 0.0
        if of_a + of_b > 0:
            freedom = (of_a + of_b) ** 2 / (of_a**2 / (n_a - 1) + of_b**2 / (n_b - 1))
            half = t_quantile(freedom) * math.sqrt(of_a + of_b)
        low, high = math.exp(b - a - half), math.exp(b - a + half)
        restless = n_a < len(log_a) / 2 or n_b < len(log_b) / 2
    return Change(math.exp(a), math.exp(b), low, high, restless)


def independent(values: Floats) -> float:
    """How many independent values these are worth, at least 2; fewer than there are if neighbours are alike.

    With a correlation r of neighbours, n values in a row tell as much about their mean as n (1 - r) / (1 + r)
    independent ones (a first-order autoregression). The usual estimate of r is too small by (1 + 3 r) / n
    (Kendall 1954), which matters for so few. Without this, steps in which a machine was busy for a while look
    like many witnesses where they are one.
    """
    n, apart = len(values), values - values.mean()
    spread = float(apart @ apart)
    if n < 4 or spread == 0:
        return float(max(n, 2))
    alike = float(apart[1:] @ apart[:-1]) / spread
    alike = min(max(alike + (1 + 3 * alike) / n, 0.0), 0.9)
    return max(2.0, n * (1 - alike) / (1 + alike))


def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The t for which Student's distribution has `confidence` of its mass within ±t.

    With t = sqrt(ν) tan θ, the mass within ±θ is the integral of cos(θ)^(ν-1), here summed up in small steps.
    """
    theta = np.linspace(0.0, math.pi / 2, 20_001)
    mass = np.cumsum(np.cos((theta[1:] + theta[:-1]) / 2) ** (freedom - 1))
    within = float(np.interp(confidence, mass / mass[-1], theta[1:]))
    return math.sqrt(freedom) * math.tan(within)


def verdict(change: Change, steps_a: int, steps_b: int) -> str:
    """The first sentences: from what to what, with the interval, and whether that means anything."""
    start = f"A {words.seconds(change.a_s)}, B {words.seconds(change.b_s)} a step: {_times(change.ratio)}"
    if change.low is None or change.high is None:
        return f"{start}. With single steps the noise is not known: profile at least two of each."
    between = f"95% interval {_times(change.low)} to {_times(change.high)}, {steps_a} and {steps_b} steps"
    restless = (
        " Slow steps came in a row, as if another program was at work: measure again on a quiet machine."
        if change.restless
        else ""
    )
    if not change.real:
        return f"{start} ({between}). That is within the noise: no difference was shown.{restless}"
    return (
        f"{start} ({between}). That is beyond the noise of these steps; runs differ by some more, so repeat "
        f"both if it is small.{restless}"
    )


# What differs --------------------------------------------------------------------------------------------


def settings(folder: Path) -> dict[str, object] | None:
    """All settings of the recipe in a profile's folder, by dotted name; None if there is none."""
    file = folder / RECIPE
    if not file.is_file():
        return None
    try:
        return _flat(tomllib.loads(file.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise DataError(f"{file} can't be read as a recipe ({error}); make the profile again") from error


def differences(a: Settings, b: Settings) -> dict[str, tuple[object, object]]:
    """Settings that differ, with both values; None where one has no such setting. The name is no setting."""
    keys = [key for key in dict.fromkeys([*a, *b]) if key != "name"]
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def _settings(changed: Mapping[str, tuple[object, object]] | None) -> list[str]:
    if changed is None:
        return _wrapped(
            f"Which settings differ is not known: {RECIPE} is missing beside one of the profiles."
        )
    if not changed:
        return ["Settings: the same in both."]
    lines = [f"  {plain(key)}: {_value(a)} -> {_value(b)}" for key, (a, b) in changed.items()]
    return ["Settings that differ", *(shortened(line, WIDTH) for line in lines)]


def _table(title: str, a: Mapping[str, float], b: Mapping[str, float], times: float) -> list[str]:
    """Seconds by name in both, and by how much they moved; names of which neither has any are left out."""
    rows = [(name, a.get(name, 0.0), times * b.get(name, 0.0)) for name in dict.fromkeys([*a, *b])]
    rows = [row for row in rows if row[1] or row[2]]
    return [_head(title), *(_row(*row) for row in rows)] if rows else []


def _stairs(a: Findings, b: Findings, times: float) -> list[str]:
    def timed(f: Findings) -> dict[str, float]:
        return {stair.title: stair.share * f.step_s for stair in words.stairs(f)}

    return _table("Stairs of the waterfall", timed(a), timed(b), times)


def _phases(f: Findings) -> dict[str, float]:
    return {phase.name: phase.seconds for phase in f.phases}


def _kernels(a: Findings, b: Findings, times: float) -> list[str]:
    """Kinds of kernels that moved most, whichever way. A name that only one has was replaced by others."""

    def timed(f: Findings, factor: float) -> dict[str, float]:
        seconds: dict[str, float] = {}
        for kernel in f.kernels:
            seconds[kernel.name] = seconds.get(kernel.name, 0.0) + factor * kernel.seconds
        return seconds

    before, after = timed(a, 1.0), timed(b, times)
    moves = {n: after.get(n, 0.0) - before.get(n, 0.0) for n in dict.fromkeys([*before, *after])}
    largest = sorted(moves, key=lambda n: -abs(moves[n]))[:MOVERS]
    rows = [
        (n, before.get(n, 0.0), after.get(n, 0.0)) for n in largest if abs(moves[n]) > LEAST_MOVE * a.step_s
    ]
    return [_head("Kernels that moved most"), *(_row(*row) for row in rows)] if rows else []


def _memory(a: Findings, b: Findings) -> list[str]:
    kinds = ("parameters", "gradients", "optimizer", "activations", "other", "fragmentation")
    parts = []
    for kind in kinds:
        before, after = getattr(a.memory, kind), getattr(b.memory, kind)
        if None not in (before, after) and abs(after - before) > 0.01 * max(before, after):
            parts.append(f"{kind} {words.size(before)} -> {words.size(after)}")
    rows = f"micro-batch of {a.memory.micro_rows} rows, then {b.memory.micro_rows}"
    return _wrapped(f"Memory: {'; '.join(parts) or 'the same in both'} ({rows}).")


# Was the promise kept? -----------------------------------------------------------------------------------


def _promises(a: Findings, change: Change, changed: Mapping[str, tuple[object, object]] | None) -> list[str]:
    """Each fix of A beside what was measured, if B has its setting."""
    if not a.fixes:
        return []
    return ["What A predicted", *(line for fix in a.fixes for line in _promise(fix, change, changed))]


def _promise(fix: Fix, change: Change, changed: Mapping[str, tuple[object, object]] | None) -> list[str]:
    text = f"{plain(fix.title)}: predicted {words.share(fix.gain)} less"
    advised = words.settings_of(fix)
    if not advised:
        return _wrapped(
            f"{text}; a profile can't tell whether it was done, as it is no setting.", "  ", "    "
        )
    if changed is None:
        return _wrapped(f"{text}; whether it was done is not known.", "  ", "    ")
    if not advised.keys() & changed.keys():
        return _wrapped(f"{text}; not tried ({', '.join(advised)}: the same in both).", "  ", "    ")
    text = f"{text}, measured {_gain(change)}: {kept(fix.gain, change)}."
    for key, value in advised.items():
        if key not in changed:
            text += f" The advice was {key}={value}, too, which is the same in both."
        elif not _same(changed[key][1], value):
            text += f" The advice was {key}={value}; B has {_value(changed[key][1])}."
    others = [plain(other) for other in changed if other not in advised]
    if others:
        text += f" But {', '.join(others)} changed, too, and this is the effect of all of it."
    return _wrapped(text, "  ", "    ")


def kept(gain: float, change: Change) -> str:
    """How a predicted gain compares with the measured one and its interval."""
    if change.low is None or change.high is None:
        return "whether that is noise is not known"
    if not change.real:
        return "no difference beyond the noise" if change.low > 1 - gain else "too noisy to tell"
    if change.ratio > 1:
        return "the opposite happened"
    if 1 - change.high > gain:
        return "more than promised"
    if 1 - change.low < gain:
        return "less than promised"
    return "as promised, within the noise"


# Words ---------------------------------------------------------------------------------------------------


def _times(ratio: float) -> str:
    """0.871 -> '12.9% less'; 1.05 -> '5.0% more'."""
    percent = f"{100 * abs(1 - ratio):.1f}%"
    return f"{percent} {'less' if ratio <= 1 else 'more'}"


def _gain(change: Change) -> str:
    if change.low is None or change.high is None:
        return _times(change.ratio)
    return f"{_times(change.ratio)} ({_times(change.high)} to {_times(change.low)})"


def _head(title: str) -> str:
    return f"{title:<44}{'A':>10}{'B':>11}{'B - A':>12}"


def _row(name: str, a_s: float, b_s: float) -> str:
    moved = b_s - a_s
    difference = ("+" if moved > 0 else "") + words.seconds(moved)
    return f"  {_cut(name, 41):<42}{words.seconds(a_s):>10}{words.seconds(b_s):>11}{difference:>12}"


def _cut(text: str, width: int) -> str:
    line = plain(" ".join(text.split()))
    return line if len(line) <= width else f"{line[: width * 2 // 3 - 1]}…{line[-(width // 3) :]}"


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _value(value: object) -> str:
    return "not set" if value is None else plain(str(value).lower() if isinstance(value, bool) else value)


def _same(value: object, written: str) -> bool:
    """Whether a setting's value is what a fix would have written."""
    return _value(value) == written.strip("\"'")


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _file(path: Path) -> Path:
    file = path if path.name == PROFILE else path / PROFILE
    if not file.is_file():
        raise DataError(f"{path} holds no {PROFILE}; --diff takes two folders that pilgrim profile wrote")
    return file
