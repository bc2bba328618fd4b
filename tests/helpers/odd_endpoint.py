"""A server that speaks OpenAI's language, and behaves badly on purpose: for tests of `pilgrim synth`.

`odd_endpoint(script)` answers each request as `script` says, which is given the request's body and how many
requests came before it: with a text, or with a `Reply` that has a status, headers, a broken body or a broken
connection. All requests are kept, to be looked at.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What goes over the wire. `body` None: a proper completion of `text`."""

    text: str | None = "Yes."
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    usage: bool = True
    hang_up: bool = False  # in the middle of the body
    until: threading.Event | None = None  # it is held back until then


Script = Callable[[dict[str, Any], int], "str | Reply"]


@dataclass
class OddEndpoint:
    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answered: int = 0  # proper completions that were sent


def words(request: dict[str, Any], count: int = 12) -> str:
    """A sentence that depends on the request, and on nothing else."""
    digest = sha256(repr((request["messages"], request.get("seed"))).encode()).hexdigest()
    return " ".join(digest[i : i + 3] for i in range(0, 3 * count, 3)) + "."


def good(request: dict[str, Any], number: int) -> str:
    return words(request)


def completion(request: dict[str, Any], reply: Reply) -> bytes:
    tree: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": reply.text},
                "finish_reason": reply.finish,
            }
        ],
    }
    if reply.usage:
        asked = sum(len(message["content"].split()) for message in request["messages"])
        tree["usage"] = {"prompt_tokens": asked, "completion_tokens": len((reply.text or "").split())}
    return json.dumps(tree).encode()


@contextmanager
def odd_endpoint(script: Script) -> Iterator[OddEndpoint]:
    """The server, on a free port of this machine, as long as the block lasts."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(found.requests)
                found.requests.append(request)
                found.headers.append(dict(self.headers))
            said = script(request, number)
            reply = Reply(said) if isinstance(said, str) else said
            if reply.until is not None:
                reply.until.wait(30)
            body = completion(request, reply) if reply.body is None else reply.body
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if reply.hang_up else body)
            except OSError:
                self.close_connection = True  # whoever asked has gone
                return
            if reply.hang_up:
                self.close_connection = True
            elif reply.status == 200 and reply.body is None:
                with lock:
                    found.answered += 1

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = OddEndpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
