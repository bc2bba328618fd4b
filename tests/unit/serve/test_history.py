"""Chats are kept as trees: nothing is lost by editing, and what is exported can be imported."""

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.serve.history import LONGEST_TITLE, Chats, NewMessage, NoSuchChat, branch

VENDOR = Path(__file__).parents[3] / "pilgrim" / "serve" / "page" / "vendor"


@pytest.fixture
def chats(tmp_path: Path) -> Chats:
    return Chats(tmp_path / "folder" / "chats.sqlite")


def talk(chats: Chats, *contents: str, title: str = "") -> dict[str, Any]:
    """A chat in which user and assistant take turns."""
    chat = chats.new(title)["id"]
    parent = None
    for number, content in enumerate(contents):
        role = ("user", "assistant")[number % 2]
        parent = chats.add(chat, NewMessage(role, content, parent, {"number": number}))["id"]
    return chats.read(chat)


def contents(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"] for message in messages]


def test_what_is_said_is_kept(chats: Chats) -> None:
    chat = talk(chats, "Hello\n  there", "Hi!", "Bye")
    assert contents(branch(chat)) == ["Hello\n  there", "Hi!", "Bye"]
    assert chat["title"] == "Hello there"
    assert [message["about"] for message in chat["messages"]] == [{"number": n} for n in range(3)]
    assert Chats(chats.file).read(chat["id"]) == chat  # another process


def test_others_on_the_machine_can_not_read_it(chats: Chats) -> None:
    talk(chats, "Hello")
    files = list(chats.file.parent.iterdir())
    assert files and all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_an_edited_message_begins_a_branch_of_its_own(chats: Chats) -> None:
    chat = talk(chats, "Hello", "Hi!", "Tell me a story", "Once")
    first, reply = chat["messages"][:2]
    other = chats.add(chat["id"], NewMessage("user", "A poem, please", reply["id"]))
    now = chats.read(chat["id"])
    assert contents(branch(now)) == ["Hello", "Hi!", "A poem, please"]
    assert len(now["messages"]) == 5 and now["title"] == "Hello"
    back = chats.change(chat["id"], {"leaf": chat["leaf"]})
    assert contents(branch(back)) == contents(branch(chat))
    chats.add(chat["id"], NewMessage("user", "Another beginning"))
    assert contents(branch(chats.read(chat["id"]))) == ["Another beginning"]
    assert other["parent"] == reply["id"] and first["parent"] is None


def test_the_list_has_the_last_changed_first_and_can_be_searched(chats: Chats) -> None:
    dog = talk(chats, "Tell me of a dog", "It was 100% brown_ish.")
    cat = talk(chats, "And of a cat", "Meow", title="Pets")
    chats.add(dog["id"], NewMessage("user", "More", dog["leaf"]))
    assert [chat["id"] for chat in chats.listed()] == [dog["id"], cat["id"]]
    assert [chat["id"] for chat in chats.listed("MEOW")] == [cat["id"]]
    assert chats.listed("meow")[0]["snippet"] == "Meow"
    assert [chat["title"] for chat in chats.listed("pets")] == ["Pets"]
    assert [chat["id"] for chat in chats.listed("0% b")] == [dog["id"]]  # signs of LIKE are plain signs
    assert [chat["id"] for chat in chats.listed("n_i")] == [dog["id"]]
    assert chats.listed("_i_i") == chats.listed("nothing of that") == []


def test_a_snippet_shows_what_is_around_the_words(chats: Chats) -> None:
    talk(chats, "far " * 50 + "needle " + "away " * 50)
    (found,) = chats.listed("needle")
    assert re.fullmatch("…(far |ar |r )?(far )*needle( away)*( awa?y?)?…", found["snippet"])


def test_settings_and_title_change(chats: Chats) -> None:
    chat = talk(chats, "Hello")
    changed = chats.change(chat["id"], {"title": "  A\ntitle " + "x" * 200, "settings": {"top_k": 5}})
    assert changed["title"].startswith("A title x") and len(changed["title"]) == LONGEST_TITLE
    assert changed["settings"] == {"top_k": 5} and changed["leaf"] == chat["leaf"]


def test_a_deleted_chat_leaves_nothing(chats: Chats) -> None:
    chat, other = talk(chats, "secret", "words"), talk(chats, "Hello")
    chats.delete(chat["id"])
    assert [one["id"] for one in chats.listed()] == [other["id"]]
    assert chats.listed("secret") == []
    with sqlite3.connect(chats.file) as db:
        assert db.execute("SELECT count(*) FROM messages").fetchone() == (1,)
    assert talk(chats, "New")["id"] not in (chat["id"], other["id"])  # an old link never opens another chat


@pytest.mark.parametrize(
    "work",
    [
        lambda chats: chats.read(7),
        lambda chats: chats.delete(7),
        lambda chats: chats.change(7, {"title": "x"}),
        lambda chats: chats.add(7, NewMessage("user", "x")),
    ],
)
def test_a_chat_that_is_not_there_is_told(chats: Chats, work: Callable[[Chats], object]) -> None:
    with pytest.raises(NoSuchChat, match="chat 7 does not exist"):
        work(chats)


def test_messages_of_another_chat_are_refused(chats: Chats) -> None:
    one, two = talk(chats, "Hello"), talk(chats, "Bye")
    with pytest.raises(DataError, match=f"parent = {two['leaf']}: chat {one['id']} has no such message"):
        chats.add(one["id"], NewMessage("user", "x", two["leaf"]))
    with pytest.raises(DataError, match="leaf"):
        chats.change(one["id"], {"leaf": two["leaf"], "title": "never"})
    assert chats.read(one["id"]) == one  # wholly or not at all


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(texts, st.integers(0, 5)), min_size=1, max_size=8))
def test_what_is_exported_can_be_imported(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("chats")
    chats, others = Chats(folder / "a.sqlite"), Chats(folder / "b.sqlite")
    talk(others, "Hello")  # so that numbers differ
    chat, ids = chats.new("title", {"a": 1})["id"], list[int | None]([None])
    for content, back in said:
        parent = ids[max(0, len(ids) - 1 - back)]
        ids.append(chats.add(chat, NewMessage("user", content, parent, {"text": content}))["id"])
    assert others.imported(json.loads(json.dumps(chats.exported()))) == 1
    (found, *_) = (one for one in others.listed() if one["title"] == "title")
    before, after = chats.read(chat), others.read(found["id"])
    assert contents(branch(after)) == contents(branch(before))
    shift = after["messages"][0]["id"] - before["messages"][0]["id"]
    for a, b in zip(before["messages"], after["messages"], strict=True):
        assert b["parent"] == (None if a["parent"] is None else a["parent"] + shift)
        assert (a["content"], a["about"], a["created_s"]) == (b["content"], b["about"], b["created_s"])
    assert (after["settings"], after["changed_s"]) == (before["settings"], before["changed_s"])


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ([], "no exported chats"),
        ({"chats": []}, "no exported chats"),
        ({"format": "pilgrim chats", "version": 99, "chats": []}, "version is 99"),
        ({"format": "pilgrim chats", "version": 1}, 'no list called "chats"'),
        ({"format": "pilgrim chats", "version": 1, "chats": [{}]}, "chat 1 has no list"),
        (
            {"format": "pilgrim chats", "version": 1, "chats": [{"messages": [{"id": 1, "role": "user"}]}]},
            'chat 1, message 1 has no "content"',
        ),
        (
            {
                "format": "pilgrim chats",
                "version": 1,
                "chats": [{"messages": [{"id": 1, "role": "system", "content": ""}]}],
            },
            "the role 'system'",
        ),
        (
            {
                "format": "pilgrim chats",
                "version": 1,
                "chats": [{"messages": [{"id": 1, "role": "user", "content": "", "parent": 5}]}],
            },
            "follows message 5",
        ),
        (
            {
                "format": "pilgrim chats",
                "version": 1,
                "chats": [{"messages": [{"id": 1, "role": "user", "content": "", "parent": [1]}]}],
            },
            "follows message",
        ),
        (
            {
                "format": "pilgrim chats",
                "version": 1,
                "chats": [{"messages": [{"id": 1, "role": "user", "content": "\ud800"}]}],
            },
            "half a character",
        ),
    ],
)
def test_a_bad_import_adds_nothing(chats: Chats, data: Any, complaint: str) -> None:
    good = {"messages": [{"id": 3, "role": "user", "content": "good"}]}
    if isinstance(data, dict) and data.get("chats"):
        data = {**data, "chats": [*data["chats"], good]}
    with pytest.raises(DataError, match=complaint):
        chats.imported(data)
    assert chats.listed() == []


