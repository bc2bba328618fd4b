"""What /openapi.json says: which bodies are taken, and how answers look.

FastAPI would describe and check bodies by itself, but it reads them without a limit and refuses them in a
shape of its own. So handlers read bodies themselves (asked.py), and the description is put together here.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pilgrim.serve.asked import AskedChat, AskedCompletion, Body
from pilgrim.serve.items import AskedResponse

SCHEMAS = "#/components/schemas/"
REFUSALS = {
    400: "the request can't be served as it is",
    401: "no API key, or a wrong one",
    403: "asked by a name that is not this machine's",
    404: "no such model",
    408: "the body did not come in time",
    413: "the body is too large",
    415: "the body is not JSON",
    429: "all places are taken; Retry-After says when to come again",
    500: "an error of the server",
    503: "the server is being stopped",
}


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetails


class Answer(BaseModel):
    """A chat completion or a text completion; OpenAI's reference describes each field."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[dict[str, Any]]
    usage: dict[str, int]


class ResponseAnswer(BaseModel):
    """A response; OpenAI's reference describes each field."""

    id: str
    object: str
    created_at: int
    status: str
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    model: str
    system_fingerprint: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


def refusals(*but: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a path that are errors."""
    return {
        status: {"model": ErrorBody, "description": what}
        for status, what in REFUSALS.items()
        if status not in but
    }


def takes(kind: type[Body]) -> dict[str, Any]:
    """The description of a path that takes such a body."""
    content = {"application/json": {"schema": {"$ref": SCHEMAS + kind.__name__}}}
    return {"requestBody": {"required": True, "content": content}}


def gives_answers(kind: type[BaseModel] = Answer) -> dict[int | str, dict[str, Any]]:
    """The responses of a path that has a model write."""
    stream: dict[str, Any] = {"text/event-stream": {}}
    fine = {"model": kind, "description": "whole, or with stream = true as events", "content": stream}
    return {200: fine, **refusals()}


def description_of(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """What `app.openapi` is to be."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            _, bodies = models_json_schema(
                [(kind, "validation") for kind in (AskedChat, AskedCompletion, AskedResponse)],
                ref_template=SCHEMAS + "{model}",
            )
            schemas = app.openapi_schema.setdefault("components", {}).setdefault("schemas", {})
            schemas |= bodies["$defs"]
            schemes = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema["components"]["securitySchemes"] = schemes
            app.openapi_schema["security"] = [{"key": []}, {}]
        return app.openapi_schema

    return describe
