"""A model that was trained here as the writer: the engine, asked as if it were a server.

Every conversation that waits for a reply makes a step of the engine when it is its turn, and a step writes a
token for all of them. So they are written together, as many as the engine has rows, with nothing to set up.
A reply depends on its seed and its prompt, and not on what is written beside it (in fp32).

No key, no price, and nothing leaves the machine.
"""

import asyncio
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.infer.engine import Engine
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.tools import ToolUse
from pilgrim.synth.answers import Answer, Tokens, Unanswerable, Wire
from pilgrim.synth.settings import RunSettings
from pilgrim.text.chat import messages_from_row, messages_of_reply, render_prompt, row_of
from pilgrim.text.tokenizer import Tokenizer


class OwnRun:
    """A `Writer`."""

    tries, wait_s, price = 1, 0.0, (0.0, 0.0)

    def __init__(
        self, settings: RunSettings, engine: Engine, tokenizer: Tokenizer, name: str, weights: str
    ) -> None:
        """`name` says whose weights, for people: run, stage, step. `weights` is their hash: a run that was
        trained again by the same name is another model, and what the first one said is no answer of it."""
        self.settings, self.name, self.weights = settings, name, weights
        self.where = f"run: {settings.path}"
        self.concurrency = settings.rows
        self._engine, self._tokenizer = engine, tokenizer
        self._tools = ToolUse(tokenizer) if settings.calculator else None

    def most(self, messages: list[Wire]) -> Tokens:
        """The context is the limit."""
        return Tokens(self._engine.config.context, self.settings.max_tokens)

    def body(self, messages: list[Wire], seed: int) -> dict[str, Any]:
        dials = self.settings.model_dump(exclude={"path", "rows"})
        return {"model": self.name, "weights": self.weights, "messages": messages, "seed": seed, **dials}

    async def reply(self, messages: list[Wire], seed: int) -> Answer:
        settings, tokenizer = self.settings, self._tokenizer
        sampling = Sampling(
            temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens, seed=seed
        )
        try:
            prompt = render_prompt(messages_from_row({"messages": messages}, "prompt"), tokenizer)
            request = self._engine.submit(
                prompt,
                sampling,
                (tokenizer.im_end_id, tokenizer.eot_id),
                follow=self._tools.answer if self._tools else None,
            )
        except DataError as error:
            raise Unanswerable(str(error)) from None
        try:
            while not request.over:
                await asyncio.sleep(0)  # the others' turn: to ask first, and then to make a step
                if not request.over:
                    self._engine.step()
            request.complain()
        finally:
            self._engine.cancel(request)
        return answer_of(request.ids, request.ended, len(prompt), tokenizer)

    async def close(self) -> None:
        """There is nothing to close."""


def answer_of(ids: list[int], ended: bool, read: int, tokenizer: Tokenizer) -> Answer:
    """What the engine wrote behind a prompt of `read` tokens; calls of tools become messages of their own."""
    messages: list[Wire] = row_of(messages_of_reply(ids, tokenizer))["messages"]
    return Answer(tokenizer.decode(ids), messages, not ended, Tokens(read, len(ids)))
