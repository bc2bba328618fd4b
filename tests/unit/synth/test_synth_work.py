"""Conversations from a server, a good one and bad ones: what is kept, what is asked, what it costs."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from odd_endpoint import OddEndpoint, Reply, Script, good, words

from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import read_json, read_jsonl_zst
from pilgrim.data.conversations import read_conversations

Make = Callable[..., dict[str, Any]]
Served = Callable[[Script], OddEndpoint]

JUDGE = """
[judge]
least = 5
"""


def rows(file: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl_zst(file)]


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.jsonl").read_bytes() for name in ("conversations", "rejected")}


def test_what_is_wanted_is_made_and_can_be_trained_on(tmp_path: Path, served: Served, make: Make) -> None:
    server = served(good)
    result = make(server.url)
    assert result["kept"] == 8 and len(server.requests) == 8  # nothing is asked that isn't wanted
    found = rows(tmp_path / "out" / "conversations.jsonl")
    first, about = found[0]["messages"], found[0]["synth"]
    assert first[0]["content"] == f"Write a {about['slots']['style']} tale of {about['slots']['topic']}."
    assert about["model"] == "m" and about["seed"] in {asked["seed"] for asked in server.requests}
    assert len({row["messages"][1]["content"] for row in found}) == 8
    read = read_conversations([str(tmp_path / "out" / "conversations.jsonl")])
    assert len(read) == 8 and read[0].source == "out/tale"
    usage = result["tokens"]["writer"]
    assert result["cost"] == pytest.approx((usage["read"] + 2 * usage["written"]) / 1e6) and usage["read"] > 0


def test_what_comes_out_depends_on_the_answers_alone(tmp_path: Path, served: Served, make: Make) -> None:
    server = served(good)
    found = []
    for concurrency in (1, 3, 16):
        make(server.url, f"out={tmp_path / str(concurrency) / 'out'}", f"endpoint.concurrency={concurrency}")
        found.append(files(tmp_path / str(concurrency) / "out"))
    assert found[0] == found[1] == found[2]


def bad(request: dict[str, Any], number: int) -> str | Reply:
    match number % 8:
        case 1:
            return Reply(
                status=429, body=b'{"error": {"message": "slow down"}}', headers={"Retry-After": "0"}
            )
        case 2:
            return Reply(status=500, body=b"oh no")
        case 3:
            return Reply(words(request), hang_up=True)
        case 4:
            return Reply(body=b"<html>welcome to the proxy</html>")
        case 5:
            return Reply(body=b'{"choices": []}')
    return words(request)


def test_a_server_that_fails_in_the_middle_changes_nothing(
    tmp_path: Path, served: Served, make: Make
) -> None:
    server = served(bad)
    result = make(server.url, "endpoint.concurrency=2", "endpoint.tries=30")
    assert len(server.requests) > server.answered == 8 and result["untold"] > 0
    assert result["answers"] == 8
    make(served(good).url, f"out={tmp_path / 'good' / 'out'}")
    assert files(tmp_path / "out") == files(tmp_path / "good" / "out")


def test_a_server_that_is_down_ends_it_in_a_sentence(tmp_path: Path, served: Served, make: Make) -> None:
    up = threading.Event()

    def script(request: dict[str, Any], number: int) -> str | Reply:
        return words(request) if number < 5 or up.is_set() else Reply(status=503, body=b"")

    server = served(script)
    with pytest.raises(
        PilgrimError, match=r"endpoint: http.* failed 4 times in a row, the last time: 503; all"
    ):
        make(server.url, "endpoint.concurrency=1")
    assert len(rows(tmp_path / "out" / "conversations.jsonl")) == 5
    assert len(server.requests) == 9
    up.set()
    assert make(server.url)["kept"] == 8
    assert server.answered == 8  # none was answered twice


def test_nobody_there(make: Make) -> None:
    with pytest.raises(PilgrimError, match="failed 4 times in a row, the last time: no connection"):
        make("http://127.0.0.1:9/v1")


def test_a_wrong_key_is_told_without_the_key(
    tmp_path: Path, served: Served, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "hush-hush")
    server = served(lambda request, number: Reply(status=401, body=b'{"error": "hush-hush is wrong"}'))
    with pytest.raises(PilgrimError) as error:
        make(server.url, "endpoint.key_env=SOME_KEY")
    assert "refuses the key in the variable SOME_KEY (401)" in str(error.value)
    assert "hush" not in str(error.value)
    assert server.headers[0]["Authorization"] == "Bearer hush-hush"
    assert len(server.requests) <= 4  # those that were on the way
    for file in (tmp_path / "out").iterdir():
        assert b"hush" not in file.read_bytes()


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (
            Reply(status=404, body=b'{"error": {"message": "no model m"}}'),
            r"or no model m \(404, 'no model m'\)",
        ),
        (Reply(status=302, body=b""), "in a way that asking again can't mend: 302"),
        (
            Reply(status=429, body=b"", headers={"Retry-After": "86400"}),
            "wants to be left alone for 86,400 s",
        ),
    ],
)
def test_what_waiting_does_not_mend_ends_it_at_once(
    served: Served, make: Make, reply: Reply, sentence: str
) -> None:
    server = served(lambda request, number: reply)
    with pytest.raises(PilgrimError, match=sentence):
        make(server.url, "endpoint.concurrency=1")
    assert len(server.requests) == 1


def test_a_request_that_takes_too_long_is_sent_again(served: Served, make: Make) -> None:
    never = threading.Event()

    def script(request: dict[str, Any], number: int) -> str | Reply:
        return Reply(until=never) if number == 0 else words(request)

    server = served(script)
    try:
        result = make(server.url, "wanted=2", "endpoint.timeout_s=0.3", "endpoint.concurrency=1")
        assert result["kept"] == 2 and len(server.requests) == 3 and result["untold"] == 1
    finally:
        never.set()


def test_killed_and_started_again_it_pays_nothing_twice(tmp_path: Path, served: Served, make: Make) -> None:
    half, over = threading.Event(), threading.Event()

    def script(request: dict[str, Any], number: int) -> str | Reply:
        if number == 5:
            half.set()  # five are answered, and this one is on its way
        return Reply(words(request), until=over) if number == 5 else words(request)

    server = served(script)
    with pytest.raises(PilgrimError):  # writes the recipe's file, and sends nothing
        make("http://elsewhere.example/v1", consent=False)
    code = (
        "import sys; from pathlib import Path; from pilgrim.stages.synth import synthesize; "
        "synthesize(Path(sys.argv[1]), sys.argv[2:], lambda q: True)"
    )
    settings = [f"endpoint.url={server.url}", "endpoint.concurrency=1"]
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "recipe.toml"), *settings])
    try:
        assert half.wait(60)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.wait()
    before = (tmp_path / "out" / "conversations.jsonl").read_bytes()
    assert before.count(b"\n") == 5
    over.set()
    result = make(server.url)
    assert result["kept"] == 8 and len(server.requests) == 9  # only the one on its way is asked again
    assert (tmp_path / "out" / "conversations.jsonl").read_bytes().startswith(before)
    assert result["untold"] == 1  # which may have been charged
    make(served(good).url, f"out={tmp_path / 'good' / 'out'}")
    assert files(tmp_path / "out") == files(tmp_path / "good" / "out")


@pytest.mark.parametrize("limit", ["limits.max_cost=0.0018", "limits.max_tokens=1000"])
def test_a_limit_is_kept_and_can_be_raised(tmp_path: Path, served: Served, make: Make, limit: str) -> None:
    name, _, number = limit.partition("=")
    server = served(lambda request, n: words(request, 20))
    with pytest.raises(PilgrimError, match=f"of {name} = .* raise it, and start again"):
        make(server.url, "wanted=30", limit, "endpoint.concurrency=8")
    summary = read_json(tmp_path / "out" / "summary.json")
    used = sum(sum(each.values()) for each in summary["tokens"].values())
    assert 0 < (summary["cost"] if "cost" in limit else used) <= float(number)
    assert 0 < summary["kept"] < 30
    assert make(server.url, "wanted=30")["kept"] == 30 == server.answered


def test_a_judge_keeps_the_good_and_is_remembered(tmp_path: Path, served: Served, make: Make) -> None:
    def script(request: dict[str, Any], number: int) -> str:
        text = request["messages"][0]["content"]
        if "conversation between" not in text:
            return words(request)
        score = 1 + len(text.rsplit("assistant: ", 1)[1].split(".")[0]) * text.count("a") % 10
        return f'```json\n{{"why": "because", "score": {score}}}\n```' if number % 3 else "I like it {a lot}!"

    server = served(script)
    result = make(server.url, more=JUDGE)
    kept, rejected = (rows(tmp_path / "out" / f"{name}.jsonl") for name in ("conversations", "rejected"))
    assert len(kept) == 8 and all(row["synth"]["score"] >= 5 for row in kept)
    assert result["rejected"] == {"judge": len(rejected)} and rejected
    assert all(row["reason"].startswith("judge: ") for row in rejected)
    assert "Bearer" not in str(server.headers)

    before = len(server.requests)
    result = make(server.url, "judge.least=1", "wanted=4", more=JUDGE)  # the judge's words are known
    assert result["kept"] == 4 and len(server.requests) == before


def test_of_several_samples_the_best_is_kept(tmp_path: Path, served: Served, make: Make) -> None:
    def script(request: dict[str, Any], number: int) -> str:
        text = request["messages"][0]["content"]
        if "conversation between" not in text:
            return f"Number {request['seed'] % 10}: {words(request)}"
        return json.dumps({"score": 1 + int(text.split("Number ")[1][0])})

    make(served(script).url, "samples=4", "wanted=3", "judge.least=1", more=JUDGE)
    kept, others = (rows(tmp_path / "out" / f"{name}.jsonl") for name in ("conversations", "rejected"))
    assert [row["synth"]["n"] for row in kept] == [0, 1, 2] and len(others) == 9
    for row in kept:
        beside = [other["synth"]["score"] for other in others if other["synth"]["n"] == row["synth"]["n"]]
        assert row["synth"]["score"] >= max(beside)


def test_whole_conversations_and_talks_of_several_turns(tmp_path: Path, served: Served, make: Make) -> None:
    def script(request: dict[str, Any], number: int) -> str:
        if request["messages"][0]["content"].startswith("Write"):
            talk = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": words(request)}]
            return f"Here it is: {json.dumps({'messages': talk})}" if number % 4 else "[no] {JSON}"
        return words(request)

    file = tmp_path / "example.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "Ho!"}]}\n{"text": "Once."}\n')
    more = f"""
