"""Token shards: documents as token ids on disk, ready to be mapped into memory.

A token set `train` in a folder is four or five plain files:

    train.tokens.npy    all documents' ids, one after another (uint16, or uint32 for a large vocabulary)
    train.starts.npy    where each document starts, and where the last one ends (int64)
    train.sources.npy   where each document comes from: a place among the manifest's "sources" (int32)
    train.trained.npy   only for conversations: is this token one that the model learns to say? (bool)
    train.json          counts, sources, the tokenizer's hash, and a sha256 of each of the files

Every document begins with <|endoftext|>, so the first real token has something to be predicted from.
The manifest is written last: a set without one was never finished.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pilgrim.core.errors import DataError
from pilgrim.core.files import explained, sha256_file, write_json_atomic

FORMAT = 2  # 1, which no manifest mentions, did not know of which source a document is


@dataclass(frozen=True)
class Document:
    """One document as token ids, with the mask of what is trained (None: everything)."""

    ids: list[int]
    trained: list[bool] | None
    source: str
    bytes: int


@dataclass(frozen=True)
class TokenSet:
    """A token set mapped into memory: only what is read of it is loaded."""

    name: str
    tokens: NDArray[np.unsignedinteger]
    starts: NDArray[np.int64]
    trained: NDArray[np.bool_] | None
    manifest: dict[str, object]
    source_d: NDArray[np.int32] | None = None  # of each document; None: nobody asks for it

    @property
    def source_names(self) -> list[str]:
        """What the numbers in `source_d` mean."""
        return list(dict(self.manifest.get("sources", {})))  # type: ignore[call-overload]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in every document, [documents]."""
        return np.diff(self.starts)

    @property
    def documents(self) -> int:
        return len(self.starts) - 1

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the text that the tokens stand for."""
        return int(str(self.manifest["bytes"]))


def write_token_set(
    folder: Path,
    name: str,
    documents: Iterable[Document],
    vocab_size: int,
    tokenizer: str,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write a token set. `tokenizer` is the hash of the tokenizer that made the ids.

    `origin`, plain JSON, is kept in the manifest: what the set was made of, for who would make it again.
    Raises DataError if there is no document, PilgrimError if the disk is full or writing is not allowed.
    """
    tokens = in_memory(name, documents, vocab_size)
    hashes = {}
    with explained("written", folder / f"{name}.json"):
        folder.mkdir(parents=True, exist_ok=True)
        for kind, array in (
            ("tokens", tokens.tokens),
            ("starts", tokens.starts),
            ("sources", tokens.source_d),
            ("trained", tokens.trained),
        ):
            if array is not None:
                file = folder / f"{name}.{kind}.npy"
                save_array(file, array)
                hashes[file.name] = sha256_file(file)
    manifest = {"format": FORMAT, **tokens.manifest, "tokenizer": tokenizer, "sha256": hashes}
    manifest |= {} if origin is None else {"origin": dict(origin)}
    write_json_atomic(folder / f"{name}.json", manifest)


def in_memory(name: str, documents: Iterable[Document], vocab_size: int) -> TokenSet:
    """The same set without a file. Raises DataError if there is no document."""
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    parts: list[NDArray[np.unsignedinteger]] = []
    masks: list[NDArray[np.bool_]] = []
    lengths, text_bytes, some_untrained = [0], 0, False
    sources, numbers, source_d = dict[str, int](), dict[str, int](), list[int]()
    for document in documents:
        parts.append(np.asarray(document.ids, dtype=dtype))
        some_untrained = some_untrained or document.trained is not None
        masks.append(np.asarray(document.trained or [True] * len(document.ids), dtype=np.bool_))
        lengths.append(len(document.ids))
        text_bytes += document.bytes
        sources[document.source] = sources.get(document.source, 0) + 1
        source_d.append(numbers.setdefault(document.source, len(numbers)))
    if not parts:
        raise DataError(
            f"{name}: there is no document to make a token set from; name at least one non-empty file"
        )
    tokens = np.concatenate(parts)
    manifest = {
        "documents": len(parts),
        "tokens": int(tokens.size),
        "trained_tokens": sum(int(mask.sum()) for mask in masks),
        "bytes": text_bytes,
        "sources": sources,
        "vocab_size": vocab_size,
    }
    return TokenSet(
        name,
        tokens,
        np.cumsum(np.asarray(lengths, dtype=np.int64)),
        np.concatenate(masks) if some_untrained else None,
        manifest,
        np.asarray(source_d, dtype=np.int32),
    )


def save_array(file: Path, array: NDArray[np.generic]) -> None:
    """`np.save`, but a full disk is told with the system's error number, which numpy's error lacks."""
    header = np.lib.format.header_data_from_array_1_0(array)
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        out.write(np.ascontiguousarray(array).data.cast("B"))


def open_token_set(folder: Path, name: str, tokenizer: str | None = None) -> TokenSet:
    """Map a token set into memory, after checking its hashes.

    Raises DataError if it is missing, damaged, of another format, or made by another tokenizer than
    `tokenizer` (a hash).
    """
    manifest_file = folder / f"{name}.json"
    cure = f"delete {folder} and run again to make it anew"
    try:
        manifest = json.loads(manifest_file.read_bytes())
        hashes, made_by = dict(manifest["sha256"]), manifest["tokenizer"]
        kinds = ("tokens", "starts", "sources") if manifest.get("format") == FORMAT else ("tokens", "starts")
        whole = {f"{name}.{kind}.npy" for kind in kinds} <= hashes.keys()
    except FileNotFoundError:
        raise DataError(f"{manifest_file} is missing, so the token set was never finished; {cure}") from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError(f"{manifest_file} is damaged: it does not describe a token set; {cure}")
    if (found := manifest.get("format", 1)) != FORMAT:
        raise DataError(
            f"{manifest_file} is of format {found}, but this version reads and writes format {FORMAT}, "
            f"which knows each document's source; {cure}"
        )
    for file, digest in hashes.items():
        if not (folder / file).exists():
            raise DataError(f"{folder / file} is missing; {cure}")
        if sha256_file(folder / file) != digest:
            raise DataError(
                f"{folder / file} is damaged: its sha256 is not the one in {manifest_file.name}; {cure}"
            )
    if tokenizer is not None and made_by != tokenizer:
        raise DataError(f"{manifest_file} was made with another tokenizer than the run's; {cure}")

    def array(kind: str) -> NDArray[np.generic]:
        mapped: NDArray[np.generic] = np.load(folder / f"{name}.{kind}.npy", mmap_mode="r")
        return mapped

    trained = array("trained") if f"{name}.trained.npy" in hashes else None
    return TokenSet(
        name,
        array("tokens"),  # type: ignore[arg-type]
        array("starts"),  # type: ignore[arg-type]
        trained,  # type: ignore[arg-type]
        manifest,
        array("sources"),  # type: ignore[arg-type]
    )


def bigram_counts(tokens: TokenSet, end_id: int) -> Tensor:
    """How often token w follows token c within a document: fp32 [vocabulary, vocabulary], indexed [c, w].

    What follows a document's last token is `end_id`, as in training. Needs 4 bytes x vocabulary².
    """
    size = int(str(tokens.manifest["vocab_size"]))
    here = torch.from_numpy(tokens.tokens.astype(np.int64))
    following = torch.roll(here, -1)
    following[torch.from_numpy(tokens.starts[1:] - 1)] = end_id
    return torch.bincount(here * size + following, minlength=size * size).view(size, size).float()
