"""Asking until there is an answer: from the journal, or from the writer, again and again.

A request that fails is sent again after a while: as long as the server has asked for (Retry-After), else one
second, two, four, up to a minute, each time up to half of that less, by chance, so that several requests that
failed together don't come back together. If one fails `tries` times, the server is taken to be down, and all
is stopped: no new request is sent, those on the way are waited for, as they may have been charged, and one
sentence says what happened.
"""

import asyncio
import random
from collections.abc import Mapping

from pilgrim.core.errors import PilgrimError
from pilgrim.synth.answers import Answer, Lost, Refused, Stopped, Unanswerable, Wire, Writer
from pilgrim.synth.journal import Journal, name_of
from pilgrim.synth.purse import Purse

LONGEST_WAIT_S = 60.0
LONGEST_RETRY_AFTER_S = (
    600.0  # a server that wants to be left alone for longer has a quota, and no bad minute
)


class NotAsked(Exception):
    """The journal holds no answer, and nobody may be asked yet."""


class Asking:
    """All questions go through here. `writers` are by the part they play: "writer", "judge"."""

    def __init__(self, writers: Mapping[str, Writer], journal: Journal, purse: Purse) -> None:
        self.journal, self.purse = journal, purse
        self.offline = True  # until somebody was told where things go
        self.stopped: PilgrimError | None = None
        self.requests = 0  # sent by this process
        self._writers = writers
        # By who answers: one that writes and judges has no more places than it has.
        self._places = {id(writer): asyncio.Semaphore(writer.concurrency) for writer in writers.values()}
        self._jitter = random.Random(0)

    @property
    def places(self) -> int:
        """How many requests of the writer may be on the way at once."""
        return self._writers["writer"].concurrency

    def model(self, who: str) -> str:
        """The model's name."""
        return self._writers[who].name

    async def __call__(self, who: str, messages: list[Wire], seed: int) -> Answer:
        """The answer, remembered or new. Raises NotAsked while offline, Unanswerable for this very question,
        and PilgrimError when nothing more is to be asked.
        """
        writer = self._writers[who]
        name = name_of(writer.name, writer.body(messages, seed))
        if (known := self.journal.answer(name)) is not None:
            return known
        if (why := self.journal.refusal(name)) is not None:
            raise Unanswerable(why)
        if self.offline:
            raise NotAsked
        async with self._places[id(writer)]:
            try:
                return await self._until_answered(who, writer, name, messages, seed)
            except PilgrimError as error:
                self.stopped = self.stopped or error
                raise

    async def _until_answered(
        self, who: str, writer: Writer, name: str, messages: list[Wire], seed: int
    ) -> Answer:
        most, why = writer.most(messages), ""
        for number in range(writer.tries):
            async with self.purse.laid_aside(who, most):
                if self.stopped:
                    raise self.stopped
                self.journal.asked(name, who, most, writer.price)
                self.requests += 1
                wait_s: float | None = None
                try:
                    answer = await writer.reply(messages, seed)
                except Lost as error:
                    why = str(error)
                    self.journal.lost(name)
                except Refused as error:
                    why, wait_s = str(error), error.wait_s
                    self.journal.refused(name, who, why)
                except Exception as error:
                    self.journal.refused(name, who, str(error), for_good=isinstance(error, Unanswerable))
                    raise
                else:
                    self.journal.answered(name, who, answer)
                    return answer
            if number + 1 < writer.tries:
                await self._wait(writer, number, wait_s, why)
        raise Stopped(
            f"{writer.where} failed {writer.tries} times in a row, the last time: {why}; all that was "
            "answered is kept, so start again when it is well"
        )

    async def _wait(self, writer: Writer, number: int, asked_for_s: float | None, why: str) -> None:
        if asked_for_s is not None and asked_for_s > LONGEST_RETRY_AFTER_S:
            raise Stopped(
                f"{writer.where} wants to be left alone for {asked_for_s:,.0f} s ({why}); all that was "
                "answered is kept, so start again then"
            )
        longest_s = min(LONGEST_WAIT_S, writer.wait_s * 2**number)
        await asyncio.sleep(max(asked_for_s or 0.0, longest_s * self._jitter.uniform(0.5, 1.0)))
