"""The chats of the page, in one SQLite file.

A chat is a tree: a message that was edited, and a reply that was asked for again, are siblings of the first.
Each message knows its parent; the chat knows the last message of the branch that was looked at. Nothing is
ever overwritten, so "edit" and "again" lose nothing.

    chat 1 ── user "Hello" ─┬─ assistant "Hi!"  ── user "Tell me a story" ── assistant "Once …"
                            └─ assistant "Good morning!"            (asked for again)

What is kept about a message besides its text (the model that wrote it, its tokens and how likely each was) is
JSON in `about`, which the page reads and writes. Only the tools' `calls` in it are looked at, for training
rows.

The file is opened for each request and closed again: SQLite locks it, so several requests, and several
servers, can't spoil it. In write-ahead mode a process that is killed in the middle of a write leaves it
whole.
"""

import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilgrim.core.errors import DataError, PilgrimError

FORMAT = 1  # of an exported file
LONGEST_TITLE = 80  # characters
LONGEST_MESSAGE = 1_000_000  # characters
DEEPEST = 50  # lists and objects within each other: pydantic, which sends them, gives up at some 250
SNIPPET = 60  # characters on each side of what was searched for

SCHEMA = """
CREATE TABLE IF NOT EXISTS chats (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL,
    created_s REAL NOT NULL,
    changed_s REAL NOT NULL,
    settings TEXT NOT NULL,
    leaf INTEGER
);
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    chat INTEGER NOT NULL REFERENCES chats(id) ON DELETE CASCADE,
    parent INTEGER REFERENCES messages(id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    created_s REAL NOT NULL,
    about TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS messages_of_chat ON messages(chat);
CREATE INDEX IF NOT EXISTS messages_of_parent ON messages(parent);
"""


class NoSuchChat(PilgrimError):
    """It was deleted, or never was."""


@dataclass(frozen=True)
class NewMessage:
    """A message to be kept. `parent` is the one before it; None for the first of a chat."""

    role: str
    content: str
    parent: int | None = None
    about: Mapping[str, Any] | None = None


