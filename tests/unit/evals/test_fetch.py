"""Fetching from a server of our own: whole, in two goes, damaged, and not at all."""

import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pilgrim.core.errors import DataError
from pilgrim.evals.core_tasks import TASKS, find_file
from pilgrim.evals.fetch import fetch_bundle


@dataclass
class Site:
    """What is served, and how well."""

    data: bytes
    knows_ranges: bool = True
    breaks_off_after: int | None = None  # bytes of one answer
    status: int = 200
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    def __init__(self, site: Site, *rest: object) -> None:
        self.site = site
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        site, wanted = self.site, self.headers.get("Range")
        site.asked.append(wanted)
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.knows_ranges else 0
        data = site.data[begin:]
        status = 416 if begin and not data else 206 if begin else site.status
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: site.breaks_off_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


def bundle(**members: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("eval_bundle/core.yaml", "icl_tasks: []\n")
        archive.writestr("eval_bundle/eval_data/world_knowledge/arc_easy.jsonl", '{"query": "a"}\n' * 500)
        for name, text in members.items():
            archive.writestr(name, text)
    return packed.getvalue()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(bundle())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, site)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        site.url = f"http://127.0.0.1:{server.server_port}/eval_bundle.zip"
        yield site
        server.shutdown()


def is_whole(folder: Path) -> bool:
    arc_easy = next(task for task in TASKS if task.name == "arc_easy")
    file = find_file(folder, arc_easy)
    return file is not None and len(file.read_text().splitlines()) == 500


def test_fetched_once(site: Site, tmp_path: Path) -> None:
    said: list[str] = []
    folder = fetch_bundle(tmp_path, site.url, said.append)
    assert is_whole(folder)
    assert (folder / "core.yaml").exists()
    assert "SHA-256" in said[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["core", "eval_bundle.sha256"]
    assert fetch_bundle(tmp_path, site.url) == folder
    assert site.asked == [None]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_what_broke_off_goes_on(site: Site, tmp_path: Path, knows_ranges: bool) -> None:
    site.breaks_off_after, site.knows_ranges = 100, knows_ranges
    with pytest.raises(DataError, match=r"100 of \d+ bytes arrived\); what has arrived is kept"):
        fetch_bundle(tmp_path, site.url)
    assert (tmp_path / "eval_bundle.zip.part").read_bytes() == site.data[:100]
    site.breaks_off_after = None
    assert is_whole(fetch_bundle(tmp_path, site.url))
    assert site.asked == [None, "bytes=100-"]


def test_killed_when_everything_had_arrived(site: Site, tmp_path: Path) -> None:
    (tmp_path / "eval_bundle.zip.part").write_bytes(site.data)
    assert is_whole(fetch_bundle(tmp_path, site.url))


def test_killed_before_unpacking(site: Site, tmp_path: Path) -> None:
    (tmp_path / "eval_bundle.zip").write_bytes(site.data)
    assert is_whole(fetch_bundle(tmp_path, site.url))
    assert site.asked == []


def test_damaged(site: Site, tmp_path: Path) -> None:
    for spoiled in (
        site.data[:-30],
        site.data[:200] + b"!!!!" + site.data[204:],
        b"<html>Sign in first</html>",
    ):
        site.data = spoiled
        with pytest.raises(DataError, match=r"eval_bundle.zip is damaged .* and was removed; fetch it again"):
            fetch_bundle(tmp_path, site.url)
        assert list(tmp_path.iterdir()) == []


def test_changed_since(site: Site, tmp_path: Path) -> None:
    folder = fetch_bundle(tmp_path, site.url)
    folder.rename(tmp_path / "before")
    site.data = bundle(**{"eval_bundle/more.jsonl": "{}"})
    with pytest.raises(DataError, match="the data has changed, and scores of then and now"):
        fetch_bundle(tmp_path, site.url)
    (tmp_path / "eval_bundle.sha256").unlink()
    assert (fetch_bundle(tmp_path, site.url) / "more.jsonl").exists()


def test_names_that_lead_elsewhere(site: Site, tmp_path: Path) -> None:
    site.data = bundle(**{"../../evil.jsonl": "{}", "/evil.jsonl": "{}", "eval_bundle/run.sh": "echo"})
    folder = fetch_bundle(tmp_path / "deep" / "er", site.url)
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [
        "arc_easy.jsonl", "core.yaml", "eval_bundle.sha256",
    ]  # fmt: skip
    assert is_whole(folder)


def test_no_network_and_no_file(site: Site, tmp_path: Path) -> None:
    site.status = 403
    with pytest.raises(DataError, match=r"the server says 403 Forbidden; fetch it elsewhere, unpack it"):
        fetch_bundle(tmp_path, site.url)
    with pytest.raises(DataError, match=r"can't be fetched \(.*refused.*give the folder with --data DIR"):
        fetch_bundle(tmp_path, "http://127.0.0.1:9/eval_bundle.zip")
    with pytest.raises(DataError, match=r"can't be fetched \("):
        fetch_bundle(tmp_path, "http://no-such-host.invalid/eval_bundle.zip")
