"""Token sets: written whole, mapped back as they were, and refused when anything is wrong with them."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.core.files import sha256_file
from pilgrim.data.shards import Document, open_token_set, write_token_set

DOCUMENTS = [
    Document([0, 5, 6], None, "a", 7),
    Document([0, 7], None, "b", 3),
    Document([0, 1, 2, 3], None, "a", 9),
]
TURNS = [
    Document([0, 1, 5], [False, False, True], "talk", 2),
    Document([0, 1, 6, 7], [False, False, True, True], "talk", 4),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_token_set(tmp_path, "train", DOCUMENTS, 300, "tokenizer's hash")
    write_token_set(tmp_path, "chat", TURNS, 300, "tokenizer's hash")
    return tmp_path


def test_what_was_written_comes_back(folder: Path) -> None:
    tokens = open_token_set(folder, "train", "tokenizer's hash")
    assert tokens.tokens.tolist() == [0, 5, 6, 0, 7, 0, 1, 2, 3]
    assert tokens.starts.tolist() == [0, 3, 5, 9]
    assert tokens.lengths.tolist() == [3, 2, 4]
    assert (tokens.documents, tokens.text_bytes, tokens.trained) == (3, 19, None)
    assert isinstance(tokens.tokens, np.memmap)
    assert tokens.manifest["sources"] == {"a": 2, "b": 1}
    assert tokens.source_d is not None
    assert [tokens.source_names[n] for n in tokens.source_d] == ["a", "b", "a"]
    assert tokens.manifest["tokens"] == tokens.manifest["trained_tokens"] == 9


def test_conversations_keep_their_mask(folder: Path) -> None:
    tokens = open_token_set(folder, "chat")
    assert tokens.trained is not None
    assert tokens.trained.tolist() == [False, False, True, False, False, True, True]
    assert tokens.manifest["trained_tokens"] == 3


def test_text_among_conversations_is_trained_whole(tmp_path: Path) -> None:
    write_token_set(tmp_path, "mixed", [DOCUMENTS[0], TURNS[0], DOCUMENTS[1]], 300, "hash")
    tokens = open_token_set(tmp_path, "mixed")
    assert tokens.trained is not None
    assert tokens.trained.tolist() == [True, True, True, False, False, True, True, True]
    assert tokens.manifest["trained_tokens"] == 6


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(300, np.uint16), (65_536, np.uint16), (65_537, np.uint32), (2**20, np.uint32)]
)
def test_ids_take_the_room_they_need(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    largest = vocab_size - 1
    write_token_set(tmp_path, "x", [Document([0, largest], None, "a", 1)], vocab_size, "hash")
    tokens = open_token_set(tmp_path, "x")
    assert tokens.tokens.dtype == dtype
    assert tokens.tokens[-1] == largest


def test_an_empty_corpus(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="val: there is no document to make a token set from; name at least one"
    ):
        write_token_set(tmp_path, "val", [], 300, "hash")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, no_file_beyond: Callable[[int], AbstractContextManager[None]]) -> None:
    with (
        pytest.raises(PilgrimError, match=r"train.json could not be written: the file grew over the limit"),
        no_file_beyond(4096),
    ):
        write_token_set(tmp_path, "train", [Document([0] * 5000, None, "a", 1)], 300, "hash")
    assert not (tmp_path / "train.json").exists()


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("")
    with pytest.raises(PilgrimError, match=r"could not be written"):
        write_token_set(tmp_path / "shards", "train", DOCUMENTS, 300, "hash")


def test_the_documents_are_read_once_and_in_order(tmp_path: Path) -> None:
    write_token_set(tmp_path, "train", iter(DOCUMENTS), 300, "hash")
    assert open_token_set(tmp_path, "train").documents == 3


def test_the_same_documents_give_the_same_files(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    write_token_set(again, "train", DOCUMENTS, 300, "tokenizer's hash")
    for file in again.iterdir():
        assert sha256_file(file) == sha256_file(folder / file.name)


def refused(folder: Path, name: str = "train", tokenizer: str | None = None) -> str:
    with pytest.raises(DataError) as error:
        open_token_set(folder, name, tokenizer)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert "run again" in sentence
    return sentence


def test_a_set_that_was_never_finished(folder: Path) -> None:
    (folder / "train.json").unlink()
    assert "train.json is missing, so the token set was never finished" in refused(folder)


def test_a_set_of_another_tokenizer(folder: Path) -> None:
    assert "made with another tokenizer than the run's" in refused(folder, tokenizer="other")


@pytest.mark.parametrize("kind", ["tokens", "starts", "sources", "trained"])
def test_a_missing_file(folder: Path, kind: str) -> None:
    (folder / f"chat.{kind}.npy").unlink()
    assert f"chat.{kind}.npy is missing" in refused(folder, "chat")


def flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("kind", ["tokens", "starts", "sources", "trained"])
@pytest.mark.parametrize(
    "damage", [flip_last_bit, lambda data: data[:-1], lambda data: data + b"x", lambda data: b""]
)
def test_a_damaged_file(folder: Path, kind: str, damage: Callable[[bytes], bytes]) -> None:
    file = folder / f"chat.{kind}.npy"
    file.write_bytes(damage(file.read_bytes()))
    assert f"chat.{kind}.npy is damaged: its sha256 is not the one in chat.json" in refused(folder, "chat")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"sha256": 3}', "null", '{"sha256": {}, "tokenizer": "x"}']
)
def test_a_damaged_manifest(folder: Path, text: str) -> None:
    (folder / "train.json").write_text(text)
    assert "train.json is" in refused(folder)


def test_a_manifest_with_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "train.json").write_bytes(b"\xff\xfe")
    assert "train.json is" in refused(folder)


def test_writing_a_set_anew_replaces_it(folder: Path) -> None:
    """A mask that the new set doesn't have is not read from the old one's file."""
    write_token_set(folder, "chat", DOCUMENTS[:1], 300, "hash")
    tokens = open_token_set(folder, "chat", "hash")
    assert (tokens.documents, tokens.trained) == (1, None)
    assert set(json.loads((folder / "chat.json").read_text())["sha256"]) == {
        "chat.tokens.npy",
        "chat.starts.npy",
        "chat.sources.npy",
    }


def test_a_set_of_before_sources_were_kept(folder: Path) -> None:
    manifest = json.loads((folder / "train.json").read_text())
    del manifest["format"], manifest["sha256"]["train.sources.npy"]
    (folder / "train.json").write_text(json.dumps(manifest))
    assert "train.json is of format 1, but this version reads and writes format 2" in refused(folder)
