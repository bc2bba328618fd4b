"""How a profile says things: its one sentence, its stairs, its times and speeds.

The page, the console and the comparison all tell the same story, so its words have one home here. Numbers of
one kind span a wide range in a profile (a kernel takes microseconds, compiling it takes a minute), so each is
written with the unit that leaves one to three digits before the point. What was not measured is None, and
becomes words, never a zero.
"""

import re
from dataclasses import dataclass

from pilgrim.lab.profile.findings import LOSSES, Findings, Fix
from pilgrim.lab.report_curves import is_number
from pilgrim.lab.report_text import plain

UNKNOWN = "not known"

# What a stair, a phase or a bound is called in a sentence. Unknown ones keep their name.
NAMES = {
    "data_wait": "data wait",
    "idle": "idle",
    "launch_overhead": "launch overhead",
    "exposed_communication": "exposed communication",
    "memory_bound": "memory-bound work",
    "elementwise_inefficiency": "elementwise inefficiency",
    "recomputation": "recomputation",
    "extra_products": "extra products",
    "matmul_inefficiency": "matmul inefficiency",
    "achieved": "achieved",
}

# Each stair in one line, for who meets it first. The glossary (terms.py) says more.
IN_SHORT = {
    "data_wait": "waiting for the next batch",
    "idle": "nothing to do, because the host waits or is busy with something else",
    "launch_overhead": "waiting for the host to call the next kernel, and kernels shorter than a call",
    "exposed_communication": "waiting for numbers from other processes, with nothing to compute meanwhile",
    "memory_bound": "moving bytes to and from memory, slower than they could be computed with",
    "elementwise_inefficiency": "work number by number that is slower than its bytes explain",
    "recomputation": "computing again what was thrown away to save memory",
    "extra_products": "products that the model's arithmetic doesn't count, as the optimizer's",
    "matmul_inefficiency": "multiplying, but slower than the best product this machine did",
    "achieved": "what the model's arithmetic would take at the measured peak: the MFU",
}


@dataclass(frozen=True)
class Stair:
    """One stair of the waterfall, as shares of the step's time: from `top` down by `share`."""

    name: str
    title: str
    short: str
    share: float
    top: float

    @property
    def bottom(self) -> float:
        return self.top - self.share


def title(name: str) -> str:
    """What a stair or a phase is called."""
    return NAMES.get(name) or plain(name.replace("_", " "))


def stairs(findings: Findings) -> list[Stair]:
    """The waterfall from the peak (1) down to the achieved share: its heights sum to 1.

    Stairs come in the order of LOSSES, each of them, then any that this version doesn't know.
    """
    shares = {name: 0.0 for name in LOSSES}
    for loss in findings.losses:
        shares[loss.name] = shares.get(loss.name, 0.0) + loss.share
    found, top = [], 1.0
    for name, share in shares.items():
        found.append(Stair(name, title(name), IN_SHORT.get(name, ""), share, top))
        top -= share
    return [*found, Stair("achieved", title("achieved"), IN_SHORT["achieved"], top, top)]


def largest_loss(findings: Findings) -> Stair | None:
    """The highest stair; None if nothing was lost."""
    losses = [stair for stair in stairs(findings)[:-1] if stair.share > 0]
    return max(losses, key=lambda stair: stair.share, default=None)


def sentence(findings: Findings) -> str:
    """The whole profile in one sentence."""
    loss = largest_loss(findings)
    what = "a token" if findings.stage == "generate" and findings.tokens == 1 else "a step"
    start = (
        f"{seconds(findings.step_s)} {what}, {share(findings.mfu)} of what this machine multiplied at best"
    )
    if loss is None:
        return f"{start}; no loss was found."
    return f"{start}; the largest loss is {loss.title}, {share(loss.share)}."


def disagreement(findings: Findings) -> str | None:
    """A remark where the stairs and the MFU, from different clocks, are more than a point apart."""
    left = stairs(findings)[-1].share
    if abs(left - findings.mfu) <= 0.01:
        return None
    return (
        f"The stairs leave {share(left)} for what was achieved, while operations over time make an MFU of "
        f"{share(findings.mfu)}: some kernels were attributed to the wrong stair."
    )


# Numbers ------------------------------------------------------------------------------------------------


def three(value: float) -> str:
    """Three digits that count, or all those before the point: 1.23, 12.3, 123, 1,234."""
    if value == 0:
        return "0"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def scaled(value: object, units: list[tuple[float, str]]) -> str:
    """`value` in the largest unit that it has at least one of, else in the smallest."""
    if not is_number(value):
        return UNKNOWN
    size, unit = next((pair for pair in units if abs(value) >= 0.9995 * pair[0]), units[-1])
    return f"{three(value / size)} {unit}"


def seconds(value: object) -> str:
    """'85.0 µs', '412 ms', '1.24 s', '2 min 5 s'."""
    if is_number(value) and abs(value) >= 119.5:
        return f"{round(value) // 60} min {round(value) % 60} s"
    if is_number(value) and abs(value) < 5e-9:
        return "0 ms"
    return scaled(value, [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")])


def flops(value: object) -> str:
    """Floating-point operations a second: '1.42 TFLOP/s'."""
    return scaled(value, [(1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s")])


def rate(value: object) -> str:
    """Bytes a second: '936 GB/s'. Speeds of memory are told in powers of ten, as its makers do."""
    return scaled(value, [(1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s")])


def size(value: object) -> str:
    """Bytes held: '1.23 GiB'. Sizes of memory are told in powers of two, as allocators count."""
    return scaled(value, [(2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")])


def count(value: float) -> str:
    """Launches in a step: a mean, but mostly a whole number."""
    return f"{value:,.0f}" if abs(value - round(value)) < 0.05 else f"{value:,.1f}"


def share(value: object) -> str:
    """A share in 0..1: '50%', '2.1%', '0.3%', '<0.1%'."""
    if not is_number(value):
        return UNKNOWN
    if 0 < value < 0.0005:
        return "<0.1%"
    return f"{100 * value:.0f}%" if abs(value) >= 0.0995 or value == 0 else f"{100 * value:.1f}%"


def per_second(amount: float | None, time_s: float) -> float | None:
    """A speed; None where the amount isn't known or no time passed."""
    return amount / time_s if amount is not None and time_s > 0 else None


def settings_of(fix: Fix) -> dict[str, str]:
    """The settings that a fix says to write, by dotted name; none where its cure is no setting of a recipe.

    They stand at the beginning, one after the other; prose may follow.
    """
    found: dict[str, str] = {}
    for word in fix.setting.split():
        pair = re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)*)=([^\s,]+),?", word)
        if pair is None:
            break
        found[pair[1]] = pair[2]
    return found
