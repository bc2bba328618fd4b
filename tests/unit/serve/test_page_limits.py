"""The page's own paths: bodies that are too large, too slow or no JSON are refused as those of /v1 are."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Served, random_run, serving

from pilgrim.serve.history import LONGEST_MESSAGE, LONGEST_TITLE
from pilgrim.serve.settings import ServeSettings

BODIES = [("POST", "/api/chats"), ("PATCH", "/api/chats/1"), ("POST", "/api/chats/1/messages")]
BODIES += [("POST", "/api/import")]
LIMIT = 2 * 2**20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("runs")
    run = random_run(folder / "tiny", stages={"sft": (5,)})
    settings = ServeSettings(port=0, chats=folder / "chats.sqlite", max_body_bytes=LIMIT, stall_s=0.5)
    with serving({"tiny": run}, settings) as server:
        yield server


def told(served: Served, method: str, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    status, _, data = served.ask(method, path, body, headers)
    return status, json.loads(data)


@pytest.mark.parametrize(("method", "path"), BODIES)
def test_bodies_are_limited(served: Served, method: str, path: str) -> None:
    status, found = told(served, method, path, {"title": "x" * LIMIT})
    assert status == 413 and "--max-body-mb" in found["error"]["message"]
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((served.host, served.port)) as connection:
        connection.sendall(head.encode() + b"Content-Length: 100\r\n\r\n{")
        assert connection.recv(12) == b"HTTP/1.1 408"


@pytest.mark.parametrize(("method", "path"), BODIES)
def test_bodies_that_are_no_json_are_refused(served: Served, method: str, path: str) -> None:
    deep = b'{"settings": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for body in (b"", b"{", b"[]", b"null", b'{"title": "\xff"}', b'{"title": "\\ud800"}', deep):
        status, found = told(served, method, path, body)
        assert (status, found["error"]["type"]) == (400, "invalid_request_error")
    status, _, data = served.ask(method, path, b"{}", {"Content-Type": "text/plain"})
    assert status == 415 and json.loads(data)["error"]["type"] == "invalid_request_error"


def test_what_is_asked_for_is_limited(served: Served) -> None:
    chat = told(served, "POST", "/api/chats", {"title": "word " * 10_000})[1]
    assert len(chat["title"]) <= LONGEST_TITLE
    long = "x" * (LONGEST_MESSAGE + 1)
    status, found = told(
        served, "POST", f"/api/chats/{chat['id']}/messages", {"role": "user", "content": long}
    )
    assert status == 400 and "1,000,000 are the most" in found["error"]["message"]
    messages = [{"id": 1, "role": "user", "content": long}]
    exported = {"format": "pilgrim chats", "version": 1, "chats": [{"messages": messages}]}
    status, found = told(served, "POST", "/api/import", exported)
    assert status == 400 and "1,000,000 are the most" in found["error"]["message"]
    assert told(served, "GET", "/api/chats?search=" + "x" * 1001, None)[0] == 400
    assert told(served, "GET", f"/api/chats/{2**53 + 1}", None)[0] == 400
    for odd in ({"role": "system", "content": "x"}, {"role": "user", "content": 5}, {"role": "user"}):
        assert told(served, "POST", f"/api/chats/{chat['id']}/messages", odd)[0] == 400


def test_a_chat_comes_and_goes(served: Served) -> None:
    chat = told(served, "POST", "/api/chats", {"settings": {"temperature": 0.5}})[1]["id"]
    said: Any = {"role": "user", "content": "Hello", "parent": None, "about": {}}
    first = told(served, "POST", f"/api/chats/{chat}/messages", said)[1]["id"]
    status, found = told(served, "PATCH", f"/api/chats/{chat}", {"title": "New", "leaf": first})
    assert (status, found["title"], found["leaf"]) == (200, "New", first)
    exported = told(served, "GET", "/api/export", None)[1]
    assert told(served, "POST", "/api/import", exported) == (200, {"chats": len(exported["chats"])})
    assert served.ask("GET", "/api/export?rows=1")[0] == 200
    assert served.ask("DELETE", f"/api/chats/{chat}")[0] == 204
    assert told(served, "GET", f"/api/chats/{chat}", None)[0] == 404
