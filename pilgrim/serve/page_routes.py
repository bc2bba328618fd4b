"""What the chat page needs of the server besides the API that everyone uses: its files, and its chats.

    GET  /                       the page                      plain files of serve/page, nothing is built
    GET  /api/chats?search=…     chats, the last changed first
    POST /api/chats              a new one                     {"title", "settings"}
    GET  PATCH DELETE /api/chats/7                             PATCH: {"title", "settings", "leaf"}
    POST /api/chats/7/messages   one message more              {"role", "content", "parent", "about"}
    GET  /api/export             all chats; ?rows=1: as JSON Lines to train on
    POST /api/import             what was exported

The page asks models through /v1 like any other client. Here is only what concerns one person's own chats, so
these paths are not for other web pages: a browser says in `Origin` (or `Sec-Fetch-Site`) who asks, and a
foreign one is refused. Bodies are read and limited like those of /v1 (asked.py). The policy in
`Content-Security-Policy` lets the page load nothing from elsewhere and run no script that is not a file of
ours, whatever a model writes.
"""

import json
from asyncio import to_thread
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from pydantic import Field, RootModel

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.serve.asked import Body, read_body
from pilgrim.serve.history import Chats, NewMessage, NoSuchChat
from pilgrim.serve.refusals import Refusal
from pilgrim.serve.settings import ServeSettings

PAGE = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # a browser asks whether they have changed: files of two versions don't fit
    "Referrer-Policy": "no-referrer",
}

Number = Annotated[int, InPath(ge=1, le=2**53)]


class NewChat(Body):
    """Both may be left out: the first message of the user becomes the title."""

    title: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)


class ChatChanges(Body):
    """What is left out stays."""

    title: str | None = None
    settings: dict[str, Any] | None = None
    leaf: int | None = Field(None, ge=1, le=2**53)


class Said(Body):
    """A message to keep."""

    role: Literal["user", "assistant"]
    content: str
    parent: int | None = Field(None, ge=1, le=2**53)
    about: dict[str, Any] = Field(default_factory=dict)


class Exported(RootModel[dict[str, Any]]):
    """What was exported; `Chats.imported` looks at it."""


class _Files(StaticFiles):
    """The page's, all with its headers: index.html is among them, too."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI, settings: ServeSettings) -> None:
    """Serve the page at / and, unless `settings.chats` is None, keep its chats."""

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    app.include_router(_chat_routes(settings))
    app.mount("/page", _Files(directory=PAGE), name="page")


class _OwnRoute(APIRoute):
    """A path for our own page: others are refused before their bodies are read; what goes wrong is told."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def told(request: Request) -> Response:
            _refuse_foreign(request)
            try:
                return await handler(request)
            except NoSuchChat as error:
                raise Refusal(str(error), status=404) from error
            except DataError as error:
                raise Refusal(str(error)) from error
            except PilgrimError as error:  # the disk is full, the file is spoiled
                raise Refusal(str(error), status=500) from error

        return told


def _chat_routes(settings: ServeSettings) -> APIRouter:
    chats = Chats(settings.chats) if settings.chats else None
    limits = settings.max_body_bytes, settings.stall_s
    router = APIRouter(prefix="/api", include_in_schema=False, route_class=_OwnRoute)

    def kept() -> Chats:
        if chats is None:
            raise Refusal("this server keeps no chats; start it without --no-chats", status=404)
        return chats

    @router.get("/chats")
    async def listed(search: Annotated[str, Query(max_length=1000)] = "") -> list[dict[str, Any]]:
        store = kept()
        return await to_thread(lambda: store.listed(search))

    @router.post("/chats", status_code=201)
    async def new(request: Request) -> dict[str, Any]:
        store, body = kept(), await read_body(request, NewChat, *limits)
        return await to_thread(lambda: store.new(body.title, body.settings))

    @router.get("/chats/{chat}")
    async def read(chat: Number) -> dict[str, Any]:
        store = kept()
        return await to_thread(lambda: store.read(chat))

    @router.patch("/chats/{chat}")
    async def change(request: Request, chat: Number) -> dict[str, Any]:
        store, body = kept(), await read_body(request, ChatChanges, *limits)
        return await to_thread(lambda: store.change(chat, body.model_dump(exclude_none=True)))

    @router.delete("/chats/{chat}", status_code=204)
    async def delete(chat: Number) -> None:
        store = kept()
        await to_thread(lambda: store.delete(chat))

    @router.post("/chats/{chat}/messages", status_code=201)
    async def add(request: Request, chat: Number) -> dict[str, Any]:
        store, said = kept(), await read_body(request, Said, *limits)
        message = NewMessage(said.role, said.content, said.parent, said.about)
        return await to_thread(lambda: store.add(chat, message))

    @router.get("/export")
    async def export(rows: bool = False) -> Response:
        store = kept()
        return await to_thread(lambda: _rows_of(store) if rows else _all_of(store))

    @router.post("/import")
    async def take_in(request: Request) -> dict[str, int]:
        store, body = kept(), await read_body(request, Exported, *limits)
        return {"chats": await to_thread(lambda: store.imported(body.root))}

    return router


def _refuse_foreign(request: Request) -> None:
    """Raises Refusal for a request that a page of somebody else made a browser send."""
    origin, host = request.headers.get("origin"), request.headers.get("host")
    foreign = origin is not None and origin.partition("://")[2] != host
    if foreign or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Refusal(
            f"chats are for this server's own page, and not for {origin or 'another page'}", status=403
        )


def _rows_of(store: Chats) -> Response:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in store.training_rows())
    return _download(lines, "application/jsonl", "chats.jsonl")


def _all_of(store: Chats) -> Response:
    return _download(json.dumps(store.exported(), ensure_ascii=False), "application/json", "chats.json")


def _download(text: str, kind: str, name: str) -> Response:
    disposition = f'attachment; filename="{name}"'
    return Response(text.encode(), media_type=kind, headers={"Content-Disposition": disposition})