[slots.example]
file = "{file}"
[[prompts]]
id = "whole"
makes = "conversation"
turns = ['Write {{"messages": []}} like {{example}}']
[[prompts]]
id = "talk"
system = "Be kind to {{topic}}."
keep_system = true
turns = ["Hello.", "And again?"]
""".replace("{{", "{").replace("}}", "}")
    make(served(script).url, "wanted=12", more=more)
    found = {
        row["synth"]["prompt"]: row["messages"] for row in rows(tmp_path / "out" / "conversations.jsonl")
    }
    assert [m["role"] for m in found["whole"]] == ["user", "assistant"] and found["whole"][0][
        "content"
    ] == "Hi!"
    assert [m["role"] for m in found["talk"]] == ["system", *["user", "assistant"] * 2]
    assert found["talk"][0]["content"].startswith("Be kind to ")
    reasons = [row["reason"] for row in rows(tmp_path / "out" / "rejected.jsonl")]
    assert all(reason.startswith("no JSON") for reason in reasons)


def test_copies_are_left_out(tmp_path: Path, served: Served, make: Make) -> None:
    def script(request: dict[str, Any], number: int) -> str:
        return "The same old tale of a cat that sat on a mat and ate a rat." if number % 2 else words(request)

    make(served(script).url, "endpoint.concurrency=1", "filters.near=0.5")
    texts = [row["messages"][1]["content"] for row in rows(tmp_path / "out" / "conversations.jsonl")]
    assert sum(text.startswith("The same") for text in texts) == 1
    reasons = [row["reason"] for row in rows(tmp_path / "out" / "rejected.jsonl")]
    assert reasons and all(reason.startswith("copy: ") for reason in reasons)


def test_odd_answers_are_rejected_and_kept_apart(tmp_path: Path, served: Served, make: Make) -> None:
    odd: list[str | Reply | None] = ["", "   ", "half \ud83d.", "It is <|im_end|> over.", "no end"]
    odd += [Reply("Cut off.", finish="length"), Reply(None), Reply("Uncounted, but good.", usage=False)]

    def script(request: dict[str, Any], number: int) -> str | Reply:
        return (odd[number] or "") if number < len(odd) else words(request)

    result = make(served(script).url, "endpoint.concurrency=1")
    assert result["rejected"] == {"empty": 3, "no conversation": 1, "marks": 1, "no end": 1, "cut off": 1}
    assert result["untold"] == 1
    assert len(rows(tmp_path / "out" / "conversations.jsonl")) == 8


def test_work_in_vain_ends(tmp_path: Path, served: Served, make: Make) -> None:
    server = served(lambda request, number: words(request) + " and")
    with pytest.raises(
        PilgrimError, match=r"the last 5 conversations were all rejected, .* a sentence'; look at"
    ):
        make(server.url, "patience=5", "endpoint.concurrency=1")
    assert len(server.requests) == 5
    with pytest.raises(
        PilgrimError, match=r"7 prompts were asked, and 0 of 8 .* \(7 × no end\); raise most_p"
    ):
        make(server.url, "most_prompts=7")
    assert len(server.requests) == 7


def test_nothing_leaves_without_a_yes(tmp_path: Path, make: Make) -> None:
    with pytest.raises(PilgrimError, match=r"nothing was sent to api\.example"):
        make("https://api.example/v1", consent=False)
    assert (tmp_path / "out" / "answers.jsonl").exists() is False


def test_a_torn_journal_is_mended_and_a_damaged_one_told(tmp_path: Path, served: Served, make: Make) -> None:
    server = served(good)
    make(server.url)
    journal = tmp_path / "out" / "answers.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"asked": "torn')
    assert make(server.url)["kept"] == 8 and len(server.requests) == 8 and journal.read_bytes() == whole
    journal.write_bytes(b"damaged\n" + whole)
    with pytest.raises(PilgrimError, match=r"answers\.jsonl, line 1: not valid JSON .*; remove the line"):
        make(server.url)


def test_questions_with_known_answers(tmp_path: Path, served: Served, make: Make) -> None:
    """Rejection sampling: each question several times, what is right is kept, each once."""
    file = tmp_path / "sums.jsonl"
    lines = [{"id": f"q{n}", "prompt": f"What is {n} + 1?", "regex": rf"\b{n + 1}\b"} for n in range(6)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def script(request: dict[str, Any], number: int) -> str:
        n = int(request["messages"][0]["content"].split()[2])
        return f"It is {n + request['seed'] % 3}, {words(request)}"

    recipe = tmp_path / "questions.toml"
    recipe.write_text(
        f'out = "{tmp_path / "out"}"\nsamples = 6\nkeep = 2\nquestions = ["{file}"]\n'
        f'[endpoint]\nurl = "{served(script).url}"\nmodel = "m"\n'
    )
    from pilgrim.core.console import Console
    from pilgrim.stages.synth import synthesize

    result = synthesize(recipe, [], lambda question: True, Console(quiet=True))
    kept = rows(tmp_path / "out" / "conversations.jsonl")
    assert result["prompts"] == 6 and 6 <= len(kept) <= 12
    for row in kept:
        n = int(row["messages"][0]["content"].split()[2])
        assert row["messages"][1]["content"].startswith(f"It is {n + 1},")
    assert set(result["rejected"]) <= {"wrong", "not needed"} and result["rejected"]["wrong"] > 0
