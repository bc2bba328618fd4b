"""Answers that know whether anybody still listens.

A stream is sent as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as
OpenAI does: lines of "data: {…}", an empty line behind each, and "data: [DONE]" at the end. What goes wrong
on the way is an error object in place of the next one, and then the stream ends. Events that have a `type`
are named by it, in a line of their own, and need no [DONE] behind them.

Whoever waits for a model for seconds may be gone before it has answered. So each answer is made beside a task
that waits for the connection's end; whichever comes first ends the other. A client that keeps its connection
but reads nothing, so that all buffers fill up, is given up after `stall_s` seconds.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from pilgrim.serve.asked import as_json

T = TypeVar("T")


class Gone(Exception):
    """The client has closed its connection."""


class EventStream(Response):
    """Sends what `events` yields, until it ends or the client goes; then `close` is called."""

    def __init__(
        self, events: AsyncGenerator[dict[str, Any], None], close: Callable[[], None], stall_s: float
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._events, self._close, self._stall_s = events, close, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_end_of(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()  # raises what it has raised
        except TimeoutError:
            pass  # it reads nothing
        finally:
            sending.cancel()
            gone.cancel()
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        name = ""
        async with aclosing(self._events) as events:
            async for event in events:
                name = f"event: {event['type']}\n" if "type" in event else ""
                await self._part(send, f"{name}data: {as_json(event)}\n\n")
            if not name:
                await self._part(send, "data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _part(self, send: Send, lines: str) -> None:
        async with asyncio.timeout(self._stall_s):
            await send({"type": "http.response.body", "body": lines.encode(), "more_body": True})


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled, and Gone raised, when the client goes. The body must be read."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_end_of(request.receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _end_of(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
