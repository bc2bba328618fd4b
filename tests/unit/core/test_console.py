"""The console: plain lines where there is no terminal, a bar that fits where there is one."""

import io

import pytest

from pilgrim.core import console as module
from pilgrim.core.console import Console


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


def walk(console: Console) -> None:
    console.stage("pretrain", "300 steps of 8,192 tokens")
    with console.progress(300, "steps", start=100) as progress:
        progress.advance(100, loss=1.93125, bpb=1.0234)
        console.say("a [bold]sample\x1b[31m of é")
        progress.advance(100, tokens_per_s=9712.3, grad=0.123456)


def test_without_a_terminal_there_are_plain_lines() -> None:
    out = io.StringIO()
    walk(Console(file=out))
    stage, sample, last = out.getvalue().splitlines()
    assert stage == "== pretrain: 300 steps of 8,192 tokens"
    assert sample == "a [bold]sample[31m of é"
    assert last == "   300/300 steps  loss 1.931 bpb 1.0234 9,712 tok/s grad 0.1235  0:00"


def test_shares_of_the_peak_are_told_as_percent() -> None:
    out = io.StringIO()
    with Console(file=out).progress(2, "steps") as progress:
        progress.advance(2, tokens_per_s=98765.4, mfu=0.612, mfu_spec=0.4949)
    assert out.getvalue().strip() == "2/2 steps  98,765 tok/s 61% MFU (49% of spec)  0:00"


def test_plain_lines_come_no_faster_than_one_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("pilgrim.core.console.time.monotonic", lambda: now_s)
    out = io.StringIO()
    with Console(file=out).progress(100, "steps") as progress:
        for _ in range(100):
            now_s += 36.6 / 100
            progress.advance(loss=2.0)
    assert out.getvalue().splitlines() == [
        "   28/100 steps  loss 2.000  0:10, 0:26 left",
        "   56/100 steps  loss 2.000  0:20, 0:16 left",
        "   84/100 steps  loss 2.000  0:31, 0:06 left",
        "   100/100 steps  loss 2.000  0:37",
    ]


def test_a_terminal_gets_one_bar_that_fits_into_80_columns(terminal: Terminal) -> None:
    walk(Console(file=terminal))
    last = terminal.getvalue().split("\r")[-1]
    for part in ("pretrain", "━", "300/300 steps", "loss 1.931 bpb 1.0234 9,712 tok/s", "0:00"):
        assert part in last
    assert "…" not in last
    assert "[bold]sample[31m of é" in terminal.getvalue(), "samples are text, not markup or escapes"


def test_a_terminal_that_does_not_move_gets_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    walk(Console(file=terminal))
    assert "300/300 steps" in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()


def test_an_output_that_knows_only_ascii_gets_question_marks() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Console(file=out).say("Grüße")
    assert raw.getvalue() == b"Gr??e\n"


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    walk(Console(quiet=True))
    assert capsys.readouterr().out == ""


def test_hours_are_shown_when_there_are_any() -> None:
    assert [module._clock(seconds) for seconds in (0.2, 59.7, 3600, 7325)] == [
        "0:00",
        "1:00",
        "1:00:00",
        "2:02:05",
    ]
