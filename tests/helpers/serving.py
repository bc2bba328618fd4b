"""A real server on a free port, in a thread, and small models for it."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
import torch

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.runtime import Runtime
from pilgrim.infer.cache_bits import CacheBits
from pilgrim.infer.quantized import Weights
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.serve.catalog import Models
from pilgrim.serve.server import Server, bound
from pilgrim.serve.settings import ServeSettings
from pilgrim.text.tokenizer import SMALLEST_VOCABULARY, train_tokenizer

RUNTIME = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=0)


@dataclass(frozen=True)
class Served:
    """A server at work."""

    host: str
    port: int
    server: Server
    models: Models
    key: str | None

    @cached_property
    def client(self) -> openai.OpenAI:
        """OpenAI's own, which tries nothing twice."""
        url = f"http://{self.host}:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key=self.key or "none", max_retries=0, timeout=60)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request. A body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            sent = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def refused(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Status and error of a request that must be refused in OpenAI's shape."""
        status, headers, data = self.ask("POST", path, body)
        found = json.loads(data)
        assert found.keys() == {"error"}, found
        assert found["error"].keys() == {"message", "type", "param", "code"}
        assert headers["content-type"] == "application/json"
        return status, found["error"]


@contextmanager
def serving(
    runs: Mapping[str, Path],
    settings: ServeSettings | None = None,
    rows: int = 4,
    waiting: int = 32,
    kept: int = 2,
    send_buffer: int | None = None,
    weights: Weights = "full",
    cache: CacheBits = "full",
) -> Iterator[Served]:
    """Until the block ends; then it must have stopped cleanly. `send_buffer`: the system's, in bytes."""
    settings = settings or ServeSettings(port=0)
    models = Models(runs, RUNTIME, rows, waiting, kept, weights, cache)
    door, server = bound(settings), Server(models, settings)
    if send_buffer is not None:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    thread = threading.Thread(target=server.run, args=([door],))
    thread.start()
    served = Served(settings.host, door.getsockname()[1], server, models, settings.api_key)
    try:
        yield served
    finally:
        if "client" in vars(served):
            served.client.close()
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


def random_run(folder: Path, context: int = 256, stages: Mapping[str, tuple[int, ...]] | None = None) -> Path:
    """A run whose checkpoints (stage -> steps) have random weights, each its own; tokens are bytes."""
    tokenizer = train_tokenizer(["bytes only"], SMALLEST_VOCABULARY)
    tokenizer.save(folder / "tokenizer")
    settings = ModelSettings(depth=2, width=32, head_size=8, heads=4, kv_heads=2, context=context)
    for stage, steps in (stages or {"pretrain": (10, 20), "sft": (5,)}).items():
        for step in steps:
            model = Transformer(settings.config(SMALLEST_VOCABULARY))
            generator = torch.Generator().manual_seed(len(stage) * 1000 + step)
            with torch.no_grad():
                for weight in model.parameters():
                    scale = weight.shape[-1] ** -0.5 * 2
                    weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            store = CheckpointStore(folder / stage / "checkpoints")
            store.save(step, {"model": model.weights()}, {"model_config": model.config.model_dump()})
    return folder
