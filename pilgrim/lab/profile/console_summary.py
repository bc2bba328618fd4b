"""What `pilgrim profile` prints: the story of the page in some 25 lines, none wider than 80 columns.

Plain text, so that it can be piped, pasted into a message and compared. Names from a trace can hold
anything and be of any length: control characters are made visible, and long names are cut in the middle,
where those of C++ templates differ least.
"""

import textwrap

from pilgrim.lab.profile import words
from pilgrim.lab.profile.findings import Findings, Fix, Kernel
from pilgrim.lab.report_text import plain

WIDTH = 80
BAR = 30  # characters of the waterfall's whole width
KERNELS = 5
FIXES = 3


def summary(findings: Findings) -> str:
    """The profile as text for a terminal."""
    f = findings
    what = _line(f"{f.recipe}, {f.stage}, {f.dtype} on {f.machine}")
    blocks = [
        [*_wrapped(what), *_wrapped(words.sentence(f))],
        _waterfall(f),
        [*_phases(f), *_memory(f), *_compilation(f)],
        _kernels(f),
        _fixes(f),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _waterfall(f: Findings) -> list[str]:
    """A line for each stair that is there: name, its piece of the bar, share, time."""
    lines = [f"{f'peak, {words.flops(f.peak_flops)}':<28}{'█' * BAR}  100.0%"]
    for stair in words.stairs(f):
        if stair.share <= 0 and stair.name != "achieved":
            continue
        left = round(BAR * max(0.0, stair.bottom)) if stair.name != "achieved" else 0
        right = round(BAR * min(1.0, max(0.0, stair.top)))
        drawn = " " * left + ("█" * (right - left) or "▏")
        took = words.seconds(stair.share * f.step_s)
        lines.append(f"{stair.title[:27]:<28}{drawn:<{BAR}}  {100 * stair.share:5.1f}%  {took:>8}")
    return lines + _wrapped(words.disagreement(f) or "")


def _phases(f: Findings) -> list[str]:
    whole = sum(phase.seconds for phase in f.phases)
    parts = [f"{_line(p.name)} {words.share(p.seconds / whole)}" for p in f.phases if p.seconds > 0]
    return _labelled("Phases", ", ".join(parts) or words.UNKNOWN)


def _memory(f: Findings) -> list[str]:
    m = f.memory
    held = m.parameters + m.gradients + m.optimizer + m.activations + m.other
    gaps = f"; {words.size(m.fragmentation)} fragmented" if m.fragmentation is not None else ""
    rows = f"micro-batch of {m.micro_rows}, {m.micro_rows_that_fit} would fit"
    return _labelled("Memory", f"{words.size(held)} of {words.size(m.capacity)} at the peak{gaps}; {rows}")


def _compilation(f: Findings) -> list[str]:
    c = f.compilation
    if not c.enabled:
        return _labelled("Compile", "off: every operation is a kernel of its own")
    lines = _labelled(
        "Compile",
        f"{_many(c.graphs, 'graph')} in {words.seconds(c.seconds)}, {_many(len(c.breaks), 'graph break')}, "
        f"{_many(len(c.recompilations), 'recompilation')}",
    )
    causes = [("break", cause) for cause in c.breaks[:1]] + [("again", why) for why in c.recompilations[:1]]
    return lines + [f"  {what}: {_cut(cause, WIDTH - 9)}" for what, cause in causes]


def _kernels(f: Findings) -> list[str]:
    if not f.kernels:
        return ["Kernels  none were recorded"]
    head = f"{'Slowest kernels':<37}{'time':>8}{'share':>7}{'GFLOP/s':>9}{'GB/s':>7}  {'bound by':<8}"
    return [head.rstrip(), *(_kernel(kernel, f) for kernel in f.kernels[:KERNELS])]


def _kernel(k: Kernel, f: Findings) -> str:
    speed, moved = words.per_second(k.flops or None, k.seconds), words.per_second(k.bytes, k.seconds)
    return (
        f"{_cut(k.name, 36):<37}{words.seconds(k.seconds):>8}{words.share(f.share_of(k)):>7}"
        f"{_giga(speed):>9}{_giga(moved):>7}  {_line(k.bound)[:8]}"
    ).rstrip()


def _fixes(f: Findings) -> list[str]:
    if not f.fixes:
        return ["Fixes    none that would be beyond the noise"]
    lines = ["Fixes, the largest predicted gain first"]
    for rank, fix in enumerate(f.fixes[:FIXES], 1):
        lines += _fix(rank, fix, f)
    return lines


def _fix(rank: int, fix: Fix, f: Findings) -> list[str]:
    after = words.seconds(f.step_s * (1 - fix.gain))
    title = f"{rank}. {_line(fix.title)}: {words.share(fix.gain)} less, {after} a step"
    indent = "     "
    return [*_wrapped(title, "  ", indent), *_wrapped(_line(fix.setting), indent, indent)]


def _labelled(label: str, text: str) -> list[str]:
    return _wrapped(f"{label:<9}{text}", "", " " * 9)


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _giga(value: float | None) -> str:
    return "–" if value is None else words.three(value / 1e9)


def _line(text: str) -> str:
    return plain(" ".join(text.split()))


def _cut(text: str, width: int) -> str:
    """`text` in `width` characters; of a longer one the middle is left out."""
    line = _line(text)
    tail = width // 3
    return line if len(line) <= width else f"{line[: width - tail - 1]}…{line[-tail:]}"
