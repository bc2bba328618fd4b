"""Many clients at once: those who go, those who don't read, those who come too late, and the end."""

import asyncio
import http.client
import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import Served, random_run, serving

from pilgrim.serve.settings import ServeSettings

LONG = 60_000  # tokens of context: nobody waits for the end of that
ENDLESS: dict[str, Any] = {
    "model": "tiny", "prompt": "x", "temperature": 0, "max_tokens": LONG, "logit_bias": {"90": 100}
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return random_run(folder, LONG, {"pretrain": (1, 2), "sft": (5,)})


@pytest.fixture
def served(run: Path) -> Iterator[Served]:
    """A server that writes one reply at a time, and lets nobody wait."""
    with serving({"tiny": run}, rows=1, waiting=0, kept=1) as server:
        yield server


@pytest.fixture
def impatient(run: Path) -> Iterator[Served]:
    """The same, which soon gives up those who stand still, and notices it as its buffers are small."""
    settings = ServeSettings(port=0, stall_s=1)
    with serving({"tiny": run}, settings, rows=1, waiting=0, kept=1, send_buffer=4096) as server:
        yield server


def opened(served: Served, body: dict[str, Any]) -> http.client.HTTPConnection:
    """A stream of which the first lines were read."""
    connection = http.client.HTTPConnection(served.host, served.port, timeout=60)
    data = json.dumps({**body, "stream": True})
    connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
    return connection


def answered_at_last(served: Served) -> None:
    """Asks until there is a place; the test's time limit ends it."""
    for _ in count():
        status, headers, _ = served.ask(
            "POST", "/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 1}
        )
        if status == 200:
            return
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 60


def test_who_goes_away_frees_the_place(served: Served) -> None:
    with closing(opened(served, ENDLESS)) as connection:
        assert connection.getresponse().readline().startswith(b"data: ")
        with pytest.raises(openai.RateLimitError) as caught:  # it is taken
            served.client.completions.create(model="tiny", prompt="x")
        assert caught.value.code == "overloaded"
        assert int(caught.value.response.headers["retry-after"]) >= 1
    answered_at_last(served)
    (model,) = served.models.loaded
    assert model.engine.cache_used < 0.1


def test_who_goes_away_before_the_answer_frees_the_place(served: Served) -> None:
    served.client.completions.create(model="tiny", prompt="x", max_tokens=1)  # it is loaded
    with socket.create_connection((served.host, served.port)) as connection:
        body = json.dumps(ENDLESS).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        while served.ask("POST", "/v1/completions", ENDLESS | {"max_tokens": 1})[0] == 200:
            pass  # until the place is taken
    answered_at_last(served)


def test_who_reads_nothing_is_given_up(impatient: Served) -> None:
    """The tables of likely tokens fill all buffers soon."""
    served = impatient
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((served.host, served.port))
        body = json.dumps({**ENDLESS, "stream": True, "logprobs": 20}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        assert connection.recv(12) == b"HTTP/1.1 200"
        answered_at_last(served)


def test_a_body_that_does_not_come_is_not_waited_for(impatient: Served) -> None:
    with socket.create_connection((impatient.host, impatient.port)) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        connection.sendall(head + b"Content-Type: application/json\r\n\r\n{")
        assert connection.recv(12) == b"HTTP/1.1 408"


def test_whatever_others_do_a_reply_is_the_same(run: Path) -> None:
    """Clients that go away, ask for too much or for nonsense, beside some who ask for one thing."""
    dice = random.Random(1)

    async def quiet(client: openai.AsyncOpenAI) -> str:
        found = await client.completions.create(model="tiny", prompt="once", seed=3, max_tokens=30)
        return found.choices[0].text

    async def rude(client: openai.AsyncOpenAI) -> None:
        body: dict[str, Any] = {**ENDLESS, "max_tokens": dice.choice((1, 9, LONG)), "n": dice.choice((1, 3))}
        body |= dice.choice(({}, {"n": 129}, {"temperature": 9}, {"stop": ["ZZZ"]}))
        try:
            async with asyncio.timeout(dice.random() / 5):
                async with await client.completions.create(**body, stream=True) as stream:
                    await anext(aiter(stream))
        except (openai.APIStatusError, TimeoutError):
            pass

    async def everybody(served: Served) -> list[str]:
        url = f"http://{served.host}:{served.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            before = await quiet(client)
            tasks = [asyncio.ensure_future(quiet(client)) for _ in range(4)]
            others = [rude(client) for _ in range(16)]
            await asyncio.gather(*others)
            return [before, *[await task for task in tasks]]

    with serving({"tiny": run}, waiting=200) as served:
        assert len(set(asyncio.run(everybody(served)))) == 1
        (model,) = served.models.loaded
        while model.driver.taken:  # until the last has been seen to go
            served.ask("GET", "/health")
        assert served.client.completions.create(model="tiny", prompt="x", max_tokens=1).choices
        assert model.engine.cache_used < 0.01


def test_more_replies_than_places_are_never_served(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.completions.create(model="tiny", prompt="x", n=2)
    assert caught.value.param == "n"


def test_a_model_at_work_is_not_dropped_for_another(served: Served) -> None:
    with closing(opened(served, ENDLESS)) as connection:
        connection.getresponse().readline()
        with pytest.raises(openai.RateLimitError, match="models that fit in memory"):
            served.client.completions.create(model="tiny:pretrain", prompt="x")
    answered_at_last(served)
    served.client.completions.create(model="tiny:pretrain", prompt="x")
    assert [model.entry.id for model in served.models.loaded] == ["tiny:pretrain@2"]


def test_when_the_server_stops_streams_end_with_an_error(run: Path) -> None:
    with serving({"tiny": run}, rows=2) as served:
        connections = [opened(served, ENDLESS) for _ in range(3)]  # two are written, one waits
        responses = [connection.getresponse() for connection in connections]
        for response in responses[:2]:
            response.readline()
        served.server.should_exit = True
        for response, connection in zip(responses, connections, strict=True):
            *_, error, done = [line for line in response.read().splitlines() if line]
            assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "server_error"
            assert done == b"data: [DONE]"
            connection.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine of")]


def test_openai_raises_what_a_stream_ends_with(run: Path) -> None:
    with serving({"tiny": run}) as served, pytest.raises(openai.APIError, match="being stopped"):
        for number, _ in enumerate(served.client.completions.create(**ENDLESS, stream=True)):
            if number == 3:
                served.server.should_exit = True


def test_spoiled_weights_end_replies_with_an_error_and_no_other_models(tmp_path: Path, run: Path) -> None:
    import torch

    from pilgrim.core.checkpoint import CheckpointStore

    bad = random_run(tmp_path / "bad", stages={"sft": (1,)})
    store = CheckpointStore(bad / "sft" / "checkpoints")
    found = store.load(1)
    weights = {name: found.tensors["model"][name] for name in found.tensors["model"]}
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    store.save(2, {"model": weights}, found.state)
    with serving({"bad": bad, "tiny": run}) as served:
        for echo in (False, True):
            with pytest.raises(openai.InternalServerError, match="weights are spoiled"):
                served.client.completions.create(model="bad", prompt="x", echo=echo, logprobs=1)
        with pytest.raises(openai.APIError, match="weights are spoiled"):
            list(served.client.completions.create(model="bad", prompt="x", stream=True))
        served.client.completions.create(model="bad:sft@1", prompt="x", max_tokens=1)
        served.client.completions.create(model="tiny", prompt="x", max_tokens=1)


def test_a_damaged_checkpoint_is_told_without_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = random_run(tmp_path / "bad", stages={"sft": (1,)})
    (bad / "sft" / "checkpoints" / "step_000001" / "model.safetensors").write_bytes(b"nothing")
    with serving({"bad": bad}) as served:
        with pytest.raises(openai.InternalServerError) as caught:
            served.client.completions.create(model="bad", prompt="x")
        assert str(tmp_path) not in str(caught.value)
    assert str(tmp_path) in capsys.readouterr().err
