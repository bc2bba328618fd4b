"""The engine: prompts in, replies out, any number of them at any time.

    engine = Engine(model, runtime)
    request = engine.submit(prompt, Sampling(), stop_ids={2})   # as many as there are, whenever they come
    while not request.over:
        for event in engine.step(): ...                         # one pass for all; each event is a token
    engine.cancel(request)                                      # its place is free at once

    replies = engine.generate(prompts, Sampling(), stop_ids={2})
    for token_id in engine.stream(prompt, Sampling(), stop_ids={2}): ...

A step is one pass through the network. The scheduler says who reads how many tokens in it (scheduler.py),
the cache has keys and values of what was read before (cache.py, blocks.py), and for each request that is read
to its end a token is drawn (sampling.py). Chat, evaluation and whoever else writes use this one path.

What a request draws depends only on its seed, its index, and how many tokens it has, never on what else
is in the batch. (In bf16 a batch of another size may round differently, and so turn a draw that was on the
edge.)
"""

import copy
import warnings
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from pilgrim.core.compiling import compiled
from pilgrim.core.errors import DataError
from pilgrim.core.runtime import Runtime
from pilgrim.infer import few_tokens, paged_kernel
from pilgrim.infer.blocks import BlockPool
from pilgrim.infer.cache import PagedCache
from pilgrim.infer.cache_bits import CacheBits, refuse
from pilgrim.infer.drawing import Place, draw, places_of, thoughts
from pilgrim.infer.few_tokens import FewTokens
from pilgrim.infer.grammar import Grammar
from pilgrim.infer.lookup import Lookup
from pilgrim.infer.network import Network
from pilgrim.infer.paged_attention import Span
from pilgrim.infer.quantized import Weights, quantized
from pilgrim.infer.recorded import Recorder, cuda_graph
from pilgrim.infer.sampling import Sampling, TokenScores
from pilgrim.infer.scheduler import Follow, Request, Scheduler, Until, Work
from pilgrim.infer.tools import ToolUse
from pilgrim.model.attention import Attend
from pilgrim.model.transformer import Transformer

BLOCK_TOKENS = 8  # few, so that little of a beginning is read again; a GPU's kernel has its own
# A pass reads so many tokens at most: enough to keep a machine busy, few enough for others not to wait long.
TOKENS_PER_PASS = {"cpu": 1024, "cuda": 8192, "mps": 2048}


@dataclass(frozen=True)
class Reply:
    """What was generated. `ended`: by a stop token (which is not in `ids`), not because of a limit."""

    ids: list[int]
    ended: bool


class Event(NamedTuple):
    """A token that a request wrote, and what the model thought of it if that was asked for.

    `token_id` is None where a stop token ended it, or its `failure`. Afterwards `request.over` tells whether
    it was the last.
    """

    request: Request
    token_id: int | None
    scores: TokenScores | None