class Chats:
    """The chats in `file`, which is made when it is first needed. Times are seconds since 1970."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def listed(self, search: str = "") -> list[dict[str, Any]]:
        """All chats, the last changed first; or those with `search` in title or message, and where."""
        with self._open() as db:
            rows = db.execute("SELECT * FROM chats ORDER BY changed_s DESC, id DESC").fetchall()
            if not search.strip():
                return [_chat(row) for row in rows]
            found = self._found(db, search.strip())
        return [
            _chat(row) | {"snippet": found.get(row["id"], "")}
            for row in rows
            if row["id"] in found or search.strip().lower() in row["title"].lower()
        ]

    def _found(self, db: sqlite3.Connection, search: str) -> dict[int, str]:
        """Of each chat with a message that holds the words: the words and what is around them."""
        pattern = "%" + search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        rows = db.execute(
            "SELECT chat, content FROM messages WHERE content LIKE ? ESCAPE '\\' ORDER BY id DESC", (pattern,)
        )
        return {row["chat"]: _snippet(row["content"], search) for row in rows}

    def new(self, title: str = "", settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """An empty chat."""
        now_s = time.time()
        with self._open() as db:
            chat = db.execute(
                "INSERT INTO chats (title, created_s, changed_s, settings) VALUES (?, ?, ?, ?)",
                (_title(title), now_s, now_s, _json(settings or {})),
            ).lastrowid
        assert chat is not None
        return self.read(chat)

    def read(self, chat: int) -> dict[str, Any]:
        """A chat with all its messages, in the order in which they came. Raises NoSuchChat."""
        with self._open() as db:
            row = self._row(db, chat)
            messages = db.execute("SELECT * FROM messages WHERE chat = ? ORDER BY id", (chat,)).fetchall()
        return _chat(row) | {"messages": [_message(message) for message in messages]}

    def change(self, chat: int, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Another `title`, other `settings`, or another `leaf`. Raises NoSuchChat, or DataError."""
        with self._open() as db:
            self._row(db, chat)
            if "title" in changes:
                db.execute("UPDATE chats SET title = ? WHERE id = ?", (_title(changes["title"]), chat))
            if "settings" in changes:
                db.execute("UPDATE chats SET settings = ? WHERE id = ?", (_json(changes["settings"]), chat))
            if "leaf" in changes:
                self._refuse_foreign(db, chat, changes["leaf"], "leaf")
                db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (changes["leaf"], chat))
        return self.read(chat)

    def add(self, chat: int, message: NewMessage) -> dict[str, Any]:
        """Keep one message more; it becomes the chat's leaf, and the first of a user its title."""
        now_s = time.time()
        with self._open() as db:
            row = self._row(db, chat)
            added = self._insert(db, chat, message, now_s)
            title = row["title"] or (_title(message.content) if message.role == "user" else "")
            db.execute(
                "UPDATE chats SET leaf = ?, changed_s = ?, title = ? WHERE id = ?",
                (added, now_s, title, chat),
            )
            return _message(db.execute("SELECT * FROM messages WHERE id = ?", (added,)).fetchone())

    def delete(self, chat: int) -> None:
        """Forget a chat and all that was said in it. Raises NoSuchChat."""
        with self._open() as db:
            self._row(db, chat)
            db.execute("DELETE FROM chats WHERE id = ?", (chat,))

    def exported(self, chats: Sequence[int] | None = None) -> dict[str, Any]:
        """All chats, or those named, with every branch: what `imported` reads."""
        ids = [row["id"] for row in self.listed()] if chats is None else chats
        return {"format": "pilgrim chats", "version": FORMAT, "chats": [self.read(chat) for chat in ids]}

    def training_rows(self) -> list[dict[str, Any]]:
        """The branch last looked at of each chat that has an answer, as conversations to train on."""
        rows = []
        for listed in self.listed():
            chat = self.read(listed["id"])
            messages = [turn for message in branch(chat) for turn in _turns(message)]
            while messages and messages[-1]["role"] != "assistant":
                messages.pop()
            system = chat["settings"].get("system")
            if messages and isinstance(system, str) and system.strip():
                messages.insert(0, {"role": "system", "content": system})
            if messages:
                rows.append({"messages": messages, "source": "chats"})
        return rows

    def imported(self, data: Any) -> int:
        """Add what was exported, as new chats; how many. All or none. Raises DataError."""
        if not isinstance(data, dict) or data.get("format") != "pilgrim chats":
            raise DataError(
                'the file holds no exported chats: it has no "format": "pilgrim chats"; export some first'
            )
        if data.get("version") != FORMAT:
            raise DataError(
                f"the file's version is {data.get('version')!r}, and only {FORMAT} can be read; export anew"
            )
        chats = data.get("chats")
        if not isinstance(chats, list):
            raise DataError('the file has no list called "chats"; export it anew')
        with self._open() as db:
            for number, chat in enumerate(chats, start=1):
                self._import_one(db, chat, f"chat {number}")
        return len(chats)

    def _import_one(self, db: sqlite3.Connection, chat: Any, place: str) -> None:
        if not isinstance(chat, dict) or not isinstance(chat.get("messages"), list):
            raise DataError(f'{place} has no list called "messages"; export it anew')
        now_s, numbers = time.time(), dict[Any, int]()
        made = db.execute(
            "INSERT INTO chats (title, created_s, changed_s, settings) VALUES (?, ?, ?, ?)",
            (
                _title(str(chat.get("title") or "")),
                _seconds(chat.get("created_s"), now_s),
                _seconds(chat.get("changed_s"), now_s),
                _json(chat.get("settings") if isinstance(chat.get("settings"), dict) else {}),
            ),
        ).lastrowid
        assert made is not None
        for number, message in enumerate(chat["messages"], start=1):
            where = f"{place}, message {number}"
            if not isinstance(message, dict) or not isinstance(message.get("content"), str):
                raise DataError(f'{where} has no "content" that is text; export it anew')
            parent = message.get("parent")
            if parent is not None and (_number(parent) is None or parent not in numbers):
                raise DataError(
                    f"{where} follows message {parent!r}, which does not come before it; export it anew"
                )
            role, about = message.get("role"), message.get("about")
            if role not in ("user", "assistant"):
                raise DataError(f"{where} has the role {role!r}; it must be user or assistant")
            new = NewMessage(
                role,
                message["content"],
                None if parent is None else numbers[parent],
                about if isinstance(about, dict) else None,
            )
            numbers[_number(message.get("id"))] = self._insert(
                db, made, new, _seconds(message.get("created_s"), now_s)
            )
        leaf = numbers.get(_number(chat.get("leaf")), max(numbers.values(), default=None))
        db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (leaf, made))

    def _insert(self, db: sqlite3.Connection, chat: int, message: NewMessage, now_s: float) -> int:
        self._refuse_foreign(db, chat, message.parent, "parent")
        if len(message.content) > LONGEST_MESSAGE:
            raise DataError(
                f"a message has {len(message.content):,} characters, and {LONGEST_MESSAGE:,} are the most; "
                "divide it"
            )
        about = message.about or {}
        _refuse_bad_calls(about.get("calls", []))
        added = db.execute(
            "INSERT INTO messages (chat, parent, role, content, created_s, about) VALUES (?, ?, ?, ?, ?, ?)",
            (chat, message.parent, message.role, message.content, now_s, _json(about)),
        ).lastrowid
        assert added is not None
        return added

    def _refuse_foreign(self, db: sqlite3.Connection, chat: int, message: Any, what: str) -> None:
        if message is None:
            return
        row = db.execute("SELECT 1 FROM messages WHERE id = ? AND chat = ?", (message, chat)).fetchone()
        if row is None:
            raise DataError(f"{what} = {message}: chat {chat} has no such message; load the chat again")

    def _row(self, db: sqlite3.Connection, chat: int) -> sqlite3.Row:
        row: sqlite3.Row | None = db.execute("SELECT * FROM chats WHERE id = ?", (chat,)).fetchone()
        if row is None:
            raise NoSuchChat(f"chat {chat} does not exist; it may have been deleted in another window")
        return row

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection in one transaction: what is done within is done wholly or not at all."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if not self.file.exists():
                self.file.touch(mode=0o600)  # other people of this machine can't read what was said
            db = sqlite3.connect(self.file, timeout=10)
        except (OSError, sqlite3.Error) as error:
            raise PilgrimError(
                f"{self.file}: chats can't be kept there ({error}); name another with --chats"
            ) from error
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # a power cut may take the last words, and no more
            db.execute("PRAGMA foreign_keys = ON")
            db.executescript(SCHEMA)
            with db:
                yield db
        except UnicodeEncodeError as error:
            raise DataError("the text holds half a character, which can't be kept; take it out") from error
        except sqlite3.Error as error:
            raise PilgrimError(
                f"{self.file}: {error}; if it holds no chats, or the disk is full, name another with --chats"
            ) from error
        finally:
            db.close()


