"""Who may come in: looked at before anything else is, for every request.

A server for this machine alone answers only when it is asked by this machine's own names. Else a web page
could let its name point to 127.0.0.1, and read in the visitor's browser what it likes (DNS rebinding). With
an API key everybody has to show it, but for /health.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pilgrim.serve.metrics import Metrics
from pilgrim.serve.refusals import Refusal
from pilgrim.serve.settings import LOOPBACK, ServeSettings

OPEN = {"/", "/health"}  # and the page's files, with which it can ask a person for the key


class Door:
    """Wraps the application; refuses, and counts who was answered what."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, paths: set[str]) -> None:
        """`paths` are counted by their names, all others together."""
        self._app, self._settings, self._metrics, self._paths = app, settings, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        endpoint = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(endpoint, str(message["status"])).inc()
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"])
        await (refusal.response() if refusal else self._app)(scope, receive, counted)

    def _refusal(self, headers: Headers, path: str) -> Refusal | None:
        if self._settings.local and _name_in(headers.get("host", "")) not in LOOPBACK:
            return Refusal(
                "this server is for its own machine, and is asked by another name; ask it as localhost, or "
                "start it with --host and an API key",
                status=403,
            )
        scheme, _, key = headers.get("authorization", "").partition(" ")
        open_to_all = path in OPEN or path.startswith("/page/")
        if not open_to_all and not self._settings.opened_by(key if scheme.lower() == "bearer" else ""):
            return Refusal(
                "the API key is missing or wrong; send the header Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
            )
        return None


def _name_in(host: str) -> str:
    """localhost:8000 -> localhost, [::1]:8000 -> ::1"""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
