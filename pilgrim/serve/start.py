"""From what a person typed to a server: which runs, which key, what to compute with."""

import math
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from pilgrim.core.errors import PilgrimError, SettingsError
from pilgrim.core.files import explained
from pilgrim.core.runtime import RuntimeSettings
from pilgrim.core.runtime import start as start_runtime
from pilgrim.infer.cache_bits import CacheBits, refuse
from pilgrim.infer.load import newest_stage
from pilgrim.infer.quantized import Weights
from pilgrim.serve.catalog import Models
from pilgrim.serve.server import serve
from pilgrim.serve.settings import ServeSettings


def start(
    folders: Sequence[Path],
    *,
    host: str,
    port: int,
    api_key_env: str | None,
    rows: int,
    waiting: int,
    kept: int,
    weights: Weights,
    cache: CacheBits,
    max_body_mb: float,
    log_chats: Path | None,
    chats: Path | None,
    say: Callable[[str], None],
) -> None:
    """Serves these runs until it is stopped; see `pilgrim serve --help`. Raises PilgrimError."""
    if not math.isfinite(max_body_mb):
        raise SettingsError(f"--max-body-mb {max_body_mb}: is no size; give a number of MB, such as 4")
    runs = by_name(folders)
    for folder in folders:
        newest_stage(folder)  # raises if it has no model at all
    settings = ServeSettings(
        host=host,
        port=port,
        api_key=_key(api_key_env),
        max_body_bytes=round(max_body_mb * 2**20),
        log_chats=log_chats,
        chats=chats,
    )
    if log_chats is not None:
        with explained("written", log_chats):
            log_chats.touch(mode=0o600)  # a new one: for nobody else on this machine to read
            log_chats.open("a").close()
    if not settings.local and settings.api_key is None:
        settings = settings.with_key(secrets.token_urlsafe(24))
        say(f"API key, made up for this server and not shown again: {settings.api_key}")
    runtime = start_runtime(RuntimeSettings(), seed=0)  # requests have seeds of their own
    refuse(cache, runtime.device)  # now, rather than when a model is first asked for
    serve(Models(runs, runtime, rows, waiting, kept, weights, cache), settings, say)


def by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """Runs by the names that clients call them. Raises SettingsError if two have the same."""
    runs: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if runs.setdefault(name, folder).resolve() != folder.resolve():
            raise SettingsError(
                f"{runs[name]} and {folder} have the same name, by which clients ask; rename one of them"
            )
        if ":" in name or "@" in name:
            raise SettingsError(f"{folder}: a name with : or @ can't be asked for; rename the folder")
    return runs


def _key(variable: str | None) -> str | None:
    """The key in the environment. Raises PilgrimError if there is none where one is promised."""
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key.strip():
        raise PilgrimError(f"--api-key-env {variable}: that variable is empty or not set; put the key in it")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise PilgrimError(
            f"--api-key-env {variable}: a key in a header has only ASCII letters, digits and signs, and no "
            "white space; take another"
        )
    return key
