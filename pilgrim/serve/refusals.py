"""What the server says when it can't do what was asked: OpenAI's error object, with the right status.

    {"error": {"message": "...", "type": "invalid_request_error", "param": "temperature", "code": null}}

Clients look at the status first (400: mend the request, 401: who are you, 404: no such model, 413: too large,
429: come again later, 5xx: not your fault), then at `code` and `param`; the message is for people, and has
place, value and cure like all our errors. Whatever else goes wrong is a bug of ours: its traceback goes to
the server's terminal, and the client learns no more than that.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from pilgrim.core.errors import PilgrimError

LONGEST_QUOTE = 80  # characters of a bad value that are quoted back

# Pydantic names the branch of a union in the place of an error, which no client has heard of.
_BRANCH = re.compile(r"str|int|float|bool|[A-Z]\w*|.*\[.*")


class Refusal(Exception):
    """A request that is not served; becomes an error object wherever it is raised."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }

    def response(self) -> JSONResponse:
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        return JSONResponse(self.body, self.status, headers)


def our_fault() -> Refusal:
    return Refusal("the server met an error of its own; its terminal says more", status=500)


def stopping() -> Refusal:
    return Refusal("the server is being stopped; ask again when it is back", status=503, retry_after_s=5)


@contextmanager
def blamed_on(param: str | None) -> Iterator[None]:
    """Within, what a person can mend is the client's to mend: 400, naming `param`."""
    try:
        yield
    except PilgrimError as error:
        raise Refusal(str(error), param=param) from error


def of_invalid(error: ValidationError) -> Refusal:
    """What is wrong with a body, in a sentence."""
    every = error.errors(include_url=False, include_context=False)
    found = max(every, key=lambda each: len(each["loc"]))  # the deepest knows best what was meant
    if found["type"] == "json_invalid":
        return Refusal(f"the body is no JSON: {found['msg'].removeprefix('Invalid JSON: ')}; send an object")
    place = _place(found["loc"])
    if found["type"] == "extra_forbidden":  # the client's own word, which may look like a branch of a union
        place = ".".join(filter(None, [_place(found["loc"][:-1]), str(found["loc"][-1])[:LONGEST_QUOTE]]))
    if not place:
        return Refusal(f"the body must be a JSON object: {found['msg']}")
    if found["type"] == "extra_forbidden":
        what = f"{place} is no parameter that this server has; leave it out"
        return Refusal(what, param=place, code="unknown_parameter")
    if found["type"] == "missing":
        return Refusal(f"{place} is missing; give it", param=place, code="missing_required_parameter")
    return Refusal(f"{place}{_quoted(found['input'])}: {found['msg']}", param=place, code="invalid_value")


def _place(loc: Sequence[int | str]) -> str:
    """("messages", 0, "content", "str") -> messages.0.content"""
    named = [str(part) for part in loc if isinstance(part, int) or not _BRANCH.fullmatch(part)]
    return ".".join(named)


def _quoted(value: Any) -> str:
    """What was given, if it is short and simple."""
    if not isinstance(value, str | int | float | bool):
        return ""
    text = ascii(value)
    return f" = {text}" if len(text) <= LONGEST_QUOTE else ""


async def on_refusal(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return error.response()
