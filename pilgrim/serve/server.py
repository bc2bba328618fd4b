"""`pilgrim serve`: models behind OpenAI's HTTP API, for whatever program already speaks it.

    client --HTTP--> uvicorn --> door.py: may it come in? --> FastAPI: which path?
        --> asked.py: is it well formed?   --> catalog.py: which model? loaded if it is not
        --> chats.py, completions.py, responses.py: prompt and dials --> driver.py: the engine's thread
        --> writing.py: tokens to pieces   --> replies.py, events.py: JSON, whole or as a stream

Everything runs in one process. By itself the server is reached from this machine only, and asks for no key.
Bound to another address it wants one. Whatever is wrong is said in OpenAI's error objects (refusals.py). What
is said is written down nowhere, unless a person asks for that.

When the server is stopped, replies that are being written end with an error, and the engines' threads with
them.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pilgrim.core.errors import PilgrimError
from pilgrim.serve.asked import AskedChat, AskedCompletion
from pilgrim.serve.catalog import Entry, Models
from pilgrim.serve.chats import chat
from pilgrim.serve.completions import complete
from pilgrim.serve.door import Door
from pilgrim.serve.events import Gone
from pilgrim.serve.items import AskedResponse
from pilgrim.serve.openapi import ResponseAnswer, description_of, gives_answers, refusals, takes
from pilgrim.serve.page_routes import add_page
from pilgrim.serve.refusals import Refusal, on_refusal, our_fault
from pilgrim.serve.responses import respond
from pilgrim.serve.settings import Office, ServeSettings

GRACE_S = 5  # for connections to end when the server stops
BACKLOG = 2048  # connections that wait to be taken up


def create_app(models: Models, settings: ServeSettings) -> FastAPI:
    """The application, for uvicorn or any other ASGI server."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        models.stop()
        await asyncio.to_thread(models.join)

    app = FastAPI(
        title="pilgrim",
        version=version("pilgrim"),
        description="Models of pilgrim's runs behind OpenAI's API.",
        lifespan=life,
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
    )
    _add_models(app, models)
    _add_writing(app, Office(models, settings))
    _add_looking(app, models)
    add_page(app, settings)
    _add_refusals(app)
    app.openapi = description_of(app)  # type: ignore[method-assign]
    paths = {path for route in app.routes if (path := getattr(route, "path", None))}
    app.add_middleware(Door, settings=settings, metrics=models.metrics, paths=paths)
    return app


# Paths --------------------------------------------------------------------------------------------


def _add_models(app: FastAPI, models: Models) -> None:
    @app.get("/v1/models", responses=refusals(400, 404, 408, 413, 415, 429))
    async def list_models() -> dict[str, Any]:
        """What can be asked for."""
        entries = await asyncio.to_thread(models.listed)
        return {"object": "list", "data": [_model(name, entry, models) for name, entry in entries.items()]}

    @app.get("/v1/models/{name:path}", responses=refusals(400, 408, 413, 415, 429))
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        return _model(name, models.find(name), models)


def _model(name: str, entry: Entry, models: Models) -> dict[str, Any]:
    """OpenAI's four fields, and ours: which checkpoint it is, whether it chats, whether it is in memory."""
    theirs = {"id": name, "object": "model", "created": entry.saved_s, "owned_by": "pilgrim"}
    ours = {"exact": entry.id, "stage": entry.stage, "step": entry.step, "chats": entry.chats}
    return {**theirs, **ours, "loaded": models.has_loaded(entry)}


def _add_writing(app: FastAPI, office: Office) -> None:
    @app.post("/v1/chat/completions", responses=gives_answers(), openapi_extra=takes(AskedChat))
    async def chat_completions(request: Request) -> Response:
        """Answer the last message of a conversation."""
        return await chat(request, office)

    @app.post("/v1/completions", responses=gives_answers(), openapi_extra=takes(AskedCompletion))
    async def completions(request: Request) -> Response:
        """Continue a text."""
        return await complete(request, office)

    @app.post("/v1/responses", responses=gives_answers(ResponseAnswer), openapi_extra=takes(AskedResponse))
    async def responses(request: Request) -> Response:
        """Answer the last item of a conversation."""
        return await respond(request, office)


def _add_looking(app: FastAPI, models: Models) -> None:
    @app.get("/health", responses=refusals(400, 401, 404, 408, 413, 415, 429))
    async def health() -> dict[str, str]:
        """Whether it is there."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses=refusals(400, 404, 408, 413, 415, 429))
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(models.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _add_refusals(app: FastAPI) -> None:
    async def on_http(_: Request, error: Exception) -> JSONResponse:
        """No such path, or not by this method."""
        assert isinstance(error, HTTPException)
        response = Refusal(
            f"{error.detail}; /openapi.json has all paths", status=error.status_code
        ).response()
        response.headers.update(error.headers or {})
        return response

    async def on_invalid(_: Request, error: Exception) -> JSONResponse:
        """A body or an address of the page's own paths."""
        assert isinstance(error, RequestValidationError)
        found = error.errors()[0]
        place = ".".join(map(str, found["loc"])).encode(errors="replace").decode()
        return Refusal(f"{place}: {found['msg']}; correct it", param=place).response()

    async def on_bug(_: Request, error: Exception) -> JSONResponse:
        return our_fault().response()  # what called this raises the error again, for the terminal

    async def on_gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_bug)
    for gone in (Gone, ClientDisconnect):
        app.add_exception_handler(gone, on_gone)


# Running it ---------------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """uvicorn's, which tells the models first when it has to stop: else it would wait for their replies."""

    def __init__(self, models: Models, settings: ServeSettings) -> None:
        app = create_app(models, settings)
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._models = models

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._models.stop()
        await super().shutdown(sockets)


def bound(settings: ServeSettings) -> socket.socket:
    """A socket that listens at the settings' address. Raises PilgrimError if that can't be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:  # the last of a name that no host can have
        raise PilgrimError(
            f"{settings.host}:{settings.port} can't be listened at ({error}); give another --host or --port"
        ) from error


def serve(models: Models, settings: ServeSettings, say: Callable[[str], None]) -> None:
    """Serves until it is stopped. `say` is told where. Raises PilgrimError."""
    door = bound(settings)
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{name}:{door.getsockname()[1]}"
    say(f"{', '.join(models.runs)}: chat at {address}, or ask {address}/v1 (Ctrl-C stops)")
    Server(models, settings).run([door])
