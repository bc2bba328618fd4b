"""Which models there are, and which of them are in memory.

A run has a model for each checkpoint that it has kept. Each has an id:

    pocket                  the newest of the last stage
    pocket:pretrain         the newest of that stage
    pocket:pretrain@1200    exactly that one

They are loaded when they are first asked for. Only a few stay in memory: when there is no room, the one that
was left alone longest goes, but never one that somebody waits for. A run may be trained on meanwhile: what
"the newest" means is looked up for every request.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import PilgrimError
from pilgrim.core.runtime import Runtime
from pilgrim.core.stages import CHAT, TRAINED
from pilgrim.infer.cache_bits import CacheBits
from pilgrim.infer.engine import Engine
from pilgrim.infer.load import load_engine, load_tokenizer
from pilgrim.infer.quantized import Weights
from pilgrim.serve.driver import Driver
from pilgrim.serve.metrics import Metrics
from pilgrim.serve.refusals import Refusal, stopping
from pilgrim.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Entry:
    """A checkpoint that can be asked for."""

    run: str
    stage: str
    step: int
    folder: Path  # of the stage

    @property
    def id(self) -> str:
        """Its exact name."""
        return f"{self.run}:{self.stage}@{self.step}"

    @property
    def chats(self) -> bool:
        """Whether it was taught to answer, or only continues texts."""
        return self.stage in CHAT

    @property
    def saved_s(self) -> int:
        """When, in seconds since 1970."""
        folder = self.folder / "checkpoints" / f"step_{self.step:06d}"
        return int(folder.stat().st_mtime) if folder.exists() else 0


class Loaded:
    """A model in memory."""

    def __init__(self, entry: Entry, tokenizer: Tokenizer, driver: Driver) -> None:
        self.entry, self.tokenizer, self.driver = entry, tokenizer, driver
        self.borrowed = 0  # by handlers that prepare a request
        self.longest_token = max(tokenizer.token_bytes())

    @property
    def engine(self) -> Engine:
        return self.driver.engine

    @property
    def busy(self) -> bool:
        return self.borrowed > 0 or self.driver.taken > 0


class Models:
    """The models of some runs."""

    def __init__(
        self,
        runs: Mapping[str, Path],
        runtime: Runtime,
        rows: int = 32,
        waiting: int = 256,
        kept: int = 2,
        weights: Weights = "full",
        cache: CacheBits = "full",
    ) -> None:
        """`runs`: folders by name. Of each model `rows` replies are written together, and `waiting` wait.
        `kept`: models in memory. `weights`: in how many bits (infer/quantized.py); `cache`: keys and
        values alike (infer/cache_bits.py).
        """
        self.runs = dict(runs)
        self.metrics = Metrics(lambda: self.loaded)
        self._runtime = runtime
        self._rows, self._waiting, self._kept = rows, waiting, kept
        self._weights, self._cache = weights, cache
        self._loaded: dict[Entry, Loaded] = {}  # the one that was used last at the end
        self._loading = asyncio.Lock()
        self._stopped = False

    # What there is -------------------------------------------------------------------------------------

    def listed(self) -> dict[str, Entry]:
        """Every id, with what it means now."""
        ids = {}
        for run in self.runs:
            found = self._entries(run)
            if found:
                ids[run] = found[-1]
            for entry in reversed(found):
                ids.setdefault(f"{run}:{entry.stage}", entry)
                ids[entry.id] = entry
        return ids

    def find(self, name: str) -> Entry:
        """What `name` means now. Raises Refusal."""
        run = name.partition(":")[0]
        for entry in reversed(self._entries(run) if run in self.runs else []):
            if name in (run, f"{run}:{entry.stage}", entry.id):
                return entry
        known = ", ".join(self.runs)
        raise Refusal(
            f"there is no model {ascii(name)[:80]}; the runs here are {known}, and /v1/models lists all ids",
            status=404,
            param="model",
            code="model_not_found",
        )

    def _entries(self, run: str) -> list[Entry]:
        """From the first stage's first to the last stage's last."""
        folder = self.runs[run]
        return [
            Entry(run, stage, step, folder / stage)
            for stage in TRAINED
            for step in CheckpointStore(folder / stage / "checkpoints").steps()
        ]

    # What is in memory ---------------------------------------------------------------------------------

    @property
    def loaded(self) -> list[Loaded]:
        return list(self._loaded.values())

    def has_loaded(self, entry: Entry) -> bool:
        return entry in self._loaded

    @asynccontextmanager
    async def borrowed(self, name: str) -> AsyncIterator[Loaded]:
        """The model, loaded if it is not yet, and not removed while inside. Raises Refusal."""
        entry = self.find(name)
        model = self._loaded.get(entry) or await self._load(entry)
        self._loaded[entry] = self._loaded.pop(entry)
        model.borrowed += 1
        try:
            yield model
        finally:
            model.borrowed -= 1

    async def _load(self, entry: Entry) -> Loaded:
        async with self._loading:
            if entry in self._loaded:  # somebody else has just loaded it
                return self._loaded[entry]
            self._make_room()
            try:
                tokenizer, engine = await asyncio.to_thread(self._read, entry)
            except PilgrimError as error:
                print(f"{entry.id} can't be loaded: {error}", file=sys.stderr)
                what = f"{entry.id} can't be loaded; the server's terminal says why"
                raise Refusal(what, status=500, param="model") from error
            if self._stopped:
                raise stopping()
            driver = Driver(engine, self._rows + self._waiting, self.metrics.watch(entry.id), entry.id)
            self._loaded[entry] = Loaded(entry, tokenizer, driver)
            return self._loaded[entry]

    def _read(self, entry: Entry) -> tuple[Tokenizer, Engine]:
        tokenizer = load_tokenizer(self.runs[entry.run])
        return tokenizer, load_engine(
            entry.folder,
            tokenizer,
            self._runtime,
            self._rows,
            step=entry.step,
            record=True,  # it lives long
            lookup=True,
            weights=self._weights,
            cache=self._cache,
        )

    def _make_room(self) -> None:
        while len(self._loaded) >= self._kept:
            idle = next((model for model in self._loaded.values() if not model.busy), None)
            if idle is None:
                raise Refusal(
                    f"all {self._kept} models that fit in memory are at work; come again later",
                    status=429,
                    code="overloaded",
                    retry_after_s=5,
                )
            del self._loaded[idle.entry]
            idle.driver.stop()

    def stop(self) -> None:
        """Every reply that is being written ends with an error."""
        self._stopped = True
        for model in self._loaded.values():
            model.driver.stop()

    def join(self) -> None:
        """Wait until nothing computes any more, after `stop`."""
        for model in self._loaded.values():
            model.driver.join()
