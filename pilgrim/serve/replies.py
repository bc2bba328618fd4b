"""From the pieces of replies to JSON: what chat and completions have in common.

A reply is either waited for as a whole, or told as a stream of chunks. Both are made of the same pieces, and
go into the same envelope. What differs between the two endpoints is how a choice looks; they say so in a
`Form`. (Responses have an envelope and events of their own: responses.py.)
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from pilgrim.serve.asked import Asked, read_body
from pilgrim.serve.catalog import Loaded
from pilgrim.serve.driver import Ticket
from pilgrim.serve.events import EventStream, unless_gone
from pilgrim.serve.refusals import Refusal
from pilgrim.serve.settings import Office
from pilgrim.serve.writing import Piece, Ran, Told
from pilgrim.text.calls import Call
from pilgrim.text.tokenizer import Tokenizer

Json = dict[str, Any]
A = TypeVar("A", bound=Asked)


@dataclass
class Reply:
    """One choice, whole."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> list[Told]:
        return [token for piece in self.pieces for token in piece.tokens]

    @property
    def calls(self) -> list[Call]:
        return [call for piece in self.pieces for call in piece.calls]

    @property
    def ran(self) -> list[Ran]:
        return [ran for piece in self.pieces for ran in piece.ran]

    @property
    def finish(self) -> str:
        """Why it ended; one that was to have no tokens has used them all up."""
        return (self.pieces and self.pieces[-1].finish) or "length"

    @property
    def written(self) -> int:
        return self.pieces[-1].written if self.pieces else 0


class Form(Protocol):
    """How choices look at an endpoint."""

    kind: str
    chunk_kind: str

    def whole(self, index: int, reply: Reply) -> Json: ...

    def opening(self, index: int) -> Json | None:
        """The first chunk's choice, before anything is written."""

    def part(self, index: int, piece: Piece) -> Json: ...


@dataclass(frozen=True)
class Exchange:
    """A request that is being answered."""

    asked: Asked
    form: Form
    exact_model: str
    prompt_tokens: int
    choices: int
    ticket: Ticket | None  # None: nothing is to be written
    id: str = field(default_factory=lambda: f"req-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self, kind: str, choices: Sequence[Json], **more: Any) -> Json:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model}
        return {**head, "system_fingerprint": self.exact_model, "choices": list(choices), **more}

    def usage(self, replies: Sequence[Reply]) -> Json:
        written = sum(reply.written for reply in replies)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    async def pieces(self, replies: Sequence[Reply]) -> AsyncGenerator[tuple[int, Piece], None]:
        """Each piece with its choice's index; they are gathered in `replies`. Raises Refusal."""
        if self.ticket:
            number = {job: i for i, job in enumerate(self.ticket.jobs)}
            async for job, piece in self.ticket.pieces():
                replies[number[job]].pieces.append(piece)
                yield number[job], piece

    def close(self) -> None:
        if self.ticket:
            self.ticket.close()


async def served(
    request: Request, office: Office, kind: type[A], begin: Callable[[A, Loaded], Awaitable[Exchange]]
) -> Response:
    """The answer to a body of this `kind`, of which `begin` hands the jobs to the model. Raises Refusal."""
    settings = office.settings
    asked = await read_body(request, kind, settings.max_body_bytes, settings.stall_s)
    async with office.models.borrowed(asked.model) as model:
        exchange = await begin(asked, model)
    return await answer(request, office, exchange)


async def answer(
    request: Request,
    office: Office,
    exchange: Exchange,
    whole: Callable[[Office, Exchange], Coroutine[Any, Any, Json]] | None = None,
    stream: Callable[[Office, Exchange], AsyncGenerator[Json, None]] | None = None,
) -> Response:
    """The whole answer, or a stream of it, made by `whole` and `stream`; left out, by the exchange's form.

    Raises Refusal, and Gone if nobody waits for it any more.
    """
    if exchange.asked.stream:
        events = (stream or _stream)(office, exchange)
        return EventStream(events, exchange.close, office.settings.stall_s)
    try:
        return JSONResponse(await unless_gone(request, (whole or _whole)(office, exchange)))
    finally:
        exchange.close()


async def _whole(office: Office, exchange: Exchange) -> Json:
    replies = [Reply() for _ in range(exchange.choices)]
    async for _ in exchange.pieces(replies):
        pass
    log(office, exchange, replies)
    choices = [exchange.form.whole(i, reply) for i, reply in enumerate(replies)]
    return exchange.envelope(exchange.form.kind, choices, usage=exchange.usage(replies))


async def _stream(office: Office, exchange: Exchange) -> AsyncGenerator[Json, None]:
    form, replies = exchange.form, [Reply() for _ in range(exchange.choices)]
    usage: Json = {"usage": None} if exchange.asked.wants_usage else {}

    def chunk(choices: Sequence[Json], usage: Json = usage) -> Json:
        return exchange.envelope(form.chunk_kind, choices, **usage)

    try:
        for index in range(exchange.choices):
            if (choice := form.opening(index)) is not None:
                yield chunk([choice])
        async for index, piece in exchange.pieces(replies):
            if not piece.empty:
                yield chunk([form.part(index, piece)])
        if not exchange.ticket:
            yield chunk([form.part(i, Piece(finish="length")) for i in range(exchange.choices)])
        log(office, exchange, replies)
        if usage:
            yield chunk([], {"usage": exchange.usage(replies)})
    except Refusal as refusal:
        yield refusal.body


def log(office: Office, exchange: Exchange, replies: Sequence[Reply]) -> None:
    """Keeps what was asked and answered, if that is wanted."""
    office.log(
        {
            "time": exchange.created,
            "model": exchange.exact_model,
            "asked": exchange.asked.model_dump(exclude_none=True),
            "replies": [reply.text for reply in replies],
        }
    )


# Tokens -------------------------------------------------------------------------------------------


def spelled(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text; one that is a part of a character by its bytes, as OpenAI does."""
    data = tokenizer.decode_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def too_long(tokens: int | str, context: int, param: str) -> Refusal:
    """What OpenAI says to a prompt that leaves no room for a reply."""
    return Refusal(
        f"This model's maximum context length is {context} tokens, but the prompt has {tokens}; shorten it",
        param=param,
        code="context_length_exceeded",
    )
