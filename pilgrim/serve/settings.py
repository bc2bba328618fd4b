"""How the server is to behave, and what its handlers share."""

import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import explained
from pilgrim.serve.catalog import Models
from pilgrim.serve.refusals import Refusal

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServeSettings:
    """What a person decides about a server; `api_key` None: nobody has to prove anything."""

    host: str = LOOPBACK[0]
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 4 * 2**20
    stall_s: float = 60.0  # that a client may read nothing, or take to send a body
    log_chats: Path | None = None  # where to; None: nowhere
    chats: Path | None = None  # the page's (history.py); None: it keeps none

    @property
    def local(self) -> bool:
        """Whether only programs on this machine reach it."""
        return self.host in LOOPBACK

    def with_key(self, key: str) -> "ServeSettings":
        return replace(self, api_key=key)

    def opened_by(self, key: str) -> bool:
        """Whether `key` is the right one. Takes equally long wherever a wrong one differs."""
        return self.api_key is None or secrets.compare_digest(key.encode(), self.api_key.encode())


@dataclass(frozen=True)
class Office:
    """What every handler needs."""

    models: Models
    settings: ServeSettings

    def log(self, row: Mapping[str, Any]) -> None:
        """Keeps what was said, if that was asked for: a line of JSON. Raises Refusal if it can't be kept."""
        file = self.settings.log_chats
        if file is None:
            return
        try:
            with explained("written", file), file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        except PilgrimError as error:
            print(error, file=sys.stderr)  # with its path, which is no client's business
            what = (
                "what was said could not be written down, as --log-chats asks; the server's terminal says why"
            )
            raise Refusal(what, status=500) from error
