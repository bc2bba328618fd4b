"""Named data sets: `[datasets.NAME]` of a recipe, for mixtures and, as "dataset:NAME", in other tables.

    [datasets.smalltalk]
    kind = "conversations"
    files = ["data/talk-1.jsonl.zst", "data/talk-2.parquet"]

    [datasets.gsm8k]
    kind = "gsm8k"
    hub = "openai/gsm8k"                                        # then `files` are files of that data set
    revision = "740312add88f781978c0658806c59bc2815b9866"
    files = ["main/train-00000-of-00001.parquet"]

The kind says what a row is: text, a conversation, or the shape of a well-known data set, of which a
conversation is made (data/adapters.py). Two kinds are made without rows (data/generated.py). Preference
pairs and problems with rewards are neither: `[dpo]` and `[rl]` read the rows as they are, of the kind "rows",
which says nothing more, or of one that a mixture reads in its own way (GSM8K's solutions and its problems).

Rows are read one after the other, and no more of them than are asked for: with `limit`, later files are not
even fetched. With `seed`, too, the rows are drawn from all there are, in one pass and with the memory of
`limit` rows (algorithm R: Vitter 1985, doi 10.1145/3147.3165).
"""

import difflib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from pilgrim.core.config import Settings
from pilgrim.core.errors import DataError
from pilgrim.core.files import read_jsonl_zst
from pilgrim.data import hub
from pilgrim.data.adapters import ADAPTERS
from pilgrim.data.conversations import Conversation, conversation_of, read_conversations
from pilgrim.data.generated import identity, spelling, words_of
from pilgrim.data.parquet import read_parquet
from pilgrim.data.sources import Text, find, read_documents

NAMED = "dataset:"  # before a name, where files are named
MADE = ("spelling", "identity")  # kinds without rows
WORDS = "assets:text/train.jsonl.zst"  # where `spelling` takes words from, if nothing is named

Kind = Literal["text", "conversations", "mmlu", "gsm8k", "spelling", "identity", "rows"]
Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]  # (file and row, for errors; the row)
T = TypeVar("T")


class DatasetSettings(Settings):
    """`[datasets.NAME]`."""

    kind: Kind = Field(
        description="what a row is: text, conversations, mmlu, gsm8k, spelling or identity; rows: as it is, "
        "for [dpo] and [rl]"
    )
    files: tuple[str, ...] = Field(
        (), description=".jsonl, .jsonl.zst, .parquet (text: .txt, .md too); of spelling: the words"
    )
    hub: str | None = Field(None, description="a data set on the Hugging Face hub, whose files they are")
    revision: str | None = Field(None, description="its commit, 40 hexadecimal digits")
    limit: int | None = Field(None, ge=1, description="so many rows and no more")
    seed: int | None = Field(
        None, ge=0, description="draws `limit` rows from all; left out: the first ones; of what is made: its"
    )
    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse", description="what is done about a row that can't be used; skipped ones are counted and told"
    )
    name: str = Field("Pip", description="of identity: what the model is called")
    maker: str = Field("a person with a computer", description="of identity: who made it")
    about: str = Field("I am a small language model.", description="of identity: what it is, in a sentence")

    @property
    def is_text(self) -> bool:
        """Documents, and no conversations."""
        return self.kind == "text"

    def contradiction(self, place: str) -> str | None:
        """What can't be true together, in one sentence that names the table; None if nothing is wrong."""
        if not self.files and self.kind not in MADE:
            return f'{place}.files is missing: name at least one, as in files = ["data/talk.jsonl.zst"]'
        if self.files and self.kind == "identity":
            return f"{place}.files: identity is made from name, maker and about; leave the files out"
        for key in ("name", "maker", "about"):
            if not getattr(self, key).strip():
                return f"{place}.{key} is empty, and would be an answer; write one, or leave it out"
        if self.kind == "spelling" and not self.limit:
            return f"{place}.limit is missing: spelling is made, as many rows as you say; try limit = 10000"
        if self.seed is not None and not self.limit and self.kind not in MADE:
            return (
                f"{place}.seed = {self.seed} draws some of all rows, but no limit says how many; "
                "every epoch has an order of its own anyway, so leave it out, or write a limit"
            )
        if self.hub and self.kind in MADE:
            return f"{place}.hub: {self.kind} is made here, and reads nothing of the hub; leave it out"
        if self.bad_rows == "skip" and (self.is_text or self.kind in MADE):
            return f'{place}.bad_rows = "skip" is for conversations, pairs and problems; leave it out'
        if (self.hub is None) != (self.revision is None):
            given, missing = ("hub", "revision") if self.hub else ("revision", "hub")
            return f"{place}.{missing} is missing, and {place}.{given} needs it; write both, or neither"
        if self.revision is not None and not hub.COMMIT.fullmatch(self.revision):
            return hub.no_commit(place, self.revision)
        return None


