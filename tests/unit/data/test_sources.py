"""Documents from files of all sorts, validation kept apart, and every bad input told in one sentence."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard
from pydantic import ValidationError

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.data.sources import ASSETS, DataSettings, Text, find, read_documents, split

NOBODY = 65534


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """write("a.jsonl", "one", "two") makes a file of documents and returns its name."""

    def write_file(name: str, *documents: str) -> str:
        file = tmp_path / name
        rows = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
        file.write_bytes(zstandard.compress(rows) if name.endswith(".zst") else rows)
        return str(file)

    return write_file


def settings(train: Sequence[str], val: Sequence[str] = (), share: float = 0.0) -> DataSettings:
    return DataSettings(train=tuple(train), val=tuple(val), val_share=share)


def refused(*names: str) -> str:
    with pytest.raises(DataError) as error:
        list(read_documents(names))
    assert "\n" not in str(error.value)
    return str(error.value)


# Reading ------------------------------------------------------------------------------------------


def test_every_kind_of_file(tmp_path: Path, write: Callable[..., str]) -> None:
    (tmp_path / "book.txt").write_text("One.\n\nTwo.\n")
    (tmp_path / "notes.md").write_text("# Käse\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "three", "source": "somewhere"}\n\n{"text": "four"}\n')
    names = [str(tmp_path / name) for name in ("book.txt", "notes.md", "rows.jsonl")]
    names.append(write("small.jsonl.zst", "five"))
    assert list(read_documents(names)) == [
        Text("One.\n\nTwo.\n", "book"),
        Text("# Käse\n", "notes"),
        Text("three", "somewhere"),
        Text("four", "rows"),
        Text("five", "small"),
    ]


def test_documents_without_a_letter_are_passed_over(tmp_path: Path, write: Callable[..., str]) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    documents = read_documents([str(tmp_path / "empty.txt"), write("a.jsonl", "", " \n\t", "x")])
    assert [document.text for document in documents] == ["x"]


def test_bundled_files_have_names_of_their_own() -> None:
    assert find("assets:text/val.jsonl.zst") == ASSETS / "text" / "val.jsonl.zst"


def test_home_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/" + Path(write("a.jsonl", "x")).name) == tmp_path / "a.jsonl"


@pytest.mark.parametrize("name", ["nowhere.txt", "assets:nowhere.jsonl", "."])
def test_no_file(name: str) -> None:
    sentence = refused(name)
    assert sentence.startswith(f"[data] names {name}, but there is no file")
    assert sentence.endswith("mend the path, or make the file")


@pytest.mark.parametrize("name", ["a.pdf", "a.jsonl.gz", "a.json", "a"])
def test_a_kind_of_file_that_can_not_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert "can't be read; use .jsonl, .jsonl.zst, .txt or .md" in refused(str(tmp_path / name))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    assert refused(str(tmp_path / "latin.txt")).endswith(
        "latin.txt: byte 3 is no valid UTF-8; convert the file, say with iconv"
    )
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "x"}\n{"text": "caf\xe9"}\n')
    assert "latin.jsonl, line 2: not UTF-8 text (0xe9 at byte 14)" in refused(str(tmp_path / "latin.jsonl"))


@pytest.mark.parametrize("row", ['{"txt": "a"}', '{"text": 3}', '{"text": null}', '{"text": ["a"]}'])
def test_a_row_without_text(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + row + "\n")
    assert refused(str(tmp_path / "a.jsonl")).endswith(
        'a.jsonl:2: the row has no "text" that is a string; give it one, or drop the row'
    )


def test_a_file_that_must_not_be_read() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to nobody
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "secret.txt").write_text("x")
        (folder / "secret.txt").chmod(0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        try:
            with pytest.raises(PilgrimError, match=r"secret.txt could not be read: Permission denied"):
                list(read_documents([str(folder / "secret.txt")]))
        finally:
            if is_root:
                os.seteuid(0)


# Keeping validation apart -------------------------------------------------------------------------


def texts(documents: Sequence[Text]) -> list[str]:
    return [document.text for document in documents]


def test_a_share_is_held_out_by_the_text_itself(write: Callable[..., str]) -> None:
    documents = [f"Story number {i}." for i in range(2000)]
    held_out = split(settings([write("a.jsonl", *documents)], share=0.1))
    assert not set(texts(held_out.train)) & set(texts(held_out.val))
    assert sorted(texts(held_out.train) + texts(held_out.val)) == sorted(documents)
    assert held_out.left_out == 0
    assert 150 < len(held_out.val) < 250

    # Turned around, spread over files, with others beside them: each falls on the same side.
    again = split(
        settings(
            [write("b.jsonl", *documents[::-2], "More."), write("c.jsonl.zst", *documents[::2])], share=0.1
        )
    )
    assert set(texts(again.val)) - {"More."} == set(texts(held_out.val))

    more = split(settings([write("a.jsonl", *documents)], share=0.2))
    assert set(texts(held_out.val)) < set(texts(more.val))


def test_copies_fall_on_the_same_side(write: Callable[..., str]) -> None:
    """Also those that differ in white space and in case only."""
    documents = [f"Story number {i}." for i in range(200)]
    copies = [text.upper().replace(" ", "\n ") for text in documents]
    found = split(settings([write("a.jsonl", *documents, *copies)], share=0.3))
    alike = [{" ".join(text.lower().split()) for text in texts(side)} for side in (found.train, found.val)]
    assert not alike[0] & alike[1]
    assert len(found.val) == 2 * len(alike[1])


def test_a_training_document_that_is_a_validation_document_is_left_out(write: Callable[..., str]) -> None:
    train = write("train.jsonl", "one", "two", " TWO\n", "three", "four")
    val = write("val.jsonl", "Two", "four", "five")
    found = split(settings([train], [val]))
    assert texts(found.train) == ["one", "three"]
    assert texts(found.val) == ["Two", "four", "five"]
    assert found.left_out == 3


def test_nothing_to_train_on(tmp_path: Path, write: Callable[..., str]) -> None:
    empty, val = tmp_path / "empty.jsonl", write("val.jsonl", "x")
    empty.write_text("")
    for name in (str(empty), write("blank.jsonl", "", " "), write("copies.jsonl", "x", "X")):
        with pytest.raises(DataError) as error:
            split(settings([name], [val]))
        assert str(error.value) == (
            f"[data]: no train document is left of {name}; name files with more text in them"
        )


def test_nothing_to_validate_on(tmp_path: Path, write: Callable[..., str]) -> None:
    train = write("a.jsonl", "x")
    with pytest.raises(DataError, match="no validation document is left of"):
        split(settings([train], [write("blank.jsonl", " ")]))
    with pytest.raises(DataError, match=r"no (train|validation) document is left of"):
        split(settings([train], share=0.5))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": ()}, "names no file to train on"),
        ({"val": ()}, "exactly one of them"),
        ({"val_share": 0.1}, "exactly one of them"),
        ({"val_share": 1.0, "val": ()}, "less than 1"),
    ],
)
def test_settings_that_can_not_be(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DataSettings.model_validate(changes)
