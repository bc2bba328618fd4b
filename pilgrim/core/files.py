"""Files that are whole or not there.

A program can be killed between any two instructions, so a file that others rely on is never written
in place. It is written under a temporary name in the same folder, flushed to the disk (fsync), and then
renamed: POSIX makes the rename atomic, so a reader sees the old file or the new one and never half of
one. Flushing the folder afterwards makes the rename itself survive a power cut.

What the system refuses (full disk, no permission, read-only) becomes a `PilgrimError` with a cure.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from pilgrim.core.errors import DataError, PilgrimError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
CHUNK_BYTES = 1 << 20


def write_atomic(path: Path, data: bytes | str, check: Callable[[], None] = lambda: None) -> None:
    """Writes `data` (text as UTF-8) so that `path` is either the old file or the whole new one.

    Missing folders are made. `check` is called last, just before the new file takes the old one's place.
    Raises what that does, and PilgrimError when the disk is full or writing is not allowed; the old file is
    then untouched and nothing is left behind.
    """
    with _replacing(path, check) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


def write_lines_zst(path: Path, lines: Iterable[str], check: Callable[[], None] = lambda: None) -> None:
    """Writes a zstd-compressed text file, atomically, as above, with one line at a time in memory."""
    with (
        _replacing(path, check) as file,
        zstandard.ZstdCompressor().stream_writer(file, closefd=False) as out,
    ):
        for line in lines:
            out.write(line.encode("utf-8") + b"\n")


@contextmanager
def _replacing(path: Path, check: Callable[[], None]) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when the block has come to its end."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with explained("written", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            check()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json_atomic(path: Path, value: Any, check: Callable[[], None] = lambda: None) -> None:
    """Writes `value` as indented JSON, atomically, as above. Floats read back to the same bits."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    data = text.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes its JSON escape
    write_atomic(path, data, check)


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises PilgrimError when it is missing or not JSON."""
    with explained("read", path):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PilgrimError(f"{path} is not valid JSON ({error}); mend it or remove it") from None


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Returns when the file's bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Returns when the folder's entries (new files, renames) are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(done: str, path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a PilgrimError: `{path} could not be {done}: why; cure`."""
    try:
        yield
    except OSError as error:
        raise PilgrimError(f"{path} could not be {done}: {explain(error, path)}") from error


def explain(error: OSError, path: Path) -> str:
    """Why the system refused, and what to do about it, as half a sentence."""
    if error.errno in FULL:
        return f"the disk is full ({_free(path)}); make room and start again"
    if error.errno == errno.EFBIG:
        return "the file grew over the limit for this process (ulimit -f); raise it and start again"
    if error.errno in FORBIDDEN:
        return f"{error.strerror}; choose another folder or change the permissions of {path.parent}"
    if error.errno == errno.ENOENT:
        return "it does not exist; check the path"
    return f"{error.strerror or error}; check the path and the disk"


def _free(path: Path) -> str:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB free"


# Rows of JSON -------------------------------------------------------------------------------------


def read_jsonl_zst(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, row) of a `.jsonl` or zstd-compressed `.jsonl.zst` file.

    Empty lines are passed over. Raises DataError, naming file and line, for invalid UTF-8, bad JSON, a row
    that is no object, text that can't be encoded (half a surrogate pair), and a truncated or damaged
    archive.
    """
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield number, _row(line, f"{path}, line {number}")


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
        if rb"\ud" in line.lower():  # an escaped surrogate; alone, it is no character
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        bad = f"0x{line[error.start]:02x} at byte {error.start + 1}"
        raise DataError(f"{place}: not UTF-8 text ({bad}); save the file as UTF-8") from None
    except UnicodeEncodeError:
        raise DataError(rf"{place}: half a surrogate pair (\ud...) is no character; remove it") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error}); each line must hold one JSON object") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: {type(row).__name__} instead of a JSON object; write {{...}} on each line")
    return row


def _lines(path: Path) -> Iterator[bytes]:
    """Lines without their newline; only \\n ends a line, as JSON Lines has it."""
    rest = b""
    for chunk in _chunks(path):
        first, *others = chunk.split(b"\n")
        rest += first
        for line in others:
            yield rest
            rest = line
    if rest:
        yield rest


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            raw = iter(lambda: file.read(CHUNK_BYTES), b"")
            yield from _decompress(raw, path) if path.suffix == ".zst" else raw
    except OSError as error:
        raise DataError(f"{path} could not be read: {explain(error, path)}") from error


def _decompress(raw: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """An archive is one or more zstd frames; a stream reader would take a cut-off one for a whole one."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        for data in raw:
            while data:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data
    except zstandard.ZstdError as error:
        raise DataError(f"{path} is damaged ({error}); fetch or make it again") from None
    if not frame.eof:
        raise DataError(f"{path} is cut off; fetch or make it again")
