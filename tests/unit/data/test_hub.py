"""Files of the hub: fetched once, from one commit, or refused in a sentence. The hub is our own server."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pilgrim.core.config import build
from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.data.datasets import DatasetSettings, texts
from pilgrim.data.hub import fetched

pytest.importorskip("huggingface_hub")

COMMIT = "740312add88f781978c0658806c59bc2815b9866"
ROWS = b'{"text": "Once."}\n' * 800_000  # more than is written to disk at once, which is 10 MB


class Hub(BaseHTTPRequestHandler):
    """As much of huggingface.co as a download needs: where a file is, and its bytes from any place on."""

    served: list[str]
    cut_at: int | None  # of the first answer with bytes: the connection breaks there

    def do_HEAD(self) -> None:
        self._answer(with_bytes=False)

    def do_GET(self) -> None:
        self._answer(with_bytes=True)

    def _answer(self, with_bytes: bool) -> None:
        found = re.fullmatch(rf"/datasets/us/tales/resolve/({COMMIT})/(tales\.jsonl)", self.path)
        if not found:
            error = "RepoNotFound" if "/us/tales/" not in self.path else "EntryNotFound"
            error = error if COMMIT in self.path else "RevisionNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", error)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"0123456789"')
        self.send_header("Content-Length", str(len(ROWS) - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(ROWS) - 1}/{len(ROWS)}")
        self.end_headers()
        if with_bytes:
            self.served.append(f"from {first}")
            end, type(self).cut_at = self.cut_at, None
            self.wfile.write(ROWS[first:end])
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing: tests are quiet."""


@contextmanager
def hub(cut_at: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """(its address, what it served)."""
    handler = type("OneHub", (Hub,), {"served": [], "cut_at": cut_at})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.served  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


fetch = partial(fetched, "us/tales", COMMIT, place="datasets.tales")


def test_a_file_is_fetched_once_and_then_needs_no_network(tmp_path: Path) -> None:
    with hub() as (address, served):
        first = fetch("tales.jsonl", endpoint=address, cache=tmp_path)
        assert first.read_bytes() == ROWS
    assert fetch("tales.jsonl", endpoint=address, cache=tmp_path) == first  # nobody listens there any more
    assert served == ["from 0"]


def test_a_download_that_breaks_off_goes_on(tmp_path: Path) -> None:
    with hub(cut_at=12_000_000) as (address, served):
        assert fetch("tales.jsonl", endpoint=address, cache=tmp_path).read_bytes() == ROWS
    assert served[0] == "from 0" and len(served) == 2 and 0 < int(served[1].split()[1]) <= 12_000_000


@pytest.mark.parametrize(
    ("repository", "revision", "file", "sentence"),
    [
        ("us/tails", COMMIT, "tales.jsonl", "the hub knows no such data set; check its name"),
        ("us/tales", "0" * 40, "tales.jsonl", "the data set has no such commit; take one of its history"),
        ("us/tales", COMMIT, "tails.jsonl", "there is no such file in that commit; check its name"),
    ],
)
def test_what_is_not_there(tmp_path: Path, repository: str, revision: str, file: str, sentence: str) -> None:
    with hub() as (address, _), pytest.raises(PilgrimError) as error:
        fetched(repository, revision, file, "datasets.tales", address, tmp_path)
    assert str(error.value) == f"datasets.tales: {file} of {repository} at {revision[:8]}: {sentence}"


@pytest.mark.parametrize(
    ("repository", "file"), [("a/b/c", "x"), ("a b", "x"), ("", "x"), ("us/tales", "../x")]
)
def test_what_can_not_be_a_name(tmp_path: Path, repository: str, file: str) -> None:
    with pytest.raises(DataError, match=r"^datasets\.tales: .* is named so .*; mend datasets\.tales$"):
        fetched(repository, COMMIT, file, "datasets.tales", cache=tmp_path)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE says it; to a hub that does not answer, half a minute of attempts come before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        PilgrimError, match="is not in the cache, and the hub can't be reached; go online once"
    ):
        fetch("tales.jsonl", cache=tmp_path)


def test_a_revision_that_can_move(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"datasets\.tales\.revision = 'main' is no commit"):
        fetched("us/tales", "main", "tales.jsonl", "datasets.tales", cache=tmp_path)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(PilgrimError, match=r"huggingface_hub is not installed; pip install 'pilgrim\[hub\]'"):
        fetch("tales.jsonl", cache=tmp_path)


def test_a_data_set_reads_no_file_behind_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file is in the hub's cache; the second would have to be fetched, and there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    kept = tmp_path / "datasets--us--tales" / "snapshots" / COMMIT / "a.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(ROWS[: ROWS.index(b"\n") + 1] * 3)
    tables = {"kind": "text", "hub": "us/tales", "revision": COMMIT, "files": ["a.jsonl", "b.jsonl"]}
    first = build(DatasetSettings, {**tables, "limit": 3}, "x.toml")
    assert [text.text for text in texts("tales", first)] == ["Once."] * 3
    with pytest.raises(
        PilgrimError, match=r"datasets\.tales: b\.jsonl of us/tales at 740312ad is not in the c"
    ):
        list(texts("tales", build(DatasetSettings, tables, "x.toml")))
