"""Fetching the public evaluation bundle: the whole of CORE's tasks, 22 of 22.

`pilgrim eval RUN --fetch` takes one zip file from where karpathy/nanochat keeps it (`BUNDLE_URL`, the only
address in the program) and unpacks it below ~/.cache/pilgrim/evals. What goes wrong with downloads:

- **They break off.** What has arrived stays in a `.part` file, and the next try asks for the rest (an HTTP
  range request). A server that doesn't know ranges sends everything again, and the part is begun anew.
- **They are damaged, or not what they were.** The number of bytes must be what the server announced, and
  every member of the zip must have its checksum. The archive's SHA-256 is printed, so that two people can
  tell whether they have the same data, and kept: an archive with another one is refused later.
- **They are half unpacked.** Unpacking goes to a temporary folder that is renamed when it is whole.
- **Archives can hold paths** such as `../../.ssh/config`: only the plain names of data files are taken.
"""

import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from pilgrim.core.errors import DataError
from pilgrim.core.files import CHUNK_BYTES, explained, sha256_file, write_atomic

BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"  # nanochat's evals/core.py
CACHE = Path("~/.cache/pilgrim/evals")
TIMEOUT_S = 30.0  # without a byte
DATA_ENDINGS = (".jsonl", ".yaml", ".csv")


def fetch_bundle(
    folder: Path | None = None,
    url: str = BUNDLE_URL,
    say: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """The folder of the unpacked bundle, fetched unless it is there. `folder`: where to keep it.

    Raises DataError in one sentence if there is no network, or what arrives is damaged.
    """
    folder = (folder or CACHE).expanduser()
    unpacked = folder / "core"
    if unpacked.is_dir():
        return unpacked
    archive, known = folder / "eval_bundle.zip", folder / "eval_bundle.sha256"
    if not archive.exists():
        download(url, archive, say)
    digest = sha256_file(archive)
    if known.exists() and known.read_text(encoding="utf-8").split()[0] != digest:
        archive.unlink()
        raise DataError(
            f"{url} now has the SHA-256 {digest}, which is not the one in {known}: the data has changed, and "
            "scores of then and now can't be compared; delete that file to take the new data"
        )
    unpack(archive, unpacked)
    write_atomic(known, f"{digest}  {url}\n")
    archive.unlink()
    say(f"unpacked into {unpacked}; the archive's SHA-256 was {digest}")
    return unpacked


def download(url: str, file: Path, say: Callable[[str], None]) -> None:
    """Makes `file` of what is at `url`; goes on with `file`.part if a try before broke off."""
    part = file.with_name(file.name + ".part")
    with explained("made", file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    say(f"fetching {url}" + (f", going on after {have:,} bytes" if have else ""))
    try:
        _receive(url, part, have)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the range begins at the end: everything is here
            raise DataError(f"{url}: the server says {error.code} {error.reason}; {_by_hand()}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{url} can't be fetched ({reason}); what has arrived is kept, so try again with a network, "
            f"or {_by_hand()}"
        ) from error
    part.replace(file)


def _receive(url: str, part: Path, have: int) -> None:
    """Append what is missing to `part`. Raises OSError if fewer bytes arrive than were announced."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
        announced = response.headers.get("Content-Length")
        with explained("written", part):
            out = part.open("ab" if goes_on else "wb", buffering=0)
        received = 0
        with out:
            while data := response.read(CHUNK_BYTES):
                with explained("written", part):
                    out.write(data)
                received += len(data)
            os.fsync(out.fileno())
    if announced is not None and received != int(announced):
        raise OSError(f"{received:,} of {announced} bytes arrived")


def unpack(archive: Path, folder: Path) -> None:
    """The archive's data files, below `folder`, all of them or none.

    Raises DataError if it is no whole zip archive. What lies in one folder at its top is moved up.
    """
    with explained("made", folder.parent):
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                path = PurePosixPath(member.filename)
                if path.suffix not in DATA_ENDINGS or path.is_absolute() or ".." in path.parts:
                    continue
                name = path.relative_to(path.parts[0]) if path.parts[0] == "eval_bundle" else path
                target = temporary / name
                with explained("written", target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with packed.open(member) as data, target.open("wb") as out:
                        shutil.copyfileobj(data, out)
        temporary.replace(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        archive.unlink()
        raise DataError(f"{archive} is damaged ({error}) and was removed; fetch it again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _by_hand() -> str:
    return "fetch it elsewhere, unpack it, and give the folder with --data DIR"