def branch(chat: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages from the first to the chat's leaf."""
    by_id = {message["id"]: message for message in chat["messages"]}
    at, found = chat["leaf"], list[dict[str, Any]]()
    while at is not None:
        found.append(by_id[at])
        at = by_id[at]["parent"]
    return found[::-1]


def _turns(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A message as rows of training data have it: before and behind each call of a tool a turn of its own."""
    role, content, calls = message["role"], message["content"], message["about"].get("calls", ())
    said = 0
    for call in calls:
        before, said = content[said : call["offset"]], call["offset"]
        made = {key: call[key] for key in ("id", "type", "function")}
        yield {"role": role, "content": before, "tool_calls": [made]}
        yield {"role": "tool", "tool_call_id": call["id"], "content": call["result"]}
    if not calls or content[said:].strip():
        yield {"role": role, "content": content[said:]}


def _refuse_bad_calls(calls: Any) -> None:
    """Raises DataError for what `_turns` could not read: it would spoil the training rows of all chats."""
    for call in calls if isinstance(calls, list) else [None]:
        match call:
            case {"offset": int(), "id": str(), "type": str(), "function": dict(), "result": str()}:
                continue
        raise DataError(
            "about.calls must be a list of calls with offset, id, type, function and result; leave it out"
        )


def _json(value: Any) -> str:
    """Raises DataError for a number that JSON lacks and for what is nested too deeply.

    Else what was kept could never be sent again, and the list of all chats with it. (Half a character is
    found when it is written, and explained by `_open`.)
    """
    if _deeper_than(DEEPEST, value):
        raise DataError(f"a value is nested more than {DEEPEST} deep, which can't be sent again; take it out")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DataError("a number is infinite or none at all, which can't be kept; take it out") from error


def _deeper_than(levels: int, value: Any) -> bool:
    """Whether lists and objects stand in each other more often than that."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper_than(levels - 1, part) for part in parts)


def _chat(row: sqlite3.Row) -> dict[str, Any]:
    return {**dict(row), "settings": json.loads(row["settings"])}


def _message(row: sqlite3.Row) -> dict[str, Any]:
    return {**dict(row), "about": json.loads(row["about"])}


def _title(text: str) -> str:
    """One line, shortened."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_TITLE else line[: LONGEST_TITLE - 1] + "…"


def _seconds(value: Any, otherwise: float) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and abs(value) < 1e12 and math.isfinite(value) else otherwise


def _number(value: Any) -> int | None:
    """A message's number in an exported file; None if it has none."""
    return value if isinstance(value, int) else None


def _snippet(content: str, search: str) -> str:
    at = max(0, content.lower().find(search.lower()))
    begin, end = max(0, at - SNIPPET), at + len(search) + SNIPPET
    line = " ".join(content[begin:end].split())
    return ("…" if begin else "") + line + ("…" if end < len(content) else "")
