"""Started again, with another recipe or without a server, and other ways to lose money or rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from odd_endpoint import OddEndpoint, Reply, Script, good, words

from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import read_jsonl_zst

Make = Callable[..., dict[str, Any]]
Served = Callable[[Script], OddEndpoint]

NOWHERE = "http://127.0.0.1:9/v1"
JUDGE = "\n[judge]\nleast = 5\n"


def rows(file: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl_zst(file)]


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.jsonl").read_bytes() for name in ("conversations", "rejected")}


def judging(request: dict[str, Any], number: int) -> str:
    text = request["messages"][0]["content"]
    return '{"score": 8}' if "conversation between" in text else words(request)


def saying(reply: Reply) -> Script:
    return lambda request, number: reply


def test_what_a_judge_has_cost_stays_counted_without_it(served: Served, make: Make) -> None:
    server = served(judging)
    before = make(server.url, more=JUDGE)
    assert set(before["tokens"]) == {"writer", "judge"}
    after = make(server.url)
    assert after["cost"] == before["cost"] > 0


def test_what_was_paid_stays_paid_at_the_price_of_then(served: Served, make: Make) -> None:
    server = served(good)
    before = make(server.url)
    assert make(server.url, "endpoint.price_in=0", "endpoint.price_out=0")["cost"] == before["cost"] > 0


def test_questions_that_were_refused_need_no_server_again(tmp_path: Path, served: Served, make: Make) -> None:
    def script(request: dict[str, Any], number: int) -> str | Reply:
        return Reply(status=400, body=b'{"error": "too long"}') if number in (2, 5) else words(request)

    server = served(script)
    make(server.url, "endpoint.concurrency=1")
    before = files(tmp_path / "out")
    assert len(rows(tmp_path / "out" / "conversations.jsonl")) == 8
    assert [row["reason"][:12] for row in rows(tmp_path / "out" / "rejected.jsonl")] == ["unanswerable"] * 2
    make(NOWHERE)
    assert len(server.requests) == 10 and files(tmp_path / "out") == before


def test_a_server_that_refused_all_is_asked_again(tmp_path: Path, served: Served, make: Make) -> None:
    """Its settings were wrong, perhaps, and have been mended."""
    server = served(lambda request, n: Reply(status=400) if "seed" in request else words(request))
    with pytest.raises(PilgrimError, match="the last 3 conversations were all rejected"):
        make(server.url, "patience=3", "endpoint.concurrency=1")
    result = make(server.url, "endpoint.send_seed=false")
    assert "unanswerable" not in result["rejected"] and result["kept"] == 8


def test_half_a_sign_in_a_talk_spoils_that_talk_alone(tmp_path: Path, served: Served, make: Make) -> None:
    """JSON can say it, and UTF-8, in which the next question would travel, can not."""
    talk = '\n[[prompts]]\nid = "talk"\nturns = ["Hello {topic}.", "And again?"]\n'

    def script(request: dict[str, Any], number: int) -> str:
        return "half \ud83d." if number in (0, 3) else words(request)

    result = make(served(script).url, "endpoint.concurrency=1", more=talk)
    assert result["kept"] == 8 and result["rejected"]


def test_reasons_do_not_depend_on_how_many_are_asked_at_once(
    tmp_path: Path, served: Served, make: Make
) -> None:
    """Whether a copy was judged before the other one was kept is luck, and nothing of it shows."""

    def script(request: dict[str, Any], number: int) -> str:
        text = request["messages"][0]["content"]
        if "conversation between" in text:
            return f'{{"score": {1 + len(text) % 10}}}'
        return "The same old tale of a cat that sat on a mat." if request["seed"] % 2 else words(request)

    server = served(script)
    found = []
    for concurrency in (8, 1):
        make(server.url, "samples=3", "keep=2", f"endpoint.concurrency={concurrency}", more=JUDGE)
        found.append(files(tmp_path / "out"))
        (tmp_path / "out" / "rejected.jsonl").unlink()
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["recipe.toml", "conversations.jsonl"])
def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, served: Served, make: Make, name: str
) -> None:
    file = tmp_path / "out" / name
    file.parent.mkdir()
    file.write_text('name = "pocket"\n')
    with pytest.raises(PilgrimError, match=f"{name} there .* another folder"):
        make(served(good).url)
    assert file.read_text() == 'name = "pocket"\n'


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("endpoint.body={max_tokens=9000}", r"body\.max_tokens can't stand"),
        ("endpoint.body={n=4}", r"body\.n can't stand"),
        ("endpoint.body={stream=true}", r"body\.stream can't stand"),
        ("endpoint.body={top_p=nan}", "can't be said in JSON"),
    ],
)
def test_a_body_can_not_go_round_the_limits(make: Make, override: str, sentence: str) -> None:
    with pytest.raises(PilgrimError, match=sentence):
        make(NOWHERE, override)


def test_a_limit_of_money_needs_prices(make: Make) -> None:
    with pytest.raises(PilgrimError, match=r"limits\.max_cost = 0\.5 .* price"):
        make(NOWHERE, "limits.max_cost=0.5", "endpoint.price_in=0", "endpoint.price_out=0")


def test_a_key_that_the_server_quotes_is_not_repeated(
    tmp_path: Path, served: Served, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "hush-hush")
    quoting = b'{"error": {"message": "received hush-hush"}}'
    for reply in (Reply(status=400, body=quoting), Reply(status=500, body=quoting), Reply(body=quoting)):
        with pytest.raises(PilgrimError) as error:
            make(served(saying(reply)).url, "patience=2", "endpoint.key_env=SOME_KEY")
        assert "hush" not in str(error.value)
        for file in (tmp_path / "out").iterdir():
            assert b"hush" not in file.read_bytes()
