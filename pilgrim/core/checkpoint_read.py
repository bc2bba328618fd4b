"""Reading a step of a checkpoint: nothing is believed before its hash is right.

A step's manifest names every file with its size and SHA-256, and carries a hash of itself. So a file that is
cut off, grown, missing, swapped, or differs in one bit is found before any of it is interpreted, and a
manifest from elsewhere says so by its step. The tensors are in safetensors files, which hold numbers and no
code; nothing is ever unpickled.

One process writes `model.safetensors`. Of several, each writes its share: `model-00001-of-00002.safetensors`
and so on. A tensor is in one of them whole, or in several as slices of it, each file telling where its slice
begins, in the words of torch.distributed.checkpoint's own reader of such files (HuggingFaceStorageReader).
Whatever number of processes wrote them, a reader sees whole tensors.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pilgrim.core.errors import CheckpointError, PilgrimError
from pilgrim.core.files import explain, sha256_file
from pilgrim.core.tensorfile import Fingerprint

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state.json"
SHARDING = "DCP_SHARDING_INFO"  # where a file's header says which slices it holds (torch's name for it)
OFFSETS = "saved_offsets"


# The manifest -------------------------------------------------------------------------------------


def manifest_of(step: int, files: Mapping[str, Fingerprint]) -> dict[str, Any]:
    """What `manifest.json` holds."""
    entries = {name: {"size": f.size, "sha256": f.sha256} for name, f in sorted(files.items())}
    content = {"format": FORMAT, "step": step, "files": entries}
    return {**content, "sha256": _digest(content)}


def read_manifest(folder: Path, step: int) -> dict[str, Fingerprint]:
    """The files that a step consists of. Raises CheckpointError if its manifest is damaged or another's."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] == 1 and "sha256" not in manifest:
            raise PilgrimError(
                f"{folder} was written by an earlier version of pilgrim, whose checkpoints this one does not "
                "read; use that version, or give the run another name and train again"
            )
        content = {key: manifest[key] for key in ("format", "step", "files")}
        digest = manifest["sha256"]
        files = {
            name: Fingerprint(entry["size"], entry["sha256"]) for name, entry in content["files"].items()
        }
    except PermissionError as error:
        raise PilgrimError(f"{folder} could not be read: {explain(error, folder / MANIFEST)}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder} is damaged: its {MANIFEST} can't be read ({error})") from None
    if content["format"] != FORMAT or content["step"] != step:
        raise CheckpointError(f"{folder} is damaged: its {MANIFEST} belongs to another step or format")
    if digest != _digest(content):
        raise CheckpointError(f"{folder} is damaged: its {MANIFEST} was changed")
    return files


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verify(path: Path, expected: Fingerprint) -> None:
    """Raises CheckpointError if the file at `path` isn't the one that was written."""
    try:
        if path.stat().st_size != expected.size:
            raise CheckpointError(
                f"{path} is damaged: it has {path.stat().st_size} bytes instead of {expected.size}"
            )
        if sha256_file(path) != expected.sha256:
            raise CheckpointError(f"{path} is damaged: its SHA-256 differs from the manifest's")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except PermissionError as error:
        raise PilgrimError(f"{path} could not be read: {explain(error, path)}") from None
    except OSError as error:
        raise CheckpointError(f"{path} is damaged: {error.strerror}") from None


def stem_of(name: str) -> str:
    """ "model" for `model.safetensors` and for `model-00001-of-00002.safetensors`."""
    return re.sub(r"(-\d{5,}-of-\d{5,})?\.safetensors$", "", name)


# Tensors ------------------------------------------------------------------------------------------


class StoredTensors(Mapping[str, Tensor]):
    """The tensors in some files, by name; each is read when it is asked for.

    A tensor that lies in one piece is mapped into memory rather than read, so that one pays for what one
    looks at, and of many processes each for what it takes.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """The files must have been verified. Raises CheckpointError for one that is no safetensors file."""
        self._pieces: dict[str, list[_Piece]] = {}
        for path in files:
            for piece in _pieces_of(path):
                self._pieces.setdefault(piece.name, []).append(piece)

    def __getitem__(self, name: str) -> Tensor:
        pieces = self._pieces[name]
        if len(pieces) == 1 and pieces[0].shape == self.shape(name):
            return pieces[0].read()
        first = pieces[0].read()
        whole = torch.empty(self.shape(name), dtype=first.dtype)
        for piece in pieces:
            whole[piece.place] = piece.read()
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's, without reading it."""
        ends = zip(*(piece.end for piece in self._pieces[name]), strict=True)
        return tuple(max(end) for end in ends)

    def incomplete(self) -> list[str]:
        """The names of tensors of which a slice is nowhere."""
        return [
            name
            for name, pieces in self._pieces.items()
            if sum(math.prod(piece.shape) for piece in pieces) != math.prod(self.shape(name))
        ]


class _Piece:
    """A tensor, or a slice of it, in a file."""

    def __init__(self, file: Any, name: str, begin: Sequence[int] | None) -> None:
        self._file, self.name = file, name
        self.shape: tuple[int, ...] = tuple(file.get_slice(name).get_shape())
        self.begin = tuple(begin) if begin else (0,) * len(self.shape)
        self.end = tuple(b + n for b, n in zip(self.begin, self.shape, strict=True))
        self.place = tuple(slice(b, e) for b, e in zip(self.begin, self.end, strict=True))

    def read(self) -> Tensor:
        tensor: Tensor = self._file.get_tensor(self.name)
        return tensor


def _pieces_of(path: Path) -> list[_Piece]:
    try:
        file: Any = safe_open(path, framework="pt", device="cpu")
        slices = json.loads((file.metadata() or {}).get(SHARDING, "{}"))
        names: list[str] = file.keys()
        return [_Piece(file, name, slices.get(name, {}).get(OFFSETS)) for name in names]
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
