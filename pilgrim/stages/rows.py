"""Rows of data sets that `[dpo]` and `[rl]` name, as files in the run's folder.

    shards/rows/NAME.jsonl.zst    the rows, as they are
    shards/rows/NAME.json         what they were made of, how many there are, and the file's hash

Pairs and problems are read by the stages that learn from them, from files. A data set may be a table on the
hub, of which some rows are drawn. So the stage `shards`, which fetches everything else, writes such a file of
it, and tries each row on those who will read it: what is wrong with a row is told with the place that it
comes from, and days before it is needed. The manifest is written last: rows without one were never finished.

A stage that finds no rows of what its recipe names now makes them itself: `[rl]` may have been added to a
recipe when all before it was done.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.core.files import read_json, sha256_file, write_json_atomic, write_lines_zst
from pilgrim.data.datasets import NAMED, local_files, rows_as_they_are
from pilgrim.data.preferences import pair_from_row
from pilgrim.data.sources import find
from pilgrim.evals.rewards.problems import Graded, problem_of
from pilgrim.stages.journey import Journey
from pilgrim.stages.recipe import ReadAs


def rows_files(journey: Journey, names: Iterable[str | None]) -> dict[str, Path]:
    """The files of those `names` that are data sets, "dataset:NAME".

    All processes must call this. Raises DataError if a file is damaged.
    """
    wanted = [name for name in names if name and name.startswith(NAMED)]
    return journey.runtime.processes.by_first(
        lambda: {name: _file(journey, name.removeprefix(NAMED)) for name in wanted}
    )


def write_rows(journey: Journey, name: str) -> int:
    """Write the rows of a data set, unless they were made of the same before; returns how many there are.

    Raises DataError for a row that can't be used, unless such rows are to be skipped.
    """
    settings, kinds = journey.recipe.datasets[name], journey.recipe.rows_read()[name]
    file, manifest = _places(journey, name)
    hashes = {local: sha256_file(find(local, f"datasets.{name}")) for local in local_files(settings)}
    origin = {**_asked_for(journey, name), "sha256": hashes}
    before = _known(manifest)
    if before.get("origin") == origin and _whole(file, manifest):
        return int(before["rows"])
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for line in rows_as_they_are(name, settings, _reader(name, kinds), journey.console.say):
            count += 1
            yield line

    write_lines_zst(file, lines(), journey.may_write)
    about = {"origin": origin, "rows": count, "sha256": sha256_file(file)}
    write_json_atomic(manifest, about, journey.may_write)
    return count


def _file(journey: Journey, name: str) -> Path:
    """The file of a data set's rows; made if there is none of what the recipe says now."""
    file, manifest = _places(journey, name)
    origin, now = _known(manifest).get("origin", {}), _asked_for(journey, name)
    if any(origin.get(key) != value for key, value in now.items()):
        journey.console.say(f"datasets.{name}: its rows are read now, as the stage shards did not do it")
        write_rows(journey, name)
    elif not _whole(file, manifest):
        raise DataError(f"{file} is damaged or missing; delete {manifest} and run again to make it anew")
    return file


def _places(journey: Journey, name: str) -> tuple[Path, Path]:
    """(the rows, their manifest)"""
    folder = journey.folder / "shards" / "rows"
    return folder / f"{name}.jsonl.zst", folder / f"{name}.json"


def _known(manifest: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(manifest) if manifest.exists() else {}
    return found


def _whole(file: Path, manifest: Path) -> bool:
    return file.exists() and sha256_file(file) == _known(manifest).get("sha256")


def _asked_for(journey: Journey, name: str) -> dict[str, Any]:
    """What the recipe says, as plain JSON: which rows, and who they were tried on."""
    settings = journey.recipe.datasets[name]
    return {"settings": settings.model_dump(mode="json"), "read_as": journey.recipe.rows_read()[name]}


def _reader(name: str, kinds: Sequence[ReadAs]) -> Callable[[dict[str, Any], str], str]:
    """From a row and its place to a line of the file. It raises DataError for a row that can't be used."""

    def line(row: dict[str, Any], where: str) -> str:
        for kind in kinds:
            _try(row, where, name, kind)
        try:
            return json.dumps(row, ensure_ascii=False, default=_text)
        except TypeError as error:
            raise DataError(
                f"{where}: {error}, which no JSON can hold; leave that column out of the file"
            ) from None

    return line


def _try(row: dict[str, Any], where: str, name: str, kind: ReadAs) -> None:
    """Read a row as what it will be read as. A reward of one's own needs no more than a prompt."""
    if kind == "pairs":
        pair_from_row(row, name, where)
    else:
        problem_of(row, 1, where, kind, lambda asked, reply, row, place: Graded(None))


def _text(value: object) -> str:
    """Dates and times, which a table may have, as ISO 8601 writes them."""
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise TypeError(f"one of its values is of the type {type(value).__name__}")