@pytest.mark.parametrize(
    "about",
    [
        {"a": "\ud83d"},
        {"a": float("nan")},
        {"a": float("inf")},
        json.loads('{"a":' * 300 + "[]" + "}" * 300),
        {"calls": None},
        {"calls": [{"offset": 1}]},
    ],
)
def test_what_could_not_be_sent_again_is_not_kept(chats: Chats, about: dict[str, Any]) -> None:
    """Else one bad value spoils the list of all chats, or their training rows."""
    chat = chats.new()["id"]
    with pytest.raises(DataError, match=r"take it out|leave it out"):
        chats.add(chat, NewMessage("assistant", "Hi", about=about))
    if "calls" not in about:
        with pytest.raises(DataError, match="take it out"):
            chats.change(chat, {"settings": about})
    assert chats.read(chat)["messages"] == [] and chats.training_rows() == []


@pytest.mark.parametrize(
    "odd",
    [
        {"title": 5},
        {"created_s": float("inf")},
        {"changed_s": float("nan")},
        {"created_s": 10**400},
        {"leaf": [1]},
    ],
)
def test_odd_values_of_an_import_do_no_harm(chats: Chats, odd: dict[str, Any]) -> None:
    message = {"id": [1], "role": "user", "content": "Hi"}
    data = {"format": "pilgrim chats", "version": 1, "chats": [{"messages": [message], **odd}]}
    assert chats.imported(data) == 1
    json.dumps(chats.exported(), allow_nan=False)


