"""A model at work for many clients: one thread drives its engine, and nobody else touches it.

Requests are handled by asyncio, on one thread that must never wait; a step of the engine takes milliseconds
and must never be entered twice. So each has a thread of its own, and they talk through two queues:

    handler  --- orders: submit, cancel, score ------->  engine's thread: orders, step, orders, step …
    handler  <-- pieces, by call_soon_threadsafe ------  after each step, all that is new in one call

With nothing to do, the engine's thread sleeps in the queue of orders. A client that goes away has its
replies cancelled before the next step, and their places are free.

What happens to a reader that is slower than the model? Its reply is written at the engine's pace all the same
and waits in memory, which is bounded, as a reply is by the context. So nobody waits for anybody; and one who
reads nothing at all is given up after a while (events.py).

What goes wrong in one reply (its form, its stop strings, its tool, its text) ends that one with an error. If
a pass of the network fails, nobody can tell whose fault it is, and all replies that were at work end.

How many may wait is bounded too. Who comes when all places are taken is told to come again (429), and
after how many seconds: about when the next place should be free, by how long replies took lately.
"""

import asyncio
import math
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from pilgrim.core.errors import PilgrimError
from pilgrim.infer.engine import Engine, Event
from pilgrim.infer.grammar import Grammar
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.scheduler import Request
from pilgrim.serve.refusals import Refusal, our_fault, stopping
from pilgrim.serve.writing import Piece, Writer

T = TypeVar("T")
LONGEST_WAIT_S = 60  # that is advised to whoever is turned away


@dataclass(frozen=True, eq=False)
class Job:
    """One reply that is asked for; see `Engine.submit`."""

    prompt: Sequence[int]
    sampling: Sampling
    writer: Writer
    stop_ids: Collection[int]
    index: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    grammar: Grammar | None = None


class Watcher(Protocol):
    """Who counts what a model does (metrics.py). Called on the event loop."""

    def began(self, waited_s: float) -> None: ...

    def ended(self, job: Job, tokens: int, elapsed_s: float) -> None: ...


