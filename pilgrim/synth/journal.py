"""Every answer is written down the moment it comes, and remembered by what was asked.

    {"asked": "3f…", "who": "writer", "most": [412, 512], "price": [0.15, 0.6]}   before a request is sent
    {"answered": "3f…", "who": "writer", "tokens": [101, 87], "text": …}          when its answer has come
    {"refused": "3f…", "who": "writer", "why": "429", "for_good": false}          when the server said no

The name of a question is a hash of all that its answer depends on: model, messages, dials, seed. So a run
that was killed asks only what was never answered, and a recipe whose filters were changed is judged anew
without a single request. What was asked and neither answered nor refused was on its way when the program
died; perhaps it is charged, so it counts with the most that it can have cost.

What was spent was spent at the price of then, whatever the recipe says now, and whoever it asks.

A question that can't be answered is refused for good, and not asked again. But a server whose settings are
wrong refuses everything. So a refusal is believed only if the same one has answered something after it,
before the next start, at which others are forgotten ("doubted").

A line is on the disk (fsync) before anything is made of it: an answer may have cost money.
"""

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.core.files import explained
from pilgrim.synth.answers import Answer, Price, Tokens, cost


def name_of(who: str, body: dict[str, Any]) -> str:
    """By which an answer is remembered."""
    text = json.dumps([who, body], sort_keys=True, ensure_ascii=True)
    return sha256(text.encode()).hexdigest()[:32]


class Journal:
    """The file and what is in it. `tokens[who]` is what was spent so far, and perhaps was."""

    def __init__(self, path: Path) -> None:
        """Raises DataError, with file and line, for a line in the middle that is damaged."""
        self.path = path
        self.tokens: dict[str, Tokens] = {}
        self.cost = 0.0  # of these
        self.untold = 0  # for so many requests the most that they can have cost is counted
        self._answers: dict[str, Answer] = {}
        self._verdicts: dict[str, bool] = {}
        self._refusals: dict[str, str] = {}  # for good, and believed: why
        self._doubted: dict[str, dict[str, str]] = {}  # by who refused: not believed yet
        self._open: dict[str, list[tuple[str, Tokens, Price]]] = {}  # asked, with no outcome yet
        for number, row in _rows(path):
            try:
                self._take(row)
            except (LookupError, TypeError, ValueError):
                raise DataError(f"{path}, line {number}: is no line of this journal; remove it") from None
        for name in list(self._open):
            self.lost(name)
        if self._doubted:  # the settings may have been mended since
            self._write({"doubted": len(self._doubted)})

    def __len__(self) -> int:
        """How many answers it holds."""
        return len(self._answers)

    def answer(self, name: str) -> Answer | None:
        """What came of this question before."""
        return self._answers.get(name)

    def refusal(self, name: str) -> str | None:
        """Why this question can't be answered, if that is known."""
        return self._refusals.get(name)

    def verdict(self, name: str) -> bool | None:
        """What a check said of this answer before."""
        return self._verdicts.get(name)

    def asked(self, name: str, who: str, most: Tokens, price: Price) -> None:
        """A request is about to be sent."""
        self._write({"asked": name, "who": who, "most": [most.read, most.written], "price": [*price]})

    def refused(self, name: str, who: str, why: str, for_good: bool = False) -> None:
        """It was not answered, and costs nothing. `for_good`: it can't be."""
        self._write({"refused": name, "who": who, "why": why, "for_good": for_good})

    def lost(self, name: str) -> None:
        """It may have cost something: it stays counted."""
        for who, most, price in self._open.pop(name, []):
            self._count(who, most, price)
            self.untold += 1

    def answered(self, name: str, who: str, answer: Answer) -> None:
        """It was. Without tokens of the server's telling, the most that it can have cost counts."""
        tokens = answer.tokens and [answer.tokens.read, answer.tokens.written]
        row = {"answered": name, "who": who, "tokens": tokens, "cut": answer.cut, "text": answer.text}
        self._write({**row, "messages": answer.messages})

    def judged(self, name: str, right: bool) -> None:
        """A check of an answer has come to its end."""
        self._write({"judged": name, "right": right})

    def _write(self, row: dict[str, Any]) -> None:
        with explained("written", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        if "asked" in row:
            read, written = row["price"]
            asked = row["who"], Tokens(*row["most"]), (read, written)
            self._open.setdefault(row["asked"], []).append(asked)
        elif "refused" in row:
            self._open[row["refused"]].pop()
            if row["for_good"]:
                self._doubted.setdefault(row["who"], {})[row["refused"]] = row["why"]
        elif "doubted" in row:
            self._doubted.clear()
        elif "judged" in row:
            self._verdicts[row["judged"]] = bool(row["right"])
        else:
            name = row["answered"]
            _, most, price = self._open[name].pop()
            tokens = Tokens(*row["tokens"]) if row["tokens"] is not None else None
            self._count(row["who"], most if tokens is None else tokens, price)
            self._refusals |= self._doubted.pop(row["who"], {})
            self.untold += tokens is None
            self._answers[name] = Answer(row["text"], row["messages"], row["cut"], tokens)

    def _count(self, who: str, tokens: Tokens, price: Price) -> None:
        self.cost += cost(tokens, price)
        self.tokens[who] = self.tokens.get(who, Tokens()) + tokens


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of the file, after a torn last one was cut off: a kill may leave half a line."""
    if not path.exists():
        return
    with explained("read", path):
        data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with explained("written", path):
            os.truncate(path, len(whole))
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error}); remove the line") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: is no line of this journal; remove it")
        yield number, row