class Engine:
    """A model ready to write, with its own copy of the weights in the dtype that it computes in."""

    def __init__(
        self,
        model: Transformer,
        runtime: Runtime,
        rows: int = 32,
        cache_tokens: int | None = None,
        tokens_per_pass: int | None = None,
        block_tokens: int | None = None,
        record: bool = False,
        lookup: bool = False,
        weights: Weights = "full",
        cache: CacheBits = "full",
    ) -> None:
        """`rows`: how many replies are written together at most. `cache_tokens`: how many tokens' keys and
        values are held, at least a whole context's; left out: enough for all rows of what is asked for.
        `record`: this engine will live long, so its steps are prepared: recorded on an NVIDIA GPU
        (recorded.py), compiled from C on a CPU (few_tokens.py).
        `lookup`: replies guess how they go on, and write the same sooner (lookup.py); not in recorded steps.
        `weights`: rounded to 8 or 4 bits, they are fetched sooner (quantized.py). `cache`: keys and values in
        8 bits take half the memory (cache_bits.py); raises SettingsError where the device can't.

        On a CPU without that code, 1 or 2 `rows` are computed in fp32 even where the runtime has bf16.
        Measured with AMX on a model of width 256 and 4 layers, torch writes a single reply 1.2 to 1.3 times
        as fast then; with 4 rows the two are even, and with 32 bf16 is 1.4 times as fast, as its matrix unit
        wants many rows at once. Weights of 8 or 4 bits are made for bf16.
        """
        on_cpu = runtime.device.type == "cpu"
        self._in_c = on_cpu and record and cache == "full" and few_tokens.ready(runtime.dtype, weights)
        few = on_cpu and rows <= 2 and weights == "full" and not self._in_c
        self.dtype = torch.float32 if few else runtime.dtype
        # Cast once, here; the layers' own casts then cost nothing.
        own = copy.deepcopy(model).to(device=runtime.device, dtype=self.dtype).eval()
        self.model = quantized(own, weights)
        self._network = Network(self.model)
        self.config = model.config
        self.rows = rows
        self._runtime = runtime
        refuse(cache, runtime.device)
        self._cache_tokens, self._cache_bits = cache_tokens, cache
        self._tokens_per_pass = tokens_per_pass or TOKENS_PER_PASS[runtime.device.type]
        why_not = paged_kernel.trouble(runtime.device, self.dtype, self.config.head_size, cache)
        self._kernel = None if why_not else paged_kernel.kernel_for(cache)
        if why_not and runtime.device.type == "cuda":
            warnings.warn(f"paged attention goes text by text, which is slow: {why_not}", stacklevel=2)
        self._block_tokens = block_tokens or (paged_kernel.BLOCK_TOKENS if self._kernel else BLOCK_TOKENS)
        self._lookup = lookup and not (record and self._kernel is not None)
        self.guessed = self.right = 0  # tokens that were guessed, and those of them that were kept
        self._arrivals, self._record = 0, record and self._kernel is not None
        self._recorder: Recorder | None = None
        self._few: FewTokens | None = None
        self._store: PagedCache | None = None  # made when it is known for how much, with the scheduler
        self._scheduler: Scheduler | None = None

    def load(self, model: Transformer) -> None:
        """Write with the weights of `model` from now on: a network of the same shape, trained further.

        What the cache holds is of the old weights, so it is forgotten; its memory and all that was prepared
        stay. Raises ValueError if replies are being written.
        """
        if not self.idle:
            raise ValueError("replies are being written: finish or cancel them before weights are loaded")
        self.model.load_weights(model.weights())
        if self._scheduler is not None:
            self._scheduler.pool.forget_all()

    # Asking for replies ------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        stop_ids: Collection[int] = (),
        index: int = 0,
        *,
        logit_bias: Mapping[int, float] | None = None,
        top_logprobs: int | None = None,
        scores_at: float = 1.0,
        until: Until | None = None,
        follow: Follow | None = None,
        grammar: Grammar | None = None,
    ) -> Request:
        """Ask for a reply; `step` writes it.

        It is over at a token of `stop_ids`, after `sampling.max_tokens`, or when prompt and reply fill the
        model's context. `index` tells samples of one seed apart. `logit_bias` is added to the scores of some
        ids; with `top_logprobs` each event tells what the model thought of its token, and of as many
        likeliest ones, at the temperature `scores_at`. `until` is told each id, and ends the reply with it by
        saying True, such as at a stop string (stopping.py). `follow` is given the reply after each drawn
        token, and returns ids that come next without being drawn, such as a tool's answer. `grammar` says
        which tokens may come next, where the reply shall be JSON or the like (constrained.py): such a reply
        is `ended` only if it is complete; one that could not be followed has `trouble`. What `follow` forces
        is no part of it. What `until`, `follow` or `grammar` raises is the request's `failure`, and ends it
        and no other.

        Raises DataError for a prompt that is empty, fills the context by itself (cut it before), or has ids
        that the model doesn't know.
        """
        request = self._request(prompt, sampling, stop_ids, index)
        if not all(0 <= i < self.config.vocab_size for i in logit_bias or ()):
            raise DataError(
                f"logit_bias: the model knows only the ids 0 to {self.config.vocab_size - 1}; "
                "leave others out"
            )
        request.logit_bias, request.top_logprobs = logit_bias or {}, top_logprobs
        request.scores_at = scores_at
        request.until, request.follow, request.grammar = until, follow, grammar
        if grammar is not None and len(grammar.allowed()) != self.config.vocab_size:
            raise DataError(
                f"grammar: is about {len(grammar.allowed())} tokens, but the model has "
                f"{self.config.vocab_size}; use the tokenizer of the same run"
            )
        self._reserve(self.rows, self.config.context)
        self._queue.add(request)
        return request

    def cancel(self, request: Request) -> None:
        """No more of it. What it has written stays in it; one that is over already is left alone."""
        if not request.over:
            self._queue.remove(request)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._scheduler is None or self._scheduler.idle

    def step(self) -> list[Event]:
        """One pass for whoever is at work; the tokens that came of it.

        Raises PilgrimError if the model's weights are spoiled. If a step is broken off, by that or a
        Ctrl-C, the engine stays as good as before it. A request whose own code fails (`submit` says which)
        ends with its `failure`, which is not raised here, as nobody else has to suffer from it.
        """
        work = self._queue.plan()
        if not work:
            return []
        try:
            places, scores_bv = self._pass(work)
            ids = self._draw(scores_bv, places) if places else []
            scores = thoughts(scores_bv, ids, places) if places else []
        except BaseException:
            self._queue.undo(work)
            raise
        self._queue.done(work)
        events, drawn = [], zip(places, ids, scores, strict=True)
        try:
            for request, of_one in groupby(drawn, key=lambda each: each[0].request):
                events += self._take_alone(request, [(token_id, thought) for _, token_id, thought in of_one])
        except BaseException:  # a Ctrl-C: whoever's turn did not come reads its last token again
            self._queue.undo([each for each in work if not each.request.over and each.request.unread == 0])
            raise
        return events

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop_ids: Collection[int],
        tools: ToolUse | None = None,
        indices: Sequence[int] | None = None,
        enough: Callable[[Sequence[int]], bool] | None = None,
    ) -> list[Reply]:
        """A reply to each prompt, in their order; see `submit`. `tools` answers calls in them (tools.py).
        `indices` are the prompts'; left out: 0, 1, 2 … A reply is over, too, as soon as its ids are `enough`.
        """
        indices = range(len(prompts)) if indices is None else indices
        requests = [self._request(p, sampling, stop_ids, i) for i, p in zip(indices, prompts, strict=True)]
        if not requests:
            return []
        for request in requests:
            request.follow = tools.answer if tools else None
            request.until = partial(_enough, enough, request) if enough else None
        longest = max(len(request.tokens) + request.room for request in requests)
        self._reserve(min(self.rows, len(requests)), longest)
        for request in requests:
            self._queue.add(request)
        try:
            while not all(request.over for request in requests):
                for event in self.step():
                    event.request.complain()
        finally:
            for request in requests:
                self.cancel(request)
        return [Reply(request.ids, request.ended) for request in requests]

    def stream(
        self, prompt: Sequence[int], sampling: Sampling, stop_ids: Collection[int], index: int = 0
    ) -> Generator[int, None, None]:
        """The ids of one reply as they are drawn; the same as `generate` gives the prompt of this index."""
        return self.session().stream(prompt, sampling, stop_ids, index)

    def session(self) -> "Session":
        """A conversation of which one wants to know how its replies ended."""
        return Session(self)

    # One pass ----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _pass(self, work: Sequence[Work]) -> tuple[list[Place], Tensor]:
        """Reads; returns the places that are read to their end, and the scores [b, v] of what follows."""
        assert self._store is not None
        spans = [Span(r.read, n + len(r.guess), r.blocks) for r, n in work]
        ids = [i for r, n in work for i in (*r.tokens[r.read : r.read + n], *r.guess)]
        if self._recorder and all(each.tokens == 1 and each.to_the_end for each in work):
            return [Place(request, 0) for request, _ in work], self._recorder.scores(spans, ids)
        ends, places, read = list[int](), list[Place](), 0
        for each in work:
            read += each.tokens
            if each.to_the_end:
                places += places_of(each.request)
                ends += range(read - 1, read + len(each.request.guess))
            read += len(each.request.guess)
        if self._few and len(ids) <= few_tokens.TOKENS:
            return places, self._few.scores(spans, ids, ends)
        positions_1n, attend = self._store.attend(spans)
        hidden_nw = self._forward(ids, positions_1n, attend)
        if len(ends) < len(ids):
            hidden_nw = hidden_nw[torch.tensor(ends, dtype=torch.long, device=hidden_nw.device)]
        return places, self._scores(hidden_nw)

    def _forward(self, ids: Sequence[int], positions_1n: Tensor, attend: Attend) -> Tensor:
        """Hidden states [n, w] of the new tokens of a pass."""
        return self._network.hidden(torch.tensor(ids, device=self._runtime.device), positions_1n[0], attend)

    def _step(self, ids_1b: Tensor, positions_1b: Tensor, attend: Attend) -> Tensor:
        """Scores [b, v] after one token of each text: what is recorded."""
        return self._scores(self._network.hidden(ids_1b[0], positions_1b[0], attend))

    def _scores(self, hidden_bw: Tensor) -> Tensor:
        scores_bv = self._network.scores(hidden_bw).float()
        # Drawing needs float64, which Apple's GPU doesn't have; memory is shared there, so this is cheap.
        return scores_bv.cpu() if self._runtime.device.type == "mps" else scores_bv

    def _draw(self, scores_bv: Tensor, places: Sequence[Place]) -> list[int]:
        return draw(scores_bv, places)

    def _take_alone(self, request: Request, drawn: Sequence[tuple[int, TokenScores | None]]) -> list[Event]:
        """`_take_all`; what the request's own code raises is its own `failure`, and the end of it."""
        try:
            request.complain()  # its form has failed before the token was drawn
            return self._take_all(request, drawn)
        except BaseException as error:
            request.failure = error
            self.cancel(request)
            if not isinstance(error, Exception):
                raise
            return [Event(request, None, None)]

    def _take_all(self, request: Request, drawn: Sequence[tuple[int, TokenScores | None]]) -> list[Event]:
        """Appends what was drawn at a request's places, up to the first guess that is wrong."""
        guess, right, events = request.guess, 0, list[Event]()
        request.guess = ()
        for token_id, thought in drawn:
            length = len(request.tokens)
            events += self._take(request, token_id, thought)
            as_guessed = right < len(guess) and token_id == guess[right]
            if not as_guessed or request.over or len(request.tokens) > length + 1:
                break
            self._queue.confirm(request)
            right += 1
        if request.lookup and guess:
            request.lookup.learn(len(guess), right, len(request.tokens))
            self.guessed, self.right = self.guessed + len(guess), self.right + right
        return events

    def _take(self, request: Request, token_id: int, scores: TokenScores | None) -> list[Event]:
        """Appends a drawn token, unless it is the one to stop at, and what has to follow it."""
        request.ended = token_id in request.stop_ids
        if request.ended:
            request.stopped_by = token_id
            self._queue.remove(request)
            return [Event(request, None, scores)]
        if request.grammar:
            request.grammar.feed(token_id)
        events = [self._append(request, token_id, scores)]
        if request.follow and not request.over:
            for forced in request.follow(request.ids):
                if not 0 <= forced < self.config.vocab_size:  # or the next pass would fail for all
                    raise ValueError(f"follow: {forced} is no token of the model")
                if not request.over:
                    events.append(self._append(request, forced, None))
        return events

    def _append(self, request: Request, token_id: int, scores: TokenScores | None) -> Event:
        """One more token; the request may be over with it."""
        request.tokens.append(token_id)
        request.room -= 1
        request.ended = request.until is not None and request.until(token_id)
        if request.grammar and request.grammar.finished:
            request.trouble = request.grammar.trouble
            request.ended = request.ended or request.trouble is None
        if request.ended or request.trouble or request.room == 0:
            self._queue.remove(request)
        return Event(request, token_id, scores)

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values, and of their scales where they are rounded."""
        return self._store.bytes if self._store else 0

    @property
    def cache_used(self) -> float:
        """Share of its blocks that some request holds just now."""
        pool = self._scheduler and self._scheduler.pool
        return 1 - pool.free / pool.blocks if pool else 0.0

    # What it needs -----------------------------------------------------------------------------------

    @property
    def _queue(self) -> Scheduler:
        assert self._scheduler is not None, "submit something first"
        return self._scheduler

    def _request(
        self, prompt: Sequence[int], sampling: Sampling, stop_ids: Collection[int], index: int
    ) -> Request:
        """A request that is not queued yet. Raises DataError if it can't be answered."""
        context, vocabulary = self.config.context, self.config.vocab_size
        if not prompt:
            raise DataError(f"prompt {index}: has no tokens; begin it with <|endoftext|>")
        if len(prompt) >= context:
            raise DataError(
                f"prompt {index}: {len(prompt)} tokens leave no room for a reply in the model's context of "
                f"{context}; shorten it"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise DataError(
                f"prompt {index}: the model knows only the ids 0 to {vocabulary - 1}; use its run's tokenizer"
            )
        room = min(sampling.max_tokens, context - len(prompt))
        generator = replace(self._runtime, seed=sampling.seed).generator("reply", index)
        draws = (1 - torch.rand(room, generator=generator, dtype=torch.float64)).tolist()  # (0, 1]
        self._arrivals += 1
        request = Request(list(prompt), len(prompt), room, sampling, stop_ids, draws, self._arrivals)
        request.lookup = Lookup() if self._lookup else None
        return request

    def _reserve(self, texts: int, tokens: int) -> None:
        """Have a cache for so many texts of that length, or as large as was asked for.

        An idle engine gets a larger one if it has to; what the old one held is lost.
        """
        size, context = self._block_tokens, self.config.context
        lane, lanes = -(-tokens // size), texts
        if self._cache_tokens is not None:
            lane = -(-context // size)
            lanes = max(1, self._cache_tokens // (lane * size))
        lanes = max(lanes, -(-context // (max(lane, 1) * size)))  # room for the longest text at least
        if self._scheduler is not None:
            pool = self._scheduler.pool
            if not self.idle or (pool.lane_blocks >= lane and pool.blocks >= lanes * lane):
                return
        # First the old one goes, then the new one comes.
        self._store = self._scheduler = self._recorder = self._few = None
        self._store = PagedCache(
            self.config,
            lanes * lane,
            size,
            lane,
            self.dtype,
            self._runtime.device,
            self._kernel,
            self._cache_bits,
        )
        self._scheduler = Scheduler(BlockPool(lanes * lane, size, lane), self.rows, self._tokens_per_pass)
        if self._in_c and self._kernel is None:
            self._few = FewTokens(self.model, self._store)
        if self._record:
            step = compiled(self._step) if self._runtime.compile else self._step
            self._recorder = Recorder(step, self._store, self.rows, context, cuda_graph)

    # For who lays out rows by themselves: scoring ------------------------------------------------------

    @torch.inference_mode()
    def hidden_at(self, ids_bt: Tensor, positions_bt: Tensor, attend: Attend, wanted_bn: Tensor) -> Tensor:
        """Hidden states [b, n, w] at the places `wanted_bn` of whole rows; keys and values aren't kept."""
        out: Tensor = self.model(ids_bt, attend, positions_bt, self.dtype, wanted_bn)
        return out

    @property
    def device(self) -> torch.device:
        return self._runtime.device


class Session:
    """One conversation: replies as they are drawn, and how the last one ended.

    Whatever the engine's cache still holds of the conversation isn't read again.
    """

    def __init__(self, engine: Engine) -> None:
        self.ended = False
        self._engine = engine

    def stream(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        stop_ids: Collection[int],
        index: int = 0,
        follow: Follow | None = None,
    ) -> Generator[int, None, None]:
        """The ids of the reply to `prompt`, which is the whole conversation; see `Engine.submit`.

        Afterwards `ended` tells whether the reply ended by itself. It can be left off at any point.
        """
        self.ended = False
        request = self._engine.submit(prompt, sampling, stop_ids, index, follow=follow)
        try:
            told = len(prompt)
            while True:
                while told < len(request.tokens):
                    told += 1
                    yield request.tokens[told - 1]
                request.complain()
                if request.over:
                    break
                self._engine.step()  # others that are at work get on with it, too
        finally:
            self.ended = request.ended
            self._engine.cancel(request)


def _enough(enough: Callable[[Sequence[int]], bool], request: Request, token_id: int) -> bool:
    """Whether the reply is over with this token, which is in it already."""
    return enough(request.ids)