class Ticket:
    """The replies of one request: what is new in them, as it comes."""

    def __init__(self, driver: "Driver", jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.inbox: asyncio.Queue[tuple[Job, Piece] | Refusal] = asyncio.Queue()
        self.open = dict.fromkeys(jobs, 0)  # with the tokens written so far
        self.asked_s = time.perf_counter()
        self._driver = driver

    async def pieces(self) -> AsyncIterator[tuple[Job, Piece]]:
        """Until all have ended. Raises Refusal if they can't go on; whoever stops early has to `close`."""
        first = True
        while self.open:
            found = await self.inbox.get()
            if isinstance(found, Refusal):
                raise found
            if first:
                self._driver.watcher.began(time.perf_counter() - self.asked_s)
                first = False
            job, piece = found
            self.open[job] = piece.written
            if piece.finish is not None:
                self._leave(job)
            yield job, piece

    def close(self) -> None:
        """What is not finished is cancelled."""
        for job in list(self.open):
            self._driver.cancel(job)
            self._leave(job)

    def _leave(self, job: Job) -> None:
        self._driver.leave(job, self.open.pop(job), time.perf_counter() - self.asked_s)


class Driver:
    """An engine and its thread. Its methods belong to the event loop; those with an underscore to the thread,
    but for `_refuse_if_full`, `_done` and `_advice`.

    `places`: how many replies are written or wait at most.
    """

    def __init__(self, engine: Engine, places: int, watcher: Watcher, name: str) -> None:
        self.engine, self.places, self.watcher = engine, places, watcher
        self.taken = 0  # places
        self.stopped = False
        self._loop = asyncio.get_running_loop()
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets: dict[Job, Ticket] = {}  # of what was submitted and is not over
        self._requests: dict[Request, Job] = {}
        self._chores: deque[Callable[[], None]] = deque()
        self._seconds_each = 1.0  # that replies took lately
        self._thread = threading.Thread(target=self._run, name=f"engine of {name}", daemon=True)
        self._thread.start()

    # On the event loop --------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> Ticket:
        """Have these replies written. Raises Refusal if there are no places for them."""
        self._refuse_if_full(len(jobs))
        ticket = Ticket(self, jobs)
        self.taken += len(jobs)
        for job in jobs:
            self._orders.put(partial(self._begin, job, ticket))
        return ticket

    def cancel(self, job: Job) -> None:
        """No more of it."""
        self._orders.put(partial(self._cancel, job))

    def leave(self, job: Job, tokens: int, elapsed_s: float) -> None:
        """Its place is free again."""
        self.taken -= 1
        self._seconds_each += 0.1 * (elapsed_s - self._seconds_each)
        self.watcher.ended(job, tokens, elapsed_s)

    async def between_steps(self, work: Callable[[], T]) -> T:
        """Has the engine's thread do something else with the engine: one such work for each step.

        Raises what `work` raises, and Refusal if there is no place for it.
        """
        self._refuse_if_full(1)
        self.taken += 1
        try:
            return await self._done(work)
        finally:
            self.taken -= 1

    async def _done(self, work: Callable[[], T]) -> T:
        answer: asyncio.Future[T] = self._loop.create_future()

        def settle(value: T | None, error: BaseException | None) -> None:
            if not answer.done():
                answer.set_exception(error) if error else answer.set_result(value)  # type: ignore[arg-type]

        def chore() -> None:
            try:
                done, error = work(), None
            except Exception as trouble:
                done, error = None, trouble
            self._tell(settle, done, error)

        self._orders.put(partial(self._chores.append, chore))
        return await answer

    def stop(self) -> None:
        """Every reply ends with an error now, and the thread with them."""
        if not self.stopped:
            self.stopped = True
            self._orders.put(partial(self._fail, stopping()))

    def join(self) -> None:
        """Wait until the thread has ended, after `stop`."""
        self._thread.join()

    def refuse_more_than(self, wanted: int) -> None:
        """Raises Refusal if there will never be places for so many."""
        if wanted > self.places:
            raise Refusal(
                f"{wanted} replies are more than the {self.places} that this server takes at a time; "
                "ask for fewer",
                param="n",
            )

    def _refuse_if_full(self, wanted: int) -> None:
        if self.stopped:
            raise stopping()
        self.refuse_more_than(wanted)
        if self.taken + wanted > self.places:
            raise Refusal(
                f"the server is busy: {self.taken} of {self.places} places are taken; come again later",
                status=429,
                code="overloaded",
                retry_after_s=self._advice(),
            )

    def _advice(self) -> int:
        """Seconds until a place should be free."""
        each = self._seconds_each / min(self.engine.rows, self.places)
        return min(LONGEST_WAIT_S, max(1, math.ceil(each)))

    # In the engine's thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self.stopped:
            self._obey()
            if self._chores:
                self._chores.popleft()()
            if self._requests:
                self._step()
        self._obey()  # who came too late is told as well
        for chore in self._chores:
            chore()

    def _obey(self) -> None:
        """All orders that are there; if there is nothing else to do, waits for one."""
        try:
            self._orders.get(block=not (self._requests or self._chores or self.stopped))()
            while True:
                self._orders.get_nowait()()
        except queue.Empty:
            pass

    def _begin(self, job: Job, ticket: Ticket) -> None:
        if self.stopped:
            return self._tell(ticket.inbox.put_nowait, stopping())
        try:
            request = self.engine.submit(
                job.prompt,
                job.sampling,
                job.stop_ids,
                job.index,
                logit_bias=job.logit_bias,
                top_logprobs=job.top_logprobs,
                until=job.writer.until,
                follow=job.writer.follow,
                grammar=job.grammar,
            )
        except PilgrimError as error:
            self._tell(ticket.inbox.put_nowait, Refusal(str(error)))
        except Exception as error:
            self._tell(ticket.inbox.put_nowait, _explained(error))
        else:
            self._requests[request] = job
            self._tickets[job] = ticket

    def _cancel(self, job: Job) -> None:
        request = next((r for r, of in self._requests.items() if of is job), None)
        if request is not None:
            self.engine.cancel(request)
            self._forget(request)

    def _forget(self, request: Request) -> None:
        del self._tickets[self._requests.pop(request)]

    def _step(self) -> None:
        try:
            events = self.engine.step()
        except Exception as error:
            self._fail(_explained(error))
            return
        told: dict[Request, list[Event]] = {}
        for event in events:
            told.setdefault(event.request, []).append(event)
        pieces = []
        for request, its_events in told.items():
            job = self._requests[request]
            pieces.append((self._tickets[job], self._news(request, job, its_events)))
            if request.over:
                self._forget(request)
        self._tell(_deliver, pieces)

    def _news(self, request: Request, job: Job, events: Sequence[Event]) -> tuple[Job, Piece] | Refusal:
        """What is new in one reply. If it has failed, or that can't be told, it is over, and no other."""
        if request.trouble:  # its form can't be kept
            return Refusal(request.trouble, param="response_format")
        try:
            request.complain()
            for event in events:
                job.writer.take(event)
            return job, job.writer.last(request.ended) if request.over else job.writer.piece()
        except Exception as error:
            self.engine.cancel(request)
            return _explained(error)

    def _fail(self, why: Refusal) -> None:
        """Nobody can go on: what each of them is told."""
        for request in list(self._requests):
            self.engine.cancel(request)
            ticket = self._tickets[self._requests[request]]
            self._forget(request)
            self._tell(ticket.inbox.put_nowait, why)

    def _tell(self, work: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody is left to be told
            self._loop.call_soon_threadsafe(work, *arguments)


def _explained(error: Exception) -> Refusal:
    """What clients are told of it. What no person can mend is a bug, and told in the server's terminal."""
    if isinstance(error, PilgrimError):
        return Refusal(str(error), status=500)
    traceback.print_exception(error)
    return our_fault()


def _deliver(pieces: Sequence[tuple[Ticket, tuple[Job, Piece] | Refusal]]) -> None:
    for ticket, piece in pieces:
        ticket.inbox.put_nowait(piece)
