"""How the report writes things down: numbers, times, text of unknown origin, and TOML.

Whatever was not measured is written as a dash; nothing is made up in its place. Text from a model
or a corpus may hold anything, so control characters become visible stand-ins and halves of surrogate
pairs (which no UTF-8 file can hold) become the replacement character. Making it harmless as HTML is
not done here: the template engine escapes every string that is not `Markup`.
"""

import re
from datetime import UTC, datetime

from markupsafe import Markup, escape

from pilgrim.lab.report_curves import is_number

DASH = "–"  # not known


def plain(value: object) -> str:
    """`value` as text that HTML and UTF-8 can hold: controls other than newline and tab become pictures."""
    if value is None:
        return DASH
    text = str(value).encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n")
    return "".join(
        chr(0x2400 + ord(char)) if ord(char) < 32 and char not in "\n\t" else char for char in text
    ).replace("\x7f", "␡")


def shortened(text: str, limit: int) -> str:
    """`text`, cut at `limit` characters with a remark that says so."""
    return text if len(text) <= limit else f"{text[:limit]} … [{len(text) - limit:,} more characters]"


def number(value: object, digits: int = 0) -> str:
    """1234567 -> '1,234,567'; with digits, that many decimals."""
    return f"{value:,.{digits}f}" if is_number(value) else DASH


def compact(value: object) -> str:
    """1234567 -> '1.23 M': three digits that count, with k, M, B or T."""
    if not is_number(value):
        return DASH
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            digits = 2 if abs(value) < 9.995 * size else 1 if abs(value) < 99.95 * size else 0
            return f"{value / size:.{digits}f} {letter}"
    return f"{value:.3g}"


def duration(value: object) -> str:
    """Seconds as a person says them: '0.4 s', '42 s', '7 min 42 s', '3 h 12 min', '2 d 4 h'."""
    if not is_number(value):
        return DASH
    if value < 9.95:
        return f"{value:.1f} s"
    seconds = round(value)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    minutes = round(value / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def percent(value: object) -> str:
    """A share in 0..1 -> '96.5%'; whole numbers without decimals."""
    if not is_number(value):
        return DASH
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def instant(value: object) -> datetime | None:
    """An ISO string or seconds since 1970 as a time in UTC; None if it is neither."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        if is_number(value):
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def moment(value: object) -> str:
    """A time as '3 May 2026, 14:05 UTC'; text that is no time stays as it is."""
    when = instant(value)
    return f"{when.day} {when:%B %Y, %H:%M} UTC" if when else plain(value)


def clock(value: object) -> str:
    """A time as '2026-05-03 14:05:09', UTC; text that is no time stays as it is."""
    when = instant(value)
    return f"{when:%Y-%m-%d %H:%M:%S}" if when else plain(value)


_TOML = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'[^']*')|(?P<comment>\#.*)|(?P<number>\b(?:true|false)\b|[-+]?\b\d[\w.+-]*)"""
)
_TOML_KEY = re.compile(r"""(\s*)([\w."'-]+)(\s*=)""")


def _highlight_line(line: str) -> Markup:
    if line.lstrip().startswith("["):
        return Markup('<span class="t-table">{}</span>').format(line)
    out = Markup()
    start = 0
    if key := _TOML_KEY.match(line):
        out += Markup('{}<span class="t-key">{}</span>{}').format(*key.groups())
        start = key.end()
    for token in _TOML.finditer(line, start):
        out += escape(line[start : token.start()])
        out += Markup('<span class="t-{}">{}</span>').format(token.lastgroup, token.group())
        start = token.end()
    return out + escape(line[start:])


def highlight_toml(text: str) -> list[Markup]:
    """A recipe as HTML, lightly coloured, one piece for each of its tables."""
    pieces: list[list[Markup]] = [[]]
    for line in plain(text).strip().splitlines():
        if line.startswith("[") and pieces[-1]:
            pieces.append([])
        pieces[-1].append(_highlight_line(line))
    return [Markup("\n").join(piece).strip() for piece in pieces if piece]
