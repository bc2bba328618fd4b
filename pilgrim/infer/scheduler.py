"""Who reads how many tokens in the next pass: requests come and go at any time, and nobody waits for a batch.

Each request has tokens, of which the model has read some. That is all there is to it: a prompt is many unread
tokens, a reply that is being written has one, the one drawn last (Yu et al. 2022, Orca: decided anew for
every pass). A pass reads, up to a budget of tokens,

1. one token of each reply that is being written, so that no long prompt makes it stutter;
2. more of the prompts that were begun, in order of arrival: long ones in chunks;
3. prompts that wait, in order of arrival, as long as there are rows and blocks for them. Whatever the cache
   still holds of a prompt's beginning is not read again.

When a reply needs a block and there is none, the request that came last gives all of its own back and waits
in front of the others that came later than it. Its turn comes again, and what it had is read anew,
or found. So whoever came first always gets on, and everybody is served at last.

A reply may guess how it goes on (lookup.py). Its guesses are read behind its one token, as far as there are
blocks that nobody else needs; which of them were right, `confirm` is told afterwards.

Nothing here knows of tensors: it is arithmetic on lists.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pilgrim.infer.blocks import BEGINNING, BlockPool, name_of
from pilgrim.infer.grammar import Grammar
from pilgrim.infer.lookup import FEW_TEXTS, MOST, Lookup
from pilgrim.infer.sampling import Sampling

Until = Callable[[int], bool]  # a token that was written -> whether the reply ends with it
Follow = Callable[[Sequence[int]], Sequence[int]]  # a reply so far -> ids that must come next, mostly none


@dataclass(eq=False)
class Request:
    """A reply being written; `tokens` is the prompt and what was written. See `Engine.submit`."""

    tokens: list[int]
    prompt_tokens: int
    room: int  # so many tokens may still be written
    sampling: Sampling
    stop_ids: Collection[int]
    draws: Sequence[float]  # numbers from (0, 1], one for each place of the reply
    arrival: int
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    scores_at: float = 1.0  # the temperature at which log-probabilities are told
    until: Until | None = None
    follow: Follow | None = None
    grammar: Grammar | None = None
    lookup: Lookup | None = None  # who guesses for it
    guess: Sequence[int] = ()  # how it may go on, read in this pass
    trouble: str | None = None  # why it had to end before it was complete, as a sentence
    failure: BaseException | None = (
        None  # what its own `until`, `follow` or `grammar` raised, and so ended it
    )
    ended: bool = False  # by a stop token or by `until`
    stopped_by: int | None = None  # the stop token, which is not among `tokens`
    over: bool = False
    # The scheduler's:
    read: int = 0  # of the tokens, those whose keys and values are in the cache
    blocks: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)  # of full blocks

    @property
    def ids(self) -> list[int]:
        """What was written so far."""
        return self.tokens[self.prompt_tokens :]

    @property
    def written(self) -> int:
        """How many tokens that is."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def unread(self) -> int:
        return len(self.tokens) - self.read

    def complain(self) -> None:
        """Raises its failure, if it has one."""
        if self.failure is not None:
            raise self.failure


class Work(NamedTuple):
    """A request's next `tokens` tokens, to be read."""

    request: Request
    tokens: int

    @property
    def to_the_end(self) -> bool:
        """Whether everything is read then, so that the next token can be drawn."""
        return self.tokens == self.request.unread


