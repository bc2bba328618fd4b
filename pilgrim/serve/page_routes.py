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
foreign one is refused. The policy in `Content-Security-Policy` lets the page load nothing from elsewhere and
run no script that is not a file of ours, whatever a model writes.
"""

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.serve.history import Chats, NewMessage, NoSuchChat
from pilgrim.serve.refusals import Refusal

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
LONGEST_TEXT = 1_000_000  # characters of a message

Number = Annotated[int, InPath(ge=1, le=2**53)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewChat(_Body):
    """Both may be left out: the first message of the user becomes the title."""

    title: str = Field("", max_length=LONGEST_TEXT)
    settings: dict[str, Any] = Field(default_factory=dict)


class ChatChanges(_Body):
    """What is left out stays."""

    title: str | None = Field(None, max_length=LONGEST_TEXT)
    settings: dict[str, Any] | None = None
    leaf: int | None = Field(None, ge=1, le=2**53)


class Said(_Body):
    """A message to keep."""

    role: Literal["user", "assistant"]
    content: str = Field(max_length=LONGEST_TEXT)
    parent: int | None = Field(None, ge=1, le=2**53)
    about: dict[str, Any] = Field(default_factory=dict)


class _Files(StaticFiles):
    """The page's, all with its headers: index.html is among them, too."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI, chats: Chats | None) -> None:
    """Serve the page at / and, unless `chats` is None, keep its chats."""

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    app.include_router(_chat_routes(chats))
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


def _chat_routes(chats: Chats | None) -> APIRouter:
    router = APIRouter(prefix="/api", include_in_schema=False, route_class=_OwnRoute)

    def kept() -> Chats:
        if chats is None:
            raise Refusal("this server keeps no chats; start it without --no-chats", status=404)
        return chats

    @router.get("/chats")
    def listed(search: Annotated[str, Query(max_length=1000)] = "") -> list[dict[str, Any]]:
        return kept().listed(search)

    @router.post("/chats", status_code=201)
    def new(body: NewChat) -> dict[str, Any]:
        return kept().new(body.title, body.settings)

    @router.get("/chats/{chat}")
    def read(chat: Number) -> dict[str, Any]:
        return kept().read(chat)

    @router.patch("/chats/{chat}")
    def change(chat: Number, body: ChatChanges) -> dict[str, Any]:
        return kept().change(chat, body.model_dump(exclude_none=True))

    @router.delete("/chats/{chat}", status_code=204)
    def delete(chat: Number) -> None:
        kept().delete(chat)

    @router.post("/chats/{chat}/messages", status_code=201)
    def add(chat: Number, body: Said) -> dict[str, Any]:
        return kept().add(chat, NewMessage(body.role, body.content, body.parent, body.about))

    @router.get("/export")
    def export(rows: bool = False) -> Response:
        if rows:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept().training_rows())
            return _download(lines, "application/jsonl", "chats.jsonl")
        return _download(json.dumps(kept().exported(), ensure_ascii=False), "application/json", "chats.json")

    @router.post("/import")
    def take_in(data: dict[str, Any]) -> dict[str, int]:
        return {"chats": kept().imported(data)}

    return router


def _refuse_foreign(request: Request) -> None:
    """Raises Refusal for a request that a page of somebody else made a browser send."""
    origin, host = request.headers.get("origin"), request.headers.get("host")
    foreign = origin is not None and origin.partition("://")[2] != host
    if foreign or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Refusal(
            f"chats are for this server's own page, and not for {origin or 'another page'}", status=403
        )


def _download(text: str, kind: str, name: str) -> Response:
    disposition = f'attachment; filename="{name}"'
    return Response(text.encode(), media_type=kind, headers={"Content-Disposition": disposition})
