"""/v1/responses: OpenAI's newer shape of a chat, on the same machinery (items.py says how it is asked).

A response has a list of items as its output: a message with the text, then a call if one was made. A stream
of it is a list of events that are numbered and typed, and tell each item from its beginning to its end:

    response.created  response.in_progress
    response.output_item.added  response.content_part.added
    response.output_text.delta …  response.output_text.done
    response.content_part.done  response.output_item.done
    response.completed, or response.incomplete where max_output_tokens or the context ended it

What is not streamed is the response in the last of these events.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from uuid import uuid4

from fastapi import Request
from fastapi.responses import Response

from pilgrim.serve.asked import read_body
from pilgrim.serve.chats import begin
from pilgrim.serve.items import AskedResponse
from pilgrim.serve.refusals import Refusal
from pilgrim.serve.replies import Exchange, Json, Reply, answer, log
from pilgrim.serve.settings import Office
from pilgrim.serve.writing import Piece
from pilgrim.text.calls import Call

# A refusal names what a chat calls a parameter; here they are called otherwise.
NAMES = {"messages": "input", "response_format": "text.format"}


async def respond(request: Request, office: Office) -> Response:
    """Raises Refusal."""
    settings = office.settings
    asked = await read_body(request, AskedResponse, settings.max_body_bytes, settings.stall_s)
    with _in_its_words():
        chat = asked.as_chat()
        async with office.models.borrowed(chat.model) as model:
            exchange = await begin(chat, model)
        return await answer(request, office, exchange, partial(_whole, asked), partial(_stream, asked))


@contextmanager
def _in_its_words() -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        if refusal.param in NAMES:
            refusal.message = refusal.message.replace(refusal.param, NAMES[refusal.param])
            refusal.param = NAMES[refusal.param]
        raise


async def _whole(asked: AskedResponse, office: Office, exchange: Exchange) -> Json:
    async for event in _events(Telling(asked, exchange), office):
        last = event
    response: Json = last["response"]
    return response


async def _stream(asked: AskedResponse, office: Office, exchange: Exchange) -> AsyncGenerator[Json, None]:
    telling = Telling(asked, exchange)
    try:
        with _in_its_words():
            async for event in _events(telling, office):
                yield event
    except Refusal as refusal:
        code = "server_error" if refusal.status >= 500 else "invalid_prompt"
        error = {"code": code, "message": refusal.message}
        yield telling.event("failed", response=telling.response("failed", error=error))


async def _events(telling: "Telling", office: Office) -> AsyncGenerator[Json, None]:
    """Raises Refusal."""
    exchange, reply = telling.exchange, Reply()
    for kind in ("created", "in_progress"):
        yield telling.event(kind, response=telling.response("in_progress"))
    async for _, piece in exchange.pieces([reply]):
        for event in telling.told(piece):
            yield event
    log(office, exchange, [reply])
    status = "incomplete" if reply.finish == "length" else "completed"
    for event in telling.end_of_message(status):
        yield event
    for call in reply.calls:
        for event in telling.call(call):
            yield event
    details = {"reason": "max_output_tokens"} if status == "incomplete" else None
    response = telling.response(status, usage=_usage(exchange, reply), incomplete_details=details)
    yield telling.event(status, response=response)


def _usage(exchange: Exchange, reply: Reply) -> Json:
    """The details are about prices and hidden thoughts, and there are none of these here."""
    usage = exchange.usage([reply])
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }


class Telling:
    """A response that is being told: its items so far, and the events that tell them."""

    def __init__(self, asked: AskedResponse, exchange: Exchange) -> None:
        self.asked, self.exchange = asked, exchange
        self._id, self._message_id = f"resp_{uuid4().hex}", f"msg_{uuid4().hex}"
        self._output: list[Json] = []
        self._text: str | None = None  # of the message, which begins with its first letter
        self._numbers = count()

    def event(self, kind: str, **what: object) -> Json:
        return {"type": f"response.{kind}", "sequence_number": next(self._numbers), **what}

    def response(
        self,
        status: str,
        usage: Json | None = None,
        incomplete_details: Json | None = None,
        error: Json | None = None,
    ) -> Json:
        """The whole response, as far as it is."""
        asked, chosen = self.asked, self.asked.tool_choice or "auto"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self.exchange.created,
            "status": status,
            "error": error,
            "incomplete_details": incomplete_details,
            "model": asked.model,
            "system_fingerprint": self.exchange.exact_model,
            "output": list(self._output),
            "usage": usage,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": False,  # one at a time
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": asked.form.model_dump(by_alias=True)},
            "tool_choice": chosen if isinstance(chosen, str) else chosen.model_dump(),
            "tools": [tool.model_dump() for tool in asked.tools or ()],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
        }

    def told(self, piece: Piece) -> Iterator[Json]:
        """Its text. Even a reply that says nothing is a message, unless it is a call."""
        if self._text is None and (piece.text or (piece.finish and not piece.calls)):
            self._text = ""
            yield self._item("added", self._message("in_progress", []))
            yield self._of_text("content_part.added", part=self._part())
        if self._text is not None and piece.text:
            self._text += piece.text
            yield self._of_text("output_text.delta", delta=piece.text, logprobs=[])

    def end_of_message(self, status: str) -> Iterator[Json]:
        if self._text is not None:
            yield self._of_text("output_text.done", text=self._text, logprobs=[])
            yield self._of_text("content_part.done", part=self._part())
            yield self._done(self._message(status, [self._part()]))

    def call(self, call: Call) -> Iterator[Json]:
        item = {
            "id": f"fc_{uuid4().hex}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
        }
        place = {"item_id": item["id"], "output_index": len(self._output)}
        kind = "function_call_arguments"
        yield self._item("added", item)
        yield self.event(f"{kind}.delta", **place, delta=call.arguments)
        yield self.event(f"{kind}.done", **place, arguments=call.arguments)
        yield self._done(item | {"status": "completed", "arguments": call.arguments})

    def _message(self, status: str, content: list[Json]) -> Json:
        head = {"id": self._message_id, "type": "message", "role": "assistant"}
        return {**head, "status": status, "content": content}

    def _part(self) -> Json:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": []}

    def _of_text(self, kind: str, **what: object) -> Json:
        place = {"item_id": self._message_id, "output_index": len(self._output), "content_index": 0}
        return self.event(kind, **place, **what)

    def _item(self, kind: str, item: Json) -> Json:
        return self.event(f"output_item.{kind}", output_index=len(self._output), item=item)

    def _done(self, item: Json) -> Json:
        event = self._item("done", item)
        self._output.append(item)
        return event