def test_training_rows_end_with_an_answer(chats: Chats) -> None:
    talk(chats, "No answer")
    chat = talk(chats, "Hello", "Hi!", "And?")
    chats.change(chat["id"], {"settings": {"system": "Be kind."}})
    assert chats.training_rows() == [
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi!"},
            ],
            "source": "chats",
        }
    ]


def test_calls_of_tools_are_turns_of_training_rows(chats: Chats) -> None:
    chat = chats.new()["id"]
    asked = chats.add(chat, NewMessage("user", "Twice 9? And its half?"))["id"]
    function = {"name": "calculator", "arguments": '{"expression": "9*2"}'}
    calls = [
        {"id": f"call_{at}", "type": "function", "function": function, "result": result, "offset": at}
        for at, result in ((5, "18"), (8, "9"))
    ]
    chats.add(chat, NewMessage("assistant", "It is 18 and 9.", asked, {"calls": calls}))
    _, first, result, second, other, last = chats.training_rows()[0]["messages"]
    assert [first["content"], second["content"], last["content"]] == ["It is", " 18", " and 9."]
    assert first["tool_calls"] == [{"id": "call_5", "type": "function", "function": function}]
    assert result == {"role": "tool", "tool_call_id": "call_5", "content": "18"}
    assert other["content"] == "9" and "tool_calls" not in last


def test_a_file_that_holds_no_chats_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "chats.sqlite"
    file.write_bytes(b"something else, and long enough to be no empty database" * 100)
    before = file.read_bytes()
    with pytest.raises(
        PilgrimError, match=r"chats\.sqlite: file is not a database; .* name another with --chats"
    ):
        Chats(file).listed()
    assert file.read_bytes() == before
    with pytest.raises(PilgrimError, match="can't be kept there"):
        Chats(file / "below").listed()


def test_the_code_of_others_is_unchanged() -> None:
    """As the table beside it says."""
    rows = re.findall(r"`(\w+\.js)`.*`([0-9a-f]{64})`", (VENDOR / "README.md").read_text())
    assert {name for name, _ in rows} == {file.name for file in VENDOR.glob("*.js")}
    for name, digest in rows:
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest
