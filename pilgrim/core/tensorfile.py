"""One safetensors file, hashed while it is written.

The format is simple enough to be written by hand (https://huggingface.co/docs/safetensors/index#format):

    8 bytes     how long the header is, as a little-endian number
    header      JSON: name -> dtype, shape, first and last byte in what follows; padded with spaces
    the rest    the tensors' bytes, one after another

By hand, because the library's own function makes the whole file in memory first, and knows no hash. Here a
piece of a tensor is hashed and then written while it is still in the processor's cache, so that the hash
costs no second look at the memory and certainly none at the disk. It is also the hash of what was *meant*:
whatever the disk makes of it later is found out.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pilgrim.core.files import CHUNK_BYTES

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
ALIGNMENT = 8  # bytes, of the first tensor


@dataclass(frozen=True)
class Fingerprint:
    """By which a file is known again."""

    size: int  # bytes
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> Fingerprint:
    """Writes `tensors`, which are on the CPU, durably; `notes` go into the header as they are.

    Raises OSError if the disk is full or writing is not allowed.
    """
    return _write(path, _pieces(tensors, notes))


def write_bytes(path: Path, data: bytes) -> Fingerprint:
    """Writes a file durably. Raises OSError as `write_tensors`."""
    return _write(path, [data])


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> Fingerprint:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return Fingerprint(size, digest.hexdigest())


def _pieces(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    # Wide numbers first, so that every tensor begins at a multiple of its numbers' size.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    yield _header(tensors, names, notes)
    for name in names:
        data = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data
        for begin in range(0, len(data), CHUNK_BYTES):
            yield data[begin : begin + CHUNK_BYTES]


def _header(tensors: Mapping[str, Tensor], names: list[str], notes: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(notes)} if notes else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
