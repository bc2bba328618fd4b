"""`pilgrim chat` with a model that says what the test wants: through pipes, and in a real terminal."""

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pilgrim.data.conversations import read_conversations
from pilgrim.infer.sampling import Sampling
from pilgrim.serve.screen import Screen
from pilgrim.serve.terminal import chat, exchanges
from pilgrim.text.calls import CALL, END_OF_CALL, END_OF_RESPONSE

MakeRun = Callable[..., Path]  # see conftest
SAMPLING = Sampling(max_tokens=30)


def talk(run: Path, *lines: str, sampling: Sampling = SAMPLING, system: str | None = None) -> tuple[str, str]:
    """What comes out when these lines go in: replies, and notes."""
    source, out, notes = io.StringIO("".join(f"{line}\n" for line in lines)), io.StringIO(), io.StringIO()
    chat(run, sampling=sampling, system=system, screen=Screen(source, out, notes))
    return out.getvalue(), notes.getvalue()


def test_lines_are_answered(make_run: MakeRun) -> None:
    assert talk(make_run("Hi, [b]you.\x1b"), "Hello", "", "  ", "And now?") == ("Hi, [b]you.\n" * 2, "")


def test_a_reply_without_words_is_an_empty_line(make_run: MakeRun) -> None:
    assert talk(make_run(""), "Hello") == ("\n", "")


