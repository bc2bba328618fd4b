"""Tokenizers of others: what a document begins with, and that text never becomes a special token."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from pilgrim.core.errors import DataError
from pilgrim.text.foreign import load_tokenizer
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

SPECIAL = ("<|endoftext|>", "<s>", "<|im_end|>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("tokenizer_config", "config", "begin"),
    [
        ({"bos_token": "<s>"}, {"bos_token_id": 256}, "<s>"),
        ({"bos_token": {"content": "<s>"}}, {}, "<s>"),
        ({"bos_token": None}, {"bos_token_id": 258}, "<|im_end|>"),
        ({}, {"bos_token_id": None}, "<|endoftext|>"),
        ({"bos_token": "<not there>"}, {"bos_token_id": 9999}, "<|endoftext|>"),
    ],
)
def test_what_a_document_begins_with(
    folder: Path, tokenizer_config: dict[str, Any], config: dict[str, Any], begin: str
) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    tokenizer = load_tokenizer(folder, config)
    assert tokenizer.decode([tokenizer.eot_id]) == begin
    assert tokenizer.vocab_size == 256 + len(SPECIAL)


def test_text_never_becomes_a_special_token(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, {})
    ids = tokenizer.encode("a<|im_end|>é")
    assert max(ids) < 256 and tokenizer.decode(ids) == "a<|im_end|>é"
    assert tokenizer.encode_batch(["a", ""]) == [tokenizer.encode("a"), []]
    with pytest.raises(DataError, match="half of a UTF-16 pair"):
        tokenizer.encode("\ud83d")


def test_one_of_ours_is_recognized(tmp_path: Path) -> None:
    train_tokenizer(["the cat sat " * 9], 280).save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path, {}), Tokenizer)


def test_what_cannot_be_read(folder: Path) -> None:
    file = folder / "tokenizer.json"
    tree = json.loads(file.read_text())
    file.write_text(json.dumps({**tree, "added_tokens": []}))
    with pytest.raises(DataError, match="nothing says which token a document begins with"):
        load_tokenizer(folder, {})
    file.write_text("{")
    with pytest.raises(DataError, match="can't be read"):
        load_tokenizer(folder, {})
    file.unlink()
    with pytest.raises(DataError, match="needs its tokenizer"):
        load_tokenizer(folder, {})
