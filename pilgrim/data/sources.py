"""Where documents come from: files named in a recipe, read one document at a time.

    something.jsonl, something.jsonl.zst    one JSON object a line with "text" and, optionally, "source"
    something.txt, something.md             the whole file is one document
    assets:text/train.jsonl.zst             a file that comes with pilgrim

Validation is by document. Either the recipe names files for it, or a share of the training documents is
held out by a hash of their text: the same text always falls on the same side, wherever it stands and
however often. A training document that is also a validation document is left out and counted.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from pilgrim.core.config import Settings
from pilgrim.core.errors import DataError
from pilgrim.core.files import explained, read_jsonl_zst

ASSETS = Path(__file__).parents[1] / "assets"


class DataSettings(Settings):
    """`[data]` of a recipe: which files are read."""

    train: tuple[str, ...] = Field(
        ("assets:text/train.jsonl.zst",), description="files of training documents"
    )
    val: tuple[str, ...] = Field(("assets:text/val.jsonl.zst",), description="files of validation documents")
    val_share: float = Field(
        0.0, ge=0, lt=1, description="share of train held out by hash, where val is empty"
    )
    conversations: tuple[str, ...] = Field(
        ("assets:conversations/train.jsonl.zst",), description="files of training conversations"
    )
    conversations_val: tuple[str, ...] = Field(
        ("assets:conversations/heldout.jsonl.zst",), description="files of validation conversations"
    )

    @model_validator(mode="after")
    def _has_validation(self) -> "DataSettings":
        if not self.train:
            raise ValueError("data.train = [] names no file to train on; name at least one")
        if bool(self.val) == bool(self.val_share):
            raise ValueError(
                f"data.val = {list(self.val)} and data.val_share = {self.val_share}: validation needs "
                "exactly one of them; name files in val, or write val = [] and a val_share such as 0.02"
            )
        return self


@dataclass(frozen=True)
class Text:
    """A document before it is tokenized."""

    text: str
    source: str


def find(name: str, place: str = "[data]") -> Path:
    """The path of a file named in a recipe's table `place`. Raises DataError if it does not exist."""
    path = ASSETS / name.removeprefix("assets:") if name.startswith("assets:") else Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{place} names {name}, but there is no file {path}; mend the path, or make the file")
    return path


def read_documents(names: Iterable[str]) -> Iterator[Text]:
    """Every non-empty document of the named files, in order. Raises DataError with file and line."""
    for name in names:
        path = find(name)
        if name.endswith((".txt", ".md")):
            yield from _plain_text(path)
        elif name.endswith((".jsonl", ".jsonl.zst")):
            yield from _json_lines(path)
        else:
            raise DataError(
                f"{path}: files ending in {path.suffix!r} can't be read; use .jsonl, .jsonl.zst, .txt or .md"
            )


def _plain_text(path: Path) -> Iterator[Text]:
    try:
        with explained("read", path):
            text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is no valid UTF-8; convert the file, say with iconv"
        ) from error
    if text.strip():
        yield Text(text, path.stem)


def _json_lines(path: Path) -> Iterator[Text]:
    for line, row in read_jsonl_zst(path):
        text = row.get("text")
        if not isinstance(text, str):
            raise DataError(
                f'{path}:{line}: the row has no "text" that is a string; give it one, or drop the row'
            )
        if text.strip():
            yield Text(text, str(row.get("source") or path.name.split(".")[0]))


@dataclass(frozen=True)
class Split:
    """Training and validation documents, and how many of the former were left out as copies of the latter."""

    train: list[Text]
    val: list[Text]
    left_out: int


def split(settings: DataSettings, read: Callable[[Iterable[str]], Iterator[Text]] = read_documents) -> Split:
    """Read all documents and keep validation apart. Raises DataError if either side is empty.

    `read` yields the documents of the files that are named (and data/datasets.py knows of more than files).
    """
    documents = list(read(settings.train))
    if settings.val:
        val = list(read(settings.val))
    else:
        val = [d for d in documents if _fraction(d.text) < settings.val_share]
    train = list(apart(documents, val))
    for name, side, files in (
        ("train", train, settings.train),
        ("validation", val, settings.val or settings.train),
    ):
        if not side:
            raise DataError(
                f"[data]: no {name} document is left of {_listed(files)}; name files with more text in them"
            )
    return Split(train, val, len(documents) - len(train) - (0 if settings.val else len(val)))


def apart(documents: Iterable[Text], val: Iterable[Text]) -> Iterator[Text]:
    """The documents that are not among those of validation."""
    held_out = {_digest(d.text) for d in val}
    return (d for d in documents if _digest(d.text) not in held_out)


def fingerprint(documents: Iterable[Text]) -> str:
    """The same for the same documents in any order: what `apart` leaves out follows from it."""
    return hashlib.sha256(b"".join(sorted({_digest(d.text) for d in documents}))).hexdigest()


def _digest(text: str) -> bytes:
    """The same for texts that differ in white space and case only."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()


def _fraction(text: str) -> float:
    return int.from_bytes(_digest(text)[:8], "big") / 2**64


def _listed(files: Sequence[str]) -> str:
    return ", ".join(files)