Datasets = Mapping[str, DatasetSettings]


def texts(name: str, settings: DatasetSettings) -> Iterator[Text]:
    """The documents of a data set of kind text, those that are empty left out.

    Raises DataError, naming file and row, for one that has no text, and if there is none at all.
    """
    place, found = f"datasets.{name}", False
    for where, row in _some(_read(place, settings), settings):
        text = row.get("text")
        if not isinstance(text, str):
            raise DataError(f'{where}: "text" is no string; give the row one, or drop it')
        if text.strip():
            found = True
            yield Text(text, str(row.get("source") or name))
    if not found:
        raise DataError(f"{place} holds no document; name files with rows in them, or leave it out")


def conversations(
    name: str, settings: DatasetSettings, tell: Callable[[str], None] = lambda sentence: None
) -> Iterator[Conversation]:
    """The conversations of a data set of any other kind; `tell` is told of rows that were skipped.

    Raises DataError, naming file and row, for one that can't be used, unless such rows are to be skipped, and
    if there is none at all.
    """

    def conversation(row: Row, where: str) -> Conversation:
        if settings.kind in ADAPTERS:
            row = {**row, "messages": ADAPTERS[settings.kind][1](row, where)}
        return conversation_of(row, where, name)

    place = f"datasets.{name}"
    return _usable(_read(place, settings), conversation, place, "conversation", settings, tell)


def rows_as_they_are(
    name: str,
    settings: DatasetSettings,
    read: Callable[[Row, str], T],
    tell: Callable[[str], None] = lambda sentence: None,
) -> Iterator[T]:
    """What `read` makes of each row of a data set, with all that is in it; for `[dpo]` and `[rl]`.

    `read` is given the row, and file and row for errors; it raises DataError for one that can't be used.
    Raises that, unless such rows are to be skipped (`tell` is told of them), and if there is none at all.
    """
    place = f"datasets.{name}"
    return _usable(_read(place, settings, whole=True), read, place, "row", settings, tell)


def _usable(
    rows: Rows,
    read: Callable[[Row, str], T],
    place: str,
    what: str,
    settings: DatasetSettings,
    tell: Callable[[str], None],
) -> Iterator[T]:
    """What `read` makes of the rows that are asked for; bad ones are refused, or counted and told."""
    used, skipped, first = 0, 0, ""
    for where, row in _some(rows, settings):
        try:
            found = read(row, where)
        except DataError as error:
            if settings.bad_rows == "refuse":
                raise
            skipped, first = skipped + 1, first or str(error)
            continue
        used += 1
        yield found
    if skipped:
        tell(f"{place}: {skipped:,} rows of {used + skipped:,} were skipped, such as {first}")
    if not used:
        raise DataError(f"{place} holds no {what}; name files with rows in them, or leave it out")


def documents_of(names: Iterable[str], datasets: Datasets) -> Iterator[Text]:
    """What `[data]` names: files of documents, and data sets of kind text as "dataset:NAME"."""
    for name in names:
        if name.startswith(NAMED):
            yield from texts(*_named(name, datasets))
        else:
            yield from read_documents([name])


def conversations_of(
    names: Iterable[str], datasets: Datasets, tell: Callable[[str], None] = lambda sentence: None
) -> Iterator[Conversation]:
    """The same of conversations."""
    for name in names:
        if name.startswith(NAMED):
            yield from conversations(*_named(name, datasets), tell)
        else:
            yield from read_conversations([name])


def wrongly_named(name: str, datasets: Datasets, is_text: bool) -> str | None:
    """Why "dataset:NAME" can't stand in `[data]`, in one sentence; None if it can."""
    bare = name.removeprefix(NAMED)
    if bare not in datasets:
        return f"[data] names {name}, but {unknown(bare, datasets)}"
    kind, wanted = datasets[bare].kind, "text" if is_text else "conversations"
    if kind == "rows" or datasets[bare].is_text != is_text:
        return f"[data] names {name} where {wanted} must stand, but its kind is {kind}"
    return None


