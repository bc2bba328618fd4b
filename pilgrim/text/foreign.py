"""Tokenizers that others trained: the `tokenizer.json` of a Hugging Face folder.

Ours has its special tokens first, no normalizer and Qwen2's split pattern (tokenizer.py). A public model
brings another vocabulary and another order, and often Unicode's NFC; to score it, text must become ids just
as it did when that model was trained. The library `tokenizers` reads the file and does so. Two things are
kept as with ours: no text ever becomes a special token, even if it spells "<|endoftext|>", and nothing is put
in front of it. So the added tokens are taken out before text is encoded, and are there again to decode ids.

Which token begins a document? Every row that is scored begins with one, because nothing predicts a row's
first token. Our models were trained so, with <|endoftext|>. Public Qwen3 models have no such token in their
tokenizer, and name <|endoftext|> as `bos_token_id` in config.json. The first of these is taken:

    tokenizer_config.json   bos_token
    config.json             bos_token_id
    tokenizer.json          the token <|endoftext|>
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from pilgrim.core.errors import DataError
from pilgrim.core.files import read_json
from pilgrim.text.tokenizer import END_OF_TEXT, Tokenizer, refuse_lone_surrogates


class Encoder(Protocol):
    """What scoring needs of a tokenizer: ours has it, and `ForeignTokenizer`."""

    vocab_size: int
    eot_id: int  # what a document begins with

    def encode(self, text: str) -> list[int]: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Iterable[int]) -> str: ...


class ForeignTokenizer:
    """A `tokenizer.json` of any kind, made by `load_tokenizer`."""

    def __init__(self, whole: tokenizers.Tokenizer, text_only: tokenizers.Tokenizer, eot_id: int) -> None:
        """`text_only`: the same without added tokens; `eot_id`: what a document begins with."""
        self._whole, self._text_only = whole, text_only
        self.eot_id = eot_id
        # Ids may have gaps; what counts is the highest one.
        self.vocab_size = max(whole.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, never a special one. Raises DataError for half of a UTF-16 pair."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts at once."""
        for text in texts:
            refuse_lone_surrogates(text, "text")
        found = self._text_only.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens by their name."""
        text: str = self._whole.decode(list(ids), skip_special_tokens=False)
        return text


def load_tokenizer(folder: Path, config: Mapping[str, Any]) -> Encoder:
    """The tokenizer of a Hugging Face folder; `config` is its config.json. Ours, if it is one of ours.

    Raises DataError if there is none, it can't be read, or nothing says what a document begins with.
    """
    file = folder / "tokenizer.json"
    if not file.exists():
        raise DataError(f"{file}: there is no such file; a Hugging Face folder needs its tokenizer")
    try:
        return Tokenizer.load(folder)
    except DataError:
        pass  # not one of ours, or damaged: what follows tells which
    try:
        text = file.read_text(encoding="utf-8")
        tree = json.loads(text)
        whole = tokenizers.Tokenizer.from_str(text)
        text_only = tokenizers.Tokenizer.from_str(json.dumps({**tree, "added_tokens": []}))
    except Exception as error:  # the library raises bare Exceptions for what it doesn't know
        raise DataError(f"{file}: can't be read ({str(error)[:200]}); get the folder again") from None
    return ForeignTokenizer(whole, text_only, _begin_id(folder, config, whole))


def _begin_id(folder: Path, config: Mapping[str, Any], whole: tokenizers.Tokenizer) -> int:
    """The token that a document begins with; see the head of this file."""
    file = folder / "tokenizer_config.json"
    named = (read_json(file) if file.exists() else {}).get("bos_token")
    if isinstance(named, dict):  # as some programs write it
        named = named.get("content")
    for candidate in (named, config.get("bos_token_id"), END_OF_TEXT):
        found = whole.token_to_id(candidate) if isinstance(candidate, str) else candidate
        if isinstance(found, int) and whole.id_to_token(found) is not None:
            return found
    raise DataError(
        f"{folder}: nothing says which token a document begins with; set bos_token_id in config.json to a "
        "token's id, such as that of the one between documents in training"
    )
