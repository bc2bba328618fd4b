"""Many streams at once against `pilgrim serve`: is anything lost, and how long does everybody wait?

    python benchmarks/serve.py pocket

A server is started on a free port, and N clients ask it for completions as streams, one after the other,
until the time is over. Every stream is checked: each token has its place in the text (`text_offset`), which
must be where the text has come to, so nothing is missing, doubled or out of order; the tokens are as many as
the usage says; a finish reason, the usage and [DONE] come, in that order. At the end the server's own
counters must tell as many tokens as the clients have counted, and no place may be taken.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilgrim.cli.base import find_run

OPENINGS = ("Once upon a time", "The little dog", "Lily and Tom went to", "One day, a bird", "In the garden")


@dataclass
class Tally:
    """What the clients have seen."""

    streams: int = 0
    tokens: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)  # from asking to the first token
    between_s: list[float] = field(default_factory=list)  # from one event to the next
    whole_s: list[float] = field(default_factory=list)


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", nargs="?", default="pocket")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rows", type=int, default=64, help="replies that the server writes together")
    options = parser.parse_args()
    folder = find_run(options.run)
    server, port = start_server(folder, options.rows, options.streams)
    try:
        await one(port, folder.name, random.Random(0), Tally())  # loads the model
        before, tally = counters(port), Tally()
        began = time.perf_counter()
        until = began + options.seconds
        await asyncio.gather(
            *(client(port, folder.name, number, until, tally) for number in range(options.streams))
        )
        elapsed_s = time.perf_counter() - began
        report(options.streams, tally, before, counters(port), elapsed_s)
    finally:
        server.terminate()
        server.wait()
    sys.exit(bool(tally.wrong))


def start_server(folder: Path, rows: int, streams: int) -> tuple[subprocess.Popen[str], int]:
    """The server, and the port that it tells."""
    command = [sys.executable, "-m", "pilgrim", "serve", str(folder), "--port", "0"]
    command += ["--rows", str(rows), "--queue", str(streams)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    told = server.stdout.readline()
    return server, int(told.rpartition(":")[2].partition("/")[0])


async def client(port: int, model: str, number: int, until: float, tally: Tally) -> None:
    """One stream after the other."""
    dice = random.Random(number + 1)
    while time.perf_counter() < until:
        await one(port, model, dice, tally)


async def one(port: int, model: str, dice: random.Random, tally: Tally) -> None:
    """A stream, checked."""
    asked = {
        "model": model,
        "prompt": dice.choice(OPENINGS),
        "max_tokens": dice.randint(8, 96),
        "seed": dice.randrange(2**32),
        "logprobs": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    text, tokens, finish, usage, last = "", 0, None, None, began
    async for event in events(port, asked):
        now = time.perf_counter()
        if event == "[DONE]":
            break
        chunk: dict[str, Any] = json.loads(event)
        if "error" in chunk:
            tally.wrong.append(chunk["error"]["message"])
            return
        if chunk["usage"]:
            usage = chunk["usage"]["completion_tokens"]
            continue
        (choice,) = chunk["choices"]
        if finish is not None:
            tally.wrong.append("a chunk behind the last")
        for offset in choice["logprobs"]["text_offset"]:
            # A token that is a part of a character stands where the character does.
            if offset > len(text) + len(choice["text"]) or offset < len(text) - 1:
                tally.wrong.append(f"a token at {offset} where the text has come to {len(text)}")
        tokens += len(choice["logprobs"]["tokens"])
        text += choice["text"]
        finish = choice["finish_reason"]
        (tally.between_s if last > began else tally.first_s).append(now - last)
        last = now
    else:
        tally.wrong.append("a stream without [DONE]")
    if finish is None or usage != tokens:
        tally.wrong.append(f"{tokens} tokens told, {usage} counted, finish {finish}")
    tally.streams += 1
    tally.tokens += usage or 0
    tally.whole_s.append(time.perf_counter() - began)


async def events(port: int, asked: dict[str, Any]) -> AsyncIterator[str]:
    """The data of each event. Lines that only divide the body into chunks are passed over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\nContent-Type: application/json\r\n\r\n" + body)
    try:
        async for line in reader:
            if line.startswith(b"data: "):
                yield line[6:].decode().strip()
            elif line.startswith(b'{"error"'):
                yield line.decode().strip()
    finally:
        writer.close()


def counters(port: int) -> dict[str, float]:
    """The server's, by name, over all models."""
    found: dict[str, float] = {}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            if not line.startswith("#"):
                found[name] = found.get(name, 0) + float(value)
    return found


def report(
    streams: int, tally: Tally, before: dict[str, float], after: dict[str, float], elapsed_s: float
) -> None:
    counted = after["pilgrim_reply_tokens_total"] - before["pilgrim_reply_tokens_total"]
    if counted != tally.tokens:
        tally.wrong.append(f"the server counted {counted:.0f} tokens, the clients {tally.tokens}")
    if after["pilgrim_replies_open"]:
        tally.wrong.append(f"{after['pilgrim_replies_open']:.0f} places are still taken")
    print(f"{streams} clients, {elapsed_s:.1f} s: {tally.streams} streams, {tally.tokens} tokens")
    print(f"{tally.tokens / elapsed_s:.0f} tokens a second")
    for what, seconds in (
        ("to the first token", tally.first_s),
        ("between events", tally.between_s),
        ("a whole stream", tally.whole_s),
    ):
        seconds.sort()
        shares = ", ".join(f"p{p}: {1000 * seconds[len(seconds) * p // 100]:.0f} ms" for p in (50, 95, 99))
        print(f"{what}: {shares}")
    print(f"lost, doubled or out of order: {len(tally.wrong)}")
    for sentence in tally.wrong[:10]:
        print(f"  {sentence}")


if __name__ == "__main__":
    asyncio.run(main())