def test_the_first_words_are_said_before_the_last(make_run: MakeRun) -> None:
    class Watched(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += bool(text)
            return super().write(text)

    out = Watched()
    chat(make_run("Hi you"), sampling=SAMPLING, screen=Screen(io.StringIO("Hello\n"), out, io.StringIO()))
    assert out.writes >= 6


def test_reset_begins_anew(make_run: MakeRun, tmp_path: Path) -> None:
    file = tmp_path / "new" / "saved.jsonl"
    _, notes = talk(make_run("Hi"), "one", "/reset", "two", f"/save {file}")
    assert "A new conversation begins." in notes
    assert [message["content"] for message in json.loads(file.read_text())["messages"]] == ["two", "Hi"]


def test_retry_answers_once_more(make_run: MakeRun, tmp_path: Path) -> None:
    file = tmp_path / "saved.jsonl"
    out, notes = talk(make_run("Hi"), "/retry", "one", "/retry", f"/save {file}")
    assert out == "Hi\nHi\n"
    assert "/retry: nothing was said yet; write something first" in notes
    assert len(json.loads(file.read_text())["messages"]) == 2


def test_save_chooses_a_name_and_may_write_again(make_run: MakeRun) -> None:
    run = make_run("Hi")
    _, notes = talk(run, "/save", "one", "/save", "two", "/save")
    (file,) = (run / "chats").iterdir()
    assert notes.splitlines() == [
        "/save: nothing was said yet; write something first",
        *[f"Saved in {file}"] * 2,
    ]
    assert len(json.loads(file.read_text())["messages"]) == 4


def test_save_spares_what_is_there(make_run: MakeRun, tmp_path: Path) -> None:
    file = tmp_path / "precious.txt"
    file.write_text("precious")
    _, notes = talk(make_run("Hi"), "one", f"/save {file}", f"/save {file}/x")
    assert "precious.txt is there already; give another name" in notes
    assert "could not be written" in notes
    assert file.read_text() == "precious"


def test_the_system_prompt_can_be_changed(make_run: MakeRun, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.jsonl" for i in range(3)]
    lines = [
        "one",
        f"/save {files[0]}",
        "/system Be  [b]kind.",
        f"/save {files[1]}",
        "/system off",
        f"/save {files[2]}",
    ]
    _, notes = talk(make_run("Hi"), "/system", *lines, system="Be brief.")
    first = [json.loads(file.read_text())["messages"][0]["content"] for file in files]
    assert first == ["Be brief.", "Be  [b]kind.", "one"]
    shown = [line for line in notes.splitlines() if line.startswith("System prompt")]
    assert shown == [f"System prompt: {text}" for text in ("Be brief.", "Be  [b]kind.", "none")]


def test_the_dials_turn(make_run: MakeRun) -> None:
    lines = ["/temperature 0", "/top_k 5", "/top_k off", "/TOP_P 0.9", "/max_tokens 1", "/seed", "Hello"]
    out, notes = talk(make_run("Hi"), *lines)
    assert out == "H\n"
    told = ["temperature = 0.0", "top_k = 5", "top_k = off", "top_p = 0.9", "max_tokens = 1", "seed = 0"]
    assert notes.splitlines()[:6] == told
    assert notes.splitlines()[6] == "The reply was cut off after 1 tokens; /max_tokens allows more."


@pytest.mark.parametrize("value", ["hot", "-1", "nan", "inf", "1 2", "off"])
def test_a_bad_dial_is_told_and_changes_nothing(make_run: MakeRun, value: str) -> None:
    _, notes = talk(make_run("Hi"), f"/temperature {value}", "/temperature")
    complaint, now = notes.splitlines()
    assert complaint.startswith("/temperature: temperature = ")
    assert now == "temperature = 0.8"


def test_unknown_commands_name_the_nearest(make_run: MakeRun) -> None:
    _, notes = talk(make_run("Hi"), "/rest", "/temprature 1", "/temp 1", "/xyzzy", "/")
    assert notes.splitlines() == [
        "/rest is no command; did you mean /reset?",
        "/temprature is no command; did you mean /temperature?",
        "/temp is no command; did you mean /temperature?",
        "/xyzzy is no command; /help lists the commands",
        "/ is no command; /help lists the commands",
    ]


def test_help_names_every_command(make_run: MakeRun) -> None:
    _, notes = talk(make_run("Hi"), "/help")
    names = {line.split()[0] for line in notes.splitlines()}
    assert names >= {
        "/help",
        "/reset",
        "/save",
        "/retry",
        "/system",
        "/quit",
        "/temperature",
        "/top_k",
        "/min_p",
    }
    assert "(now 0.8)" in notes


def test_quit_leaves(make_run: MakeRun) -> None:
    assert talk(make_run("Hi"), "one", "/quit", "two")[0] == "Hi\n"


def test_a_long_chat_says_what_it_forgot_and_goes_on(make_run: MakeRun) -> None:
    out, notes = talk(make_run("Hi", context=128), *[f"message {i}" for i in range(10)])
    assert out == "Hi\n" * 10
    assert "It has forgotten the first 2 messages" in notes
    assert talk(make_run("Hi", context=128), "x" * 200)[1].startswith(
        "Your message is longer than its context"
    )


def test_a_full_context_is_told(make_run: MakeRun) -> None:
    _, notes = talk(make_run("abc", ends=False, context=64), "Hello", sampling=Sampling(max_tokens=1000))
    assert notes == "Its context is full, so the reply breaks off here.\n"


def test_a_system_prompt_without_room_is_told(make_run: MakeRun) -> None:
    out, notes = talk(make_run("Hi"), "Hello", "/system off", "Hello", system="long " * 100)
    assert out == "Hi\n"
    assert "no room for the system message" in notes


def test_a_base_model_continues(make_run: MakeRun) -> None:
    run = make_run("abc", stage="midtrain", ends=False)
    out, notes = talk(run, "a", "/system Be kind.", sampling=Sampling(max_tokens=4))
    assert out == "bcab\n"
    assert "has only a base model yet (midtrain)" in notes
    assert "/system: a base model knows no system prompt" in notes


def test_exchanges_are_conversations_of_their_own(make_run: MakeRun) -> None:
    run = make_run("Hi \x1b[31m", context=64)
    prompts = ["Hello", "And now?"] * 3
    assert exchanges(run, prompts, sampling=SAMPLING) == [(prompt, "Hi [31m") for prompt in prompts]


PROGRAM = """
import fcntl, pathlib, sys, termios
if sys.stdin.isatty():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C shall come from there
from pilgrim.data.conversations import read_conversations
from pilgrim.infer.sampling import Sampling
from pilgrim.serve.terminal import chat
chat(pathlib.Path(sys.argv[1]), sampling=Sampling(max_tokens=100_000))
"""


def test_pipes_work(make_run: MakeRun) -> None:
    given = "Hello\nca\xe9".encode("latin-1") + b"\n/quit\n"
    command = [sys.executable, "-c", PROGRAM, str(make_run("Hi é"))]
    done = subprocess.run(command, input=given, capture_output=True, timeout=60, check=True)
    assert done.stdout.decode() == "Hi é\n" * 2
    assert done.stderr == b""


def test_ctrl_c_stops_a_reply_and_then_leaves(make_run: MakeRun) -> None:
    command = [sys.executable, "-c", PROGRAM, str(make_run("abc ", ends=False, context=20_000))]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as chatting:
        os.close(theirs)
        seen = until(ours, b"> ")
        assert b"/help lists the commands" in seen
        os.write(ours, b"Hello\n")
        until(ours, b"abc abc abc ")
        os.write(ours, b"\x03")
        assert b"Ctrl-C once more leaves" in until(ours, b"> ")
        os.write(ours, b"/quit\n")
        assert chatting.wait(timeout=30) == 0
    os.close(ours)


def until(terminal: int, mark: bytes) -> bytes:
    """Reads until `mark` is seen."""
    seen = b""
    while mark not in seen:
        piece = os.read(terminal, 1000)
        assert piece, f"it ended after {seen!r}"
        seen += piece
    return seen


def test_calls_and_answers_are_dim_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    screen = Screen(Terminal(), out, io.StringIO())
    for piece, aside in (("It is ", False), ("[9*", True), ("2 → 18", True), ("]", True), (".", False)):
        screen.reply(piece, aside)
    screen.end_reply()
    assert out.getvalue() == "It is\x1b[2m [9*2 → 18]\x1b[22m.\n"


def test_calls_are_shown_and_saved_through_pipes(make_run: MakeRun, tmp_path: Path) -> None:
    file = tmp_path / "saved.jsonl"
    run = make_run(["a ", CALL, "9*2", END_OF_CALL, END_OF_RESPONSE, "b."])
    assert talk(run, "one", f"/save {file}")[0] == "a [9*2 → 18]b.\n"
    roles = [message["role"] for message in json.loads(file.read_text())["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    (kept,) = read_conversations([str(file)])
    assert kept.messages[2].content == "18"
