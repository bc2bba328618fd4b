"""The sections of a report that tell of the run: where it came from, and what happened to it."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilgrim.lab.report_run import Row, Stage
from pilgrim.lab.report_text import DASH, instant, moment, number, plain, shortened

EVENTS = 300
VALUE_CHARACTERS = 40_000  # of a diff, say


@dataclass(frozen=True)
class Fact:
    """One line of the provenance."""

    key: str
    value: str

    @property
    def long(self) -> bool:
        """Whether the value is folded away."""
        return "\n" in self.value or len(self.value) > 300


def in_words(value: object) -> str:
    """A JSON value on one line, or as it is where it is text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(in_words(item) for item in value) or DASH
    if isinstance(value, Mapping):
        return ", ".join(f"{plain(key)} = {in_words(item)}" for key, item in value.items()) or DASH
    if isinstance(value, float):
        return f"{value:g}"
    return shortened(plain(value), VALUE_CHARACTERS) or DASH


def fact(key: str, value: object) -> Fact:
    """One thing that provenance.json says."""
    if key == "time":
        return Fact(key, moment(value))
    if key == "command" and isinstance(value, list):
        return Fact(key, plain(shlex.join(str(word) for word in value)))
    if key == "memory_bytes" and isinstance(value, int):
        return Fact("memory", f"{number(value / 2**30, 1)} GiB")
    return Fact(plain(key), in_words(value))


def facts(provenance: Row) -> list[tuple[str, list[Fact]]]:
    """provenance.json as titled groups of facts: one group for what lies at the top, one for each table."""
    top = [fact(key, value) for key, value in provenance.items() if not isinstance(value, dict)]
    tables = [(key, value) for key, value in provenance.items() if isinstance(value, dict)]
    groups = [
        (plain(key).replace("_", " "), [fact(*item) for item in table.items()]) for key, table in tables
    ]
    return [("run", top), *groups] if top else groups


def event_tone(kind: str) -> str:
    """How loudly an event is shown."""
    if any(word in kind for word in ("damage", "non_finite", "error", "fail")):
        return "bad"
    if any(word in kind for word in ("resume", "interrupt", "stop", "rewind", "spike")):
        return "warn"
    return "good" if kind == "done" else "calm"


def events(stages: Sequence[Stage], notes: list[str]) -> list[dict[str, Any]]:
    """What happened, by wall clock, through all stages."""

    def rows() -> Iterator[dict[str, Any]]:
        for stage in stages:
            for row in stage.events:
                kind = plain(row.get("kind"))
                rest = {key: value for key, value in row.items() if key not in ("kind", "time")}
                yield {
                    "time": row.get("time"),
                    "stage": stage.name,
                    "kind": kind.replace("_", " "),
                    "tone": event_tone(kind),
                    "rest": shortened(in_words(rest["what"] if [*rest] == ["what"] else rest), 400)
                    if rest
                    else "",
                }

    def by_time(row: dict[str, Any]) -> float:
        when = instant(row["time"])
        return when.timestamp() if when else 0.0

    ordered = sorted(rows(), key=by_time)
    if len(ordered) > EVENTS:
        notes.append(f"The last {EVENTS} of {number(len(ordered))} events are shown.")
    return ordered[-EVENTS:]