def unmixable(name: str, datasets: Datasets) -> str | None:
    """Why a mixture can't have a data set that is there, in half a sentence; None if it can."""
    if name in datasets and datasets[name].kind == "rows":
        return (
            'its kind is rows, which only [dpo] and [rl] read; say what they are, as kind = "conversations"'
        )
    return None


def without_rows(name: str, datasets: Datasets) -> str | None:
    """Why `[dpo]` and `[rl]` can't read "dataset:NAME", in half a sentence; None if they can."""
    bare = name.removeprefix(NAMED)
    if bare not in datasets:
        return unknown(bare, datasets)
    kind = datasets[bare].kind
    if kind == "text":
        return 'its kind is text, of which only "text" is read; write kind = "rows"'
    if kind in MADE:
        return f'its kind is {kind}, which is made here and only for mixtures; name files, as kind = "rows"'
    return None


def _named(name: str, datasets: Datasets) -> tuple[str, DatasetSettings]:
    bare = name.removeprefix(NAMED)
    return bare, datasets[bare]


def unknown(name: str, known: Iterable[str]) -> str:
    """Half a sentence for a data set that is not there: what was meant, or what there is."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
    return f"there is no [datasets.{name}]; {cure}"


def local_files(settings: DatasetSettings) -> tuple[str, ...]:
    """The data set's files that must be on this machine before anything is done."""
    return () if settings.hub else settings.files


# Rows ---------------------------------------------------------------------------------------------


def _read(place: str, settings: DatasetSettings, whole: bool = False) -> Rows:
    """All rows of a data set, in order; `whole`: with all that is in them."""
    if settings.kind in MADE:
        for number, messages in enumerate(_made(settings), start=1):
            yield f"{place}, row {number}", {"messages": messages}
        return
    for file in settings.files:
        if settings.hub and settings.revision:
            path = hub.fetched(settings.hub, settings.revision, file, place)
        else:
            path = find(file, place)
        yield from rows_of(path, file, settings, whole)


def _made(settings: DatasetSettings) -> Iterator[list[dict[str, Any]]]:
    seed = settings.seed or 0
    if settings.kind == "identity":
        return identity(settings.name, settings.maker, settings.about, settings.limit, seed)
    assert settings.limit is not None  # of spelling: `contradiction` sees to it
    return spelling(words_of(settings.files or (WORDS,)), settings.limit, seed)


def rows_of(path: Path, name: str, settings: DatasetSettings, whole: bool = False) -> Rows:
    """All rows of one file, which the recipe calls `name`; of a table the columns that its kind needs, or the
    `whole` of it. Raises DataError if it can't be read."""
    if name.endswith(".parquet"):
        default = ("text",) if settings.is_text else ("messages",)
        needed = ADAPTERS[settings.kind][0] if settings.kind in ADAPTERS else default
        every = whole or settings.kind == "rows"
        for number, row in read_parquet(path, None if every else needed, ("source", "tools")):
            yield f"{path}, row {number}", row
    elif name.endswith((".jsonl", ".jsonl.zst")):
        for number, row in read_jsonl_zst(path):
            yield f"{path}, line {number}", row
    elif settings.is_text:
        for document in read_documents([str(path)]):
            yield str(path), {"text": document.text, "source": document.source}
    else:
        raise DataError(
            f"{path}: files ending in {path.suffix!r} hold no rows; use .jsonl, .jsonl.zst or .parquet"
        )


def _some(rows: Rows, settings: DatasetSettings) -> Rows:
    """The rows that `limit` and `seed` ask for."""
    if settings.limit is None or settings.kind in MADE:
        return rows
    if settings.seed is None:
        return islice(rows, settings.limit)
    return iter(drawn(rows, settings.limit, settings.seed))


def drawn(rows: Rows, limit: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """`limit` of the rows, each set of so many as likely as any other, in their order."""
    random_of = random.Random(f"rows {seed}")
    kept: list[tuple[int, tuple[str, dict[str, Any]]]] = []
    for number, row in enumerate(rows):
        if number < limit:
            kept.append((number, row))
        elif (place := random_of.randrange(number + 1)) < limit:
            kept[place] = (number, row)
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])]
