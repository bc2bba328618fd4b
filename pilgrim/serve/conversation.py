"""A conversation with a trained model: what was said, and the next reply as it comes.

The model itself remembers nothing. At every turn it is shown the conversation so far, rendered as it was
in training, and continues it; the engine's session sees to it that only what is new is really read. When
a conversation outgrows the model's context, the oldest exchanges are left out of what it is shown.

A reply may call tools, which are answered in the middle of it (infer/tools.py). A person reads such a call
and its answer as "[9*2 → 18]"; in what is kept, they are messages of their own.

A run that has not come to its first stage of CHAT (core/stages.py) has only a base model: it knows no turns
and just continues a text.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pilgrim.core.errors import SettingsError
from pilgrim.core.runtime import Runtime
from pilgrim.core.stages import CHAT
from pilgrim.infer.cache_bits import CacheBits
from pilgrim.infer.engine import Engine
from pilgrim.infer.load import load_engine, load_tokenizer, newest_stage
from pilgrim.infer.quantized import Weights
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.tools import ToolUse, tools_with_python
from pilgrim.text.calls import CALL, END_OF_CALL, END_OF_RESPONSE, MARKS, RESPONSE
from pilgrim.text.chat import Message, messages_of_reply, render_prompt, row_of, truncate_turns
from pilgrim.text.tokenizer import StreamDecoder, Tokenizer

SHOWN = {CALL: "[", END_OF_CALL: " → ", RESPONSE: "", END_OF_RESPONSE: "]"}


@dataclass(frozen=True)
class Prompt:
    """What the model is shown; `forgotten` messages had no room, and `was_cut` if the last had too little."""

    ids: list[int]
    forgotten: int
    was_cut: bool


@dataclass(frozen=True)
class Facts:
    """About a reply: its tokens and time, and how many tokens of the model's context are used up with it."""

    tokens: int
    elapsed_s: float
    context_used: int
    context: int
    ended: bool  # by itself, not by a limit
    forgotten: int
    was_cut: bool