class Scheduler:
    """The queue, those at work, and the blocks they have."""

    def __init__(self, pool: BlockPool, rows: int, tokens_per_pass: int) -> None:
        """`rows` requests are at work at the same time at most; a pass reads `tokens_per_pass` at most."""
        self.pool, self.rows = pool, rows
        self.tokens_per_pass = max(tokens_per_pass, rows)
        self.waiting: deque[Request] = deque()  # both in order of arrival
        self.running: list[Request] = []
        self._named: list[int] = []  # blocks that get a name with this pass

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue up. The pool must have blocks for its tokens and its room."""
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """It is over or cancelled: its blocks are free at once."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self._give_back(request)
        request.over = True

    def plan(self) -> list[Work]:
        """The next pass; empty if there is nothing to do. `done` or `undo` must follow."""
        self._named = []
        for request in list(self.running):
            self._grow(request)
        writing = [r for r in self.running if r.unread == 1]
        work = [self._read(request, 1) for request in writing]
        if len(self.running) <= FEW_TEXTS:
            self._guess(writing)
        work.sort(key=lambda each: len(each.request.guess) > 0)  # single tokens go together (cache.py)
        budget = self.tokens_per_pass - sum(1 + len(request.guess) for request in writing)
        for request in [r for r in self.running if r.unread > 1]:
            if budget > 0:
                work.append(self._read(request, min(request.unread, budget)))
                budget -= work[-1].tokens
        while budget > 0 and self.waiting and len(self.running) < self.rows:
            request = self.waiting[0]
            if not self._admit(request):
                break
            work.append(self._read(request, min(request.unread, budget)))
            budget -= work[-1].tokens
        return work

    def done(self, work: Sequence[Work]) -> None:
        """The pass was made."""
        for request, count in work:
            request.read += count

    def confirm(self, request: Request) -> None:
        """The pass has read the request's next token already, as it was guessed."""
        self._read(request, 1)
        request.read += 1

    def undo(self, work: Sequence[Work]) -> None:
        """The pass was broken off: who was to take part begins anew, and half-written blocks are no hits."""
        for block in self._named:
            self.pool.forget(block)
        for request, _ in work:
            request.guess = ()
            self._preempt(request)

    def _guess(self, writing: Sequence[Request]) -> None:
        """Guesses for those who have a lookup, and the blocks that they need, if these are to spare."""
        for request in writing:
            if request.lookup is None or request.grammar is not None:
                continue
            guess = request.lookup.guess(request.tokens, min(MOST, request.room - 1))
            last = len(request.tokens) + len(guess)
            # One block for each at work stays in reserve, or the next tokens would drive somebody out.
            while self.pool.blocks_for(last) > len(request.blocks) and self.pool.free > len(self.running):
                request.blocks.append(self.pool.take(request.blocks[-1]))
            held = len(request.blocks) * self.pool.block_tokens
            request.guess = guess[: max(0, held - len(request.tokens))]

    def _read(self, request: Request, count: int) -> Work:
        """Plan it. Blocks that get full by it have their names from now on.

        The pass stores every layer's keys and values before it looks at any, so whoever is admitted to the
        same pass can use these blocks already.
        """
        size = self.pool.block_tokens
        for i in range(request.read // size, (request.read + count) // size):
            self._name(request, i + 1)
            self.pool.keep(request.blocks[i], request.names[i])
            self._named.append(request.blocks[i])
        return Work(request, count)

    def _name(self, request: Request, blocks: int) -> None:
        """Have names for its first `blocks` blocks, which must be full."""
        size = self.pool.block_tokens
        for i in range(len(request.names), blocks):
            before = request.names[-1] if request.names else BEGINNING
            request.names.append(name_of(before, request.tokens[i * size : (i + 1) * size]))

    def _admit(self, request: Request) -> bool:
        """Begin with a waiting request, if there are blocks for all of its tokens.

        One block for each at work stays in reserve, or the next tokens would drive somebody out again.
        """
        # At least the last token is read, because its scores are needed.
        shareable = (len(request.tokens) - 1) // self.pool.block_tokens
        self._name(request, shareable)
        found = self.pool.find(request.names[:shareable])
        missing = self.pool.blocks_for(len(request.tokens)) - len(found) + self.pool.unused(found)
        if self.running and self.pool.free - missing < len(self.running):
            return False
        self.pool.share(found)
        request.blocks, request.read = list(found), len(found) * self.pool.block_tokens
        self._take(request)
        self.waiting.remove(request)
        insort(self.running, request, key=lambda r: r.arrival)
        return True

    def _grow(self, request: Request) -> None:
        """Blocks for all of its tokens, at the cost of whoever came last."""
        while request in self.running and self._lacks(request) > 0:
            if self.pool.free:
                self._take(request)
            else:
                self._preempt(self.running[-1])

    def _lacks(self, request: Request) -> int:
        return self.pool.blocks_for(len(request.tokens)) - len(request.blocks)

    def _take(self, request: Request) -> None:
        while self._lacks(request) > 0 and self.pool.free:
            request.blocks.append(self.pool.take(request.blocks[-1] if request.blocks else None))

    def _preempt(self, request: Request) -> None:
        """Back to those who wait, before everybody who came later."""
        self.running.remove(request)
        self._give_back(request)
        place = next(
            (i for i, r in enumerate(self.waiting) if r.arrival > request.arrival), len(self.waiting)
        )
        self.waiting.insert(place, request)

    def _give_back(self, request: Request) -> None:
        self.pool.release(request.blocks)
        request.blocks, request.read = [], 0
