"""The engine: prompts in, replies out.

A reply is written in two phases. The prompt is read in one pass, all its tokens at once; then each step
draws one token, appends it, and reads it to score what comes next. What attention needs of earlier
tokens waits in a KV cache, so a step costs one token's work. Many replies are written together, as that
uses a machine far better: their prompts are read in groups of similar length, and whoever is finished
leaves the batch, so that the rest goes on faster.

    engine = Engine(model, runtime)
    replies = engine.generate(prompts, Sampling(), stop_ids={2})
    for token_id in engine.stream(prompt, Sampling(), stop_ids={2}): ...
    session = engine.session()      # like stream, but remembers what it has read of a conversation

What a sequence draws depends only on the seed and its index, never on what else is in the batch.
(In bf16 a batch of another size may round differently, and so turn a draw that was on the edge.)
"""

import copy
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pilgrim.core.errors import DataError
from pilgrim.core.runtime import Runtime
from pilgrim.infer.cache import KVCache
from pilgrim.infer.sampling import Sampling, choose
from pilgrim.infer.tools import ToolUse
from pilgrim.model.attention import Attend
from pilgrim.model.transformer import Transformer

# Prompts are read together up to this many tokens, padding included: enough to keep a machine busy.
TOKENS_PER_PASS = 8192


@dataclass(frozen=True)
class Reply:
    """What was generated. `ended`: by a stop token (which is not in `ids`), not because of a limit."""

    ids: list[int]
    ended: bool


@dataclass
class Writer:
    """A reply being written."""

    prompt: Sequence[int]
    index: int
    draws: torch.Generator
    room: int
    tools: ToolUse | None = None
    ids: list[int] = field(default_factory=list)
    ended: bool = False
    due: deque[int] = field(default_factory=deque)  # a tool's answer, which comes before anything is drawn

    def take(self, token_id: int, stop_ids: Collection[int]) -> bool:
        """Appends the token, unless it is the one to stop at; tells which."""
        self.ended = token_id in stop_ids
        self.room -= 1
        if not self.ended:
            self.ids.append(token_id)
            if self.tools and not self.due:
                self.due.extend(self.tools.answer(self.ids))
        return not self.ended

    @property
    def over(self) -> bool:
        return self.ended or self.room == 0