class Readable:
    """A reply's ids as text for a person; `aside` while it is that of a call or of its answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.aside = False
        self._decoder = StreamDecoder(tokenizer)
        self._closing = False

    def feed(self, token_id: int) -> str:
        """What can be shown now that this id has come."""
        if self._closing or token_id == CALL:
            self.aside, self._closing = token_id == CALL, False
        if token_id not in MARKS:
            return self._decoder.feed(token_id)
        self._closing = token_id == END_OF_RESPONSE
        return self._decoder.finish() + SHOWN[token_id]

    def finish(self) -> str:
        """What is left at the end."""
        return self._decoder.finish()


class Conversation:
    """Turns between a user and a model that was taught to chat."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        system: str | None = None,
        tools: ToolUse | None = None,
    ) -> None:
        """`tools` answer the calls in replies; left out: the calculator."""
        self.system = system
        self.aside = False  # whether the piece that was told last is of a call or its answer
        self.messages: list[Message] = []  # without the system's
        self.facts: Facts | None = None  # about the last reply
        self.engine, self.tokenizer = engine, tokenizer
        self._tools = tools or ToolUse(tokenizer)
        self._session = engine.session()
        self._replies = 0  # every reply draws from a randomness of its own

    def ask(self, text: str, sampling: Sampling) -> Generator[str, None, None]:
        """The reply to `text`, piece by piece.

        It can be left off at any point: what was said until then is part of the conversation. Raises
        DataError, and changes nothing, if the system prompt leaves no room.
        """
        return self._reply(self.messages, text, sampling)

    def retry(self, sampling: Sampling) -> Generator[str, None, None]:
        """Another reply to the last message, in place of the first. Raises SettingsError if there is none."""
        if not self.messages:
            raise SettingsError("/retry: nothing was said yet; write something first")
        last = max(i for i, message in enumerate(self.messages) if message.role == "user")
        return self._reply(self.messages[:last], self.messages[last].content, sampling)

    def reset(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.messages = []

    def rows(self) -> list[dict[str, Any]]:
        """The conversation as training data: rows of JSON Lines."""
        return [row_of(self._with_system(self.messages))]

    def _reply(self, history: Sequence[Message], text: str, sampling: Sampling) -> Generator[str, None, None]:
        messages = [*history, Message("user", text)]
        context = self.engine.config.context
        prompt = self._prompt(messages, limit=context - min(sampling.max_tokens, context // 2))
        stop_ids = self.tokenizer.eot_id, self.tokenizer.im_end_id
        shown, reply, began_s = Readable(self.tokenizer), list[int](), time.perf_counter()
        drawn = self._session.stream(prompt.ids, sampling, stop_ids, self._replies, self.follow)
        try:
            with closing(drawn) as ids:
                for token_id in ids:
                    reply.append(token_id)
                    piece = shown.feed(token_id)
                    self.aside = shown.aside
                    yield piece
            yield shown.finish()
        finally:
            self.messages = [*messages, *self._heard(reply)]
            self._replies += 1
            self.facts = Facts(
                tokens=len(reply),
                elapsed_s=time.perf_counter() - began_s,
                context_used=len(prompt.ids) + len(reply),
                context=context,
                ended=self._session.ended,
                forgotten=prompt.forgotten,
                was_cut=prompt.was_cut,
            )

    def follow(self, reply: Sequence[int]) -> list[int]:
        """The ids that come next without being drawn: a tool's answer."""
        return self._tools.answer(reply)

    def _heard(self, reply: list[int]) -> tuple[Message, ...]:
        """A reply as messages. A call at its end that was cut off from its answer is forgotten."""
        *before, last = messages_of_reply(reply, self.tokenizer)
        return (*before, replace(last, tool_calls=()))

    def _prompt(self, messages: Sequence[Message], limit: int) -> Prompt:
        everything = self._with_system(messages)
        left, was_cut = truncate_turns(everything, self.tokenizer, limit)
        return Prompt(render_prompt(left, self.tokenizer), len(everything) - len(left), was_cut)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        return [*([Message("system", self.system)] if self.system else []), *messages]


class Continuation(Conversation):
    """A base model's twin of a conversation: each message is the beginning of a text, and continued."""

    def rows(self) -> list[dict[str, Any]]:
        """The texts, as rows of JSON Lines."""
        openings, continued = self.messages[::2], self.messages[1::2]
        return [{"text": a.content + b.content} for a, b in zip(openings, continued, strict=True)]

    def follow(self, reply: Sequence[int]) -> list[int]:
        return []

    def _heard(self, reply: list[int]) -> tuple[Message, ...]:
        return (Message("assistant", self.tokenizer.decode(reply)),)

    def _prompt(self, messages: Sequence[Message], limit: int) -> Prompt:
        ids = self.tokenizer.encode(messages[-1].content)
        return Prompt([self.tokenizer.eot_id, *ids[-(limit - 1) :]], 0, was_cut=len(ids) > limit - 1)


def open_conversation(
    run_folder: Path,
    runtime: Runtime,
    on_damage: Callable[[str], None],
    system: str | None = None,
    python: bool = False,
    weights: Weights = "full",
    cache: CacheBits = "full",
) -> tuple[Conversation, str]:
    """A conversation with the last trained stage of a run, and that stage's name.

    With `python`, the model may run programs. Raises PilgrimError if the run has no model, or only a base
    model although a system prompt or Python is asked for, or if programs can't be run safely here.
    """
    stage = newest_stage(run_folder)
    tokenizer = load_tokenizer(run_folder)
    for asked, what in ((system is not None, "system prompt"), (python, "Python tool")):
        if asked and stage not in CHAT:
            raise SettingsError(
                f"{run_folder} has only a base model yet, which knows no {what}; leave it out, or "
                "let `pilgrim run` go on to sft"
            )
    tools = ToolUse(tokenizer, tools_with_python()) if python else None
    engine = load_engine(
        run_folder / stage,
        tokenizer,
        runtime,
        rows=1,
        on_damage=on_damage,
        record=True,
        lookup=True,
        weights=weights,
        cache=cache,
    )
    kind = Conversation if stage in CHAT else Continuation
    return kind(engine, tokenizer, system, tools), stage
