"""What is shown: whole words, no control characters, and notes apart from replies."""

import io

import pytest

from pilgrim.serve.screen import Screen, Wrap, printable


def wrapped(text: str, width: int, size: int) -> str:
    wrap = Wrap(width)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    return "".join(wrap.feed(piece) for piece in pieces) + wrap.finish()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_break_between_words_however_they_come(size: int) -> None:
    text = "The little dog was sad.\n\nIt had no   ball,\n and no friend."
    assert wrapped(text, 12, size) == "The little\ndog was sad.\n\nIt had no\nball,\n and no\nfriend."


def test_words_are_shown_once_they_are_whole() -> None:
    wrap = Wrap(40)
    assert [wrap.feed(piece) for piece in ("Hel", "lo", " th", "ere", ".\n")] == [
        "",
        "",
        "Hello",
        "",
        " there.\n",
    ]


def test_what_has_no_spaces_is_not_held_back_for_long() -> None:
    wrap = Wrap(40)
    assert "".join(wrap.feed("月") for _ in range(30)).count("月") > 20


def test_wide_characters_take_two_columns() -> None:
    assert wrapped("月月 月月 月月", 10, 1) == "月月 月月\n月月"


def test_control_characters_are_taken_out() -> None:
    assert printable("a\x1b[31mb\x07\r\x9b2J\tc\n") == "a[31mb2J\tc\n"


def test_pipes_get_replies_and_nothing_else() -> None:
    out, notes = io.StringIO(), io.StringIO()
    screen = Screen(io.StringIO("one\r\n\ntwo"), out, notes)
    assert not screen.interactive
    assert [screen.read_line() for _ in range(4)] == ["one", "", "two", None]
    screen.reply("[bold]Hel")
    screen.reply("lo[/bold]\x1b[2J")
    screen.end_reply()
    screen.note("[red]careful[/red]\x1b")
    assert out.getvalue() == "[bold]Hello[/bold][2J\n"
    assert notes.getvalue() == "[red]careful[/red]\n"


def test_bytes_that_are_no_text_are_replaced() -> None:
    source = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8")
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    screen = Screen(source, out, io.StringIO())
    line = screen.read_line()
    assert line == "caf\ufffd"
    screen.reply(line)
    assert raw.getvalue() == b"caf?"