class Engine:
    """A model ready to write, with its own copy of the weights in the dtype that it computes in."""

    def __init__(self, model: Transformer, runtime: Runtime, rows: int = 32) -> None:
        """`rows`: how many replies are written together at most.

        On a CPU, 1 or 2 `rows` are computed in fp32 even where the runtime has bf16. Measured with AMX on a
        model of width 256 and 4 layers, fp32 writes a single reply 1.2 to 1.3 times as fast; with 4 rows
        the two are even, and with 32 bf16 is 1.4 times as fast, as its matrix unit wants many rows at once.
        """
        few = runtime.device.type == "cpu" and rows <= 2
        self.dtype = torch.float32 if few else runtime.dtype
        # Cast once, here; the layers' own casts then cost nothing.
        self.model = copy.deepcopy(model).to(device=runtime.device, dtype=self.dtype).eval()
        self.config = model.config
        self.rows = rows
        self._runtime = runtime

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop_ids: Collection[int],
        tools: ToolUse | None = None,
        indices: Sequence[int] | None = None,
        enough: Callable[[Sequence[int]], bool] = lambda ids: False,
    ) -> list[Reply]:
        """A reply to each prompt, in their order. `tools` answers the calls in them (infer/tools.py).
        `indices` are the prompts'; left out: 0, 1, 2 …

        A reply is over at a token of `stop_ids`, as soon as its ids are `enough`, after
        `sampling.max_tokens`, or when prompt and reply fill the model's context. Raises DataError for a
        prompt that is empty, fills the context by itself (cut it before), or has ids that the model doesn't
        know.
        """
        indices = range(len(prompts)) if indices is None else indices
        writers = [self.writer(p, sampling, index, tools) for index, p in zip(indices, prompts, strict=True)]
        by_length = sorted(writers, key=lambda writer: len(writer.prompt))
        for first in range(0, len(writers), self.rows):
            batch = by_length[first : first + self.rows]
            cache = self.cache(len(batch), max(len(writer.prompt) + writer.room for writer in batch))
            scores_bv = self._read_prompts(cache, batch)
            for writer, _ in self.write(cache, batch, scores_bv, sampling, stop_ids):
                writer.ended = enough(writer.ids)
        return [Reply(writer.ids, writer.ended) for writer in writers]

    def stream(
        self, prompt: Sequence[int], sampling: Sampling, stop_ids: Collection[int], index: int = 0
    ) -> Generator[int, None, None]:
        """The ids of one reply as they are drawn; the same as `generate` gives the prompt of this index."""
        return self.session().stream(prompt, sampling, stop_ids, index)

    def session(self) -> "Session":
        """A conversation whose beginning isn't read again at every turn."""
        return Session(self)

    # The parts of which these are made ---------------------------------------------------------------

    def cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for `rows` texts of up to `capacity` tokens."""
        return KVCache(self.config, rows, capacity, self.dtype, self._runtime.device)

    def writer(
        self, prompt: Sequence[int], sampling: Sampling, index: int, tools: ToolUse | None = None
    ) -> Writer:
        """A reply that is not begun yet. Raises DataError if the prompt can't be answered."""
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
        draws = replace(self._runtime, seed=sampling.seed).generator("reply", index)
        return Writer(prompt, index, draws, min(sampling.max_tokens, context - len(prompt)), tools)

    @torch.inference_mode()
    def read(self, cache: KVCache, first: int, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Lets row `first + i` read `tokens[i]`; returns the scores of what follows each, [b, v]."""
        counts = [len(ids) for ids in tokens]
        last_bw = self.hidden(cache, first, tokens)[torch.arange(len(counts)), torch.tensor(counts) - 1]
        scores_bv = self.model.logits(last_bw).float()
        # Drawing needs float64, which Apple's GPU doesn't have; memory is shared there, so this is cheap.
        return scores_bv.cpu() if self._runtime.device.type == "mps" else scores_bv

    @torch.inference_mode()
    def hidden(self, cache: KVCache, first: int, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Lets row `first + i` read `tokens[i]`; returns hidden states [b, t, w], padded at the right."""
        positions_bt, attend = cache.extend(first, [len(ids) for ids in tokens])
        out: Tensor = self.model(self.padded(tokens), attend, positions_bt, self.dtype)
        return out

    @torch.inference_mode()
    def hidden_at(self, ids_bt: Tensor, positions_bt: Tensor, attend: Attend, wanted_bn: Tensor) -> Tensor:
        """Hidden states [b, n, w] at the places `wanted_bn` of whole rows; keys and values aren't kept."""
        out: Tensor = self.model(ids_bt, attend, positions_bt, self.dtype, wanted_bn)
        return out

    @property
    def device(self) -> torch.device:
        return self._runtime.device

    def padded(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Ids [b, t] on the engine's device. No token looks to its right, so the padding changes nothing."""
        longest = max(len(ids) for ids in tokens)
        return torch.tensor(
            [[*ids, *[0] * (longest - len(ids))] for ids in tokens], device=self._runtime.device
        )

    def write(
        self,
        cache: KVCache,
        batch: list[Writer],
        scores_bv: Tensor,
        sampling: Sampling,
        stop_ids: Collection[int],
    ) -> Generator[tuple[Writer, int], None, None]:
        """Writes the replies of `batch` to their ends; yields each token as it comes, with its writer.

        Writer i owns row i of the cache, and `scores_bv[i]` scores its first token.
        """
        active = list(batch)
        while active:
            for writer, drawn in zip(active, self._draw(scores_bv, active, sampling), strict=True):
                token_id = writer.due.popleft() if writer.due else drawn
                if writer.take(token_id, stop_ids):
                    yield writer, token_id
            for row in reversed(range(len(active))):
                if active[row].over:
                    cache.drop(row)
                    active[row] = active[-1]
                    active.pop()
            if active:
                scores_bv = self.read(cache, 0, [writer.ids[-1:] for writer in active])

    def _read_prompts(self, cache: KVCache, batch: Sequence[Writer]) -> Tensor:
        """Reads prompts, sorted by length, in groups that waste little on padding; the scores [b, v]."""
        scores, first = [], 0
        for end in range(1, len(batch) + 1):
            if end < len(batch) and (end + 1 - first) * len(batch[end].prompt) <= TOKENS_PER_PASS:
                continue  # the next one still fits in
            scores.append(self.read(cache, first, [writer.prompt for writer in batch[first:end]]))
            first = end
        return torch.cat(scores)

    def _draw(self, scores_bv: Tensor, active: Sequence[Writer], sampling: Sampling) -> list[int]:
        """The next token of each; only sequences that are still going use up their random numbers."""
        uniform = [torch.rand((), generator=writer.draws, dtype=torch.float64) for writer in active]
        draws_b = 1 - torch.stack(uniform).to(scores_bv.device)  # from [0, 1) to (0, 1]
        ids: list[int] = choose(scores_bv, [writer.ids for writer in active], sampling, draws_b).tolist()
        return ids


class Session:
    """One conversation. The model reads only what is new since the turn before."""

    def __init__(self, engine: Engine) -> None:
        self.ended = False
        self._engine = engine
        self._cache = engine.cache(rows=1, capacity=engine.config.context)
        self._held: list[int] = []  # the ids whose keys and values are in the cache

    def stream(
        self, prompt: Sequence[int], sampling: Sampling, stop_ids: Collection[int], index: int = 0
    ) -> Generator[int, None, None]:
        """The ids of the reply to `prompt`, which is the whole conversation; see `Engine.generate`.

        Whatever the cache holds of the prompt's beginning is reused. Afterwards `ended` tells whether the
        reply ended by itself. It can be left off at any point.
        """
        self.ended = False
        writer = self._engine.writer(prompt, sampling, index)
        # At least the last token is read again, because its scores are needed.
        keep = min(_common_prefix(self._held, prompt), len(prompt) - 1)
        self._held = self._held[:keep]
        self._cache.keep_only(keep)
        scores_bv = self._engine.read(self._cache, 0, [prompt[keep:]])
        try:
            for _, token_id in self._engine.write(self._cache, [writer], scores_bv, sampling, stop_ids):
                yield token_id
        finally:
            self.ended = writer.ended
            self._held = [*prompt, *writer.ids[:-1]]  # the last one was drawn, but not read


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids at the beginning are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
