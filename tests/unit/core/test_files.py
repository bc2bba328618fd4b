"""Files are whole or not there, and what the system refuses is told with a cure."""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.core.files import (
    explain,
    read_json,
    read_jsonl_zst,
    sha256_file,
    write_atomic,
    write_json_atomic,
    write_lines_zst,
)

Limit = Callable[[int], AbstractContextManager[None]]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folders_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_atomic(path, "Grüße")
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["a.txt"]


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path: Path, no_file_beyond: Limit) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    with no_file_beyond(1000), pytest.raises(PilgrimError, match=r"a.bin could not be written: .*limit"):
        write_atomic(path, b"x" * 100_000)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_lines_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "a.jsonl.zst"
    rows = [{"n": n, "text": "Grüße\u2028"} for n in range(3)]
    write_lines_zst(path, (json.dumps(row, ensure_ascii=False) for row in rows))
    assert [row for _, row in read_jsonl_zst(path)] == rows

    def lines() -> Iterator[str]:
        yield "{}"
        raise DataError("line 2 is bad")

    with pytest.raises(DataError, match="line 2 is bad"):
        write_lines_zst(path, lines())
    assert [row for _, row in read_jsonl_zst(path)] == rows and names(path.parent) == ["a.jsonl.zst"]


def test_no_permission_is_told(foreign_folder: Path) -> None:
    for path in (foreign_folder / "old.txt", foreign_folder / "new" / "a.txt"):
        with pytest.raises(
            PilgrimError, match="could not be written: Permission denied; choose another folder"
        ):
            write_atomic(path, "new")
    assert (foreign_folder / "old.txt").read_text() == "old"


def test_a_path_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PilgrimError, match=r"could not be written: .*; check the path"):
        write_atomic(tmp_path / "file" / "a.txt", "x")


def test_a_full_disk_and_a_read_only_one_have_their_cures(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "a.txt"
    full = explain(OSError(errno.ENOSPC, "No space left on device"), path)
    assert full.startswith("the disk is full (") and full.endswith("MB free); make room and start again")
    read_only = explain(OSError(errno.EROFS, "Read-only file system"), path)
    assert read_only.startswith("Read-only file system; choose another folder")


@settings(deadline=None, max_examples=20)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists
    )
)
def test_json_reads_back_to_the_bit(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json_atomic(path, value)
    assert read_json(path) == value


def test_json_holds_what_a_command_line_may(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "a.json", ["caf\udce9"])  # how Python keeps a byte that is no UTF-8
    assert read_json(tmp_path / "a.json") == ["caf\udce9"]


def test_bad_json_and_missing_json_are_told(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for name, sentence in (("bad.json", "bad.json is not valid JSON"), ("no.json", "it does not exist")):
        with pytest.raises(PilgrimError, match=sentence):
            read_json(tmp_path / name)


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea")


ROWS = [{"text": "eins\u2028"}, {"text": "zwei\r"}, {"n": [1.5, None]}]


@pytest.fixture(params=["plain", "one frame", "two frames"])
def rows_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS]
    lines.insert(1, b"\n")
    data = b"".join(lines)
    if request.param == "plain":
        path, stored = tmp_path / "a.jsonl", data
    else:
        cuts = [data] if request.param == "one frame" else [data[:20], data[20:]]
        path, stored = tmp_path / "a.jsonl.zst", b"".join(map(zstandard.compress, cuts))
    path.write_bytes(stored)
    return path


def test_rows_come_with_their_line_numbers(rows_file: Path) -> None:
    assert list(read_jsonl_zst(rows_file)) == list(zip([1, 3, 4], ROWS, strict=True))


def test_rows_longer_than_a_chunk_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "x" * 3_000_000}, {"text": "y"}, {"text": "z" * 1_500_000}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [row for _, row in read_jsonl_zst(path)] == rows


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"text": "\xff"}', r"line 2: not UTF-8 text (0xff at byte 11)"),
        (b'{"text": ', "line 2: not valid JSON"),
        (b"[" * 100_000, "line 2: not valid JSON"),
        (b"[1]", "line 2: list instead of a JSON object"),
        (rb'{"text": "\uD800"}', "line 2: half a surrogate pair"),
    ],
)
def test_a_bad_row_is_told_with_file_and_line(tmp_path: Path, line: bytes, sentence: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(rb'{"text": "\ud83d\ude00"}' + b"\n" + line + b"\n")
    with pytest.raises(DataError) as error:
        list(read_jsonl_zst(path))
    assert f"a.jsonl, {sentence}" in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "not an archive", "missing"])
def test_a_damaged_archive_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.jsonl.zst"
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(b'{"text": "one two three"}\n' * 100)
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    stored = {"cut": whole[:-3], "empty": b"", "flipped": bytes(flipped), "not an archive": b'{"text": "a"}'}
    if damage in stored:
        path.write_bytes(stored[damage])
    with pytest.raises(DataError, match=r"a\.jsonl\.zst (is cut off|is damaged|could not be read)"):
        list(read_jsonl_zst(path))
