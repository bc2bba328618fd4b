"""What a run's folder holds, read for its report.

Each stage's folder becomes a `Stage`: its state, its summary, its rows. A stage that does not exist yet
is a `Stage` without rows; a last line torn by a kill was never a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilgrim.core.config import load_toml
from pilgrim.core.files import read_json
from pilgrim.core.runlog import read_rows
from pilgrim.core.stages import TRAINED
from pilgrim.lab.report_curves import is_number
from pilgrim.lab.report_text import plain

Row = dict[str, Any]

JOURNEY = ("tokenizer", "shards", *TRAINED, "evaluate")
OPTIONAL = TRAINED[1:]  # part of a journey only if its recipe has a table of that name


@dataclass(frozen=True)
class Stage:
    """What one stage's folder holds."""

    name: str
    state: str  # "done", "under way" or "not yet"
    elapsed_s: float | None  # wall time once done; until then the seconds spent in training steps
    summary: Row
    metrics: list[Row]
    timings: list[Row]
    evals: list[Row]
    samples: list[Row]
    events: list[Row]

    @property
    def trained(self) -> bool:
        """Whether this stage has steps to draw."""
        return any(is_number(row.get("step")) for row in [*self.metrics, *self.evals, *self.timings])


def read_object(file: Path) -> Row:
    """The JSON object in `file`; an empty one if there is no such file."""
    return mapping(read_json(file)) if file.exists() else {}


def mapping(value: object) -> Row:
    """`value` if it is a JSON object, else an empty one: null where a table should be counts as missing."""
    return value if isinstance(value, dict) else {}


def read_recipe(run_folder: Path) -> Row | None:
    """The tables of the run's recipe; None if there is none yet. Raises SettingsError if it is no TOML."""
    file = run_folder / "recipe.toml"
    return load_toml(file) if file.exists() else None


def read_stages(run_folder: Path, recipe: Row | None) -> list[Stage]:
    """The stages in the order of the journey: those that its recipe has, and what else left its files.

    Raises PilgrimError, naming the file, where one is damaged.
    """
    traces = [*run_folder.glob("*/DONE.json"), *run_folder.glob("*/metrics.jsonl")]
    present = {file.parent.name for file in traces}

    def belongs(name: str) -> bool:
        left_out = name in OPTIONAL and recipe is not None and name not in recipe
        return name in present or not left_out

    *known, last = [name for name in JOURNEY if belongs(name)]
    others = sorted(present.difference(JOURNEY))
    return [read_stage(run_folder / name) for name in [*known, *others, last]]


def read_stage(folder: Path) -> Stage:
    """What a stage's folder holds so far."""

    def rows(name: str) -> list[Row]:
        file = folder / f"{name}.jsonl"
        return read_rows(file) if file.exists() else []

    done = read_object(folder / "DONE.json")
    timings = rows("timings")
    elapsed_s = done.get("elapsed_s")
    if not done:
        elapsed_s = next(
            (row["elapsed_s"] for row in reversed(timings) if is_number(row.get("elapsed_s"))), None
        )
    return Stage(
        name=plain(folder.name),
        state="done" if done else "under way" if folder.exists() else "not yet",
        elapsed_s=elapsed_s if is_number(elapsed_s) else None,
        summary=mapping(done.get("summary")),
        metrics=rows("metrics"),
        timings=timings,
        evals=rows("evals"),
        samples=rows("samples"),
        events=rows("events"),
    )


def total_seconds(stages: Sequence[Stage]) -> float | None:
    """The stages' times added up; None if no stage has one."""
    known = [stage.elapsed_s for stage in stages if stage.elapsed_s is not None]
    return sum(known) if known else None


def all_done(stages: Sequence[Stage]) -> bool:
    """Whether the journey is at its end."""
    return all(stage.state == "done" for stage in stages)
