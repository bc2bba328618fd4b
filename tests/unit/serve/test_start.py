"""`pilgrim serve` as a command: what it refuses to begin with, and how it ends."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import random_run
from typer.testing import CliRunner

from pilgrim.cli import app
from pilgrim.core.errors import SettingsError
from pilgrim.serve.settings import ServeSettings
from pilgrim.serve.start import by_name


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = random_run(tmp_path / "tiny", 60_000, {"sft": (5,)})
    (folder / "recipe.toml").write_text('name = "tiny"\n')
    return folder


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def refused(*arguments: str) -> str:
    """The one sentence that the command ends with."""
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2, result.output
    return result.stderr.strip()


def test_what_it_refuses_to_begin_with(
    run: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert "can't be listened at" in refused(str(run), "--port", str(taken_port))
    assert "can't be listened at" in refused(str(run), "--host", "no.such.host.invalid", "--port", "0")
    assert "can't be listened at" in refused(str(run), "--host", "a..b", "--port", "0")
    assert "--max-body-mb inf: is no size" in refused(str(run), "--max-body-mb", "inf")
    assert "NO_SUCH_KEY: that variable is empty" in refused(str(run), "--api-key-env", "NO_SUCH_KEY")
    assert "could not be written" in refused(str(run), "--log-chats", str(run / "recipe.toml" / "x"))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "recipe.toml").write_text('name = "empty"\n')
    assert "holds no trained model yet" in refused(str(empty))
    monkeypatch.chdir(tmp_path)
    assert refused().startswith("runs/: no trained model is here")


def test_runs_need_names_that_clients_can_say(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "pocket", tmp_path / "b" / "pocket"
    assert by_name([one, one]) == {"pocket": one}
    with pytest.raises(SettingsError, match="have the same name"):
        by_name([one, other])
    with pytest.raises(SettingsError, match="can't be asked for"):
        by_name([tmp_path / "a:b"])


def test_a_key_is_compared_whole() -> None:
    settings = ServeSettings(api_key="schlüssel")
    assert settings.opened_by("schlüssel")
    assert not any(settings.opened_by(key) for key in ("", "schl", "schlüssel ", "SCHLÜSSEL"))
    assert "schlüssel" not in repr(settings)


def test_ctrl_c_ends_streams_with_an_error_and_the_server_with_130(run: Path) -> None:
    """At every address of the machine, so that it makes up a key and tells it."""
    command = [sys.executable, "-m", "pilgrim", "serve", str(run), "--host", "0.0.0.0", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout and server.stderr
        key = server.stdout.readline().split()[-1]
        told = server.stdout.readline()
        assert told.startswith("tiny: chat at http://0.0.0.0:")
        port = int(told.split(",")[0].rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body: dict[str, Any] = {"model": "tiny", "prompt": "x", "stream": True, "max_tokens": 60_000}
        body["logit_bias"] = {"90": 100}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        server.send_signal(signal.SIGINT)
        *_, error, done = [line for line in response.read().splitlines() if line]
        assert json.loads(error.removeprefix(b"data: "))["error"]["message"].startswith("the server is being")
        assert done == b"data: [DONE]"
        connection.close()
        assert server.wait(timeout=60) == 130
        assert server.stderr.read().startswith("stopped; start it again with: ")
