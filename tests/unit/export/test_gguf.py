"""The GGUF file, read back with the format's own package: settings, vocabulary, weights to the bit."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from pilgrim.core.errors import PilgrimError
from pilgrim.export.gguf import Dtype, write_file
from pilgrim.model.config import ModelConfig, ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, Tokenizer, train_tokenizer

SHAPE = ModelSettings(depth=2, width=64, head_size=16, kv_heads=2, mlp_width=96, context=64)
TIED = SHAPE.model_copy(update={"tied": True})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat " * 9, "hello, hëllo " * 9], 288)


def network(settings: ModelSettings, vocab_size: int = 288) -> Transformer:
    model = Transformer(settings.config(vocab_size))
    initialize(model, torch.Generator().manual_seed(1))
    return model


def written(
    out: Path, tokenizer: Tokenizer, settings: ModelSettings = SHAPE, dtype: Dtype = "fp32"
) -> tuple[Transformer, gguf.GGUFReader]:
    model = network(settings)
    write_file(out, model.weights(), model.config, tokenizer, "tiny", dtype)
    return model, gguf.GGUFReader(out)


def value(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def as_written(reader: gguf.GGUFReader) -> dict[str, Any]:
    """Every tensor in fp32, in our order of dimensions."""
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def llama_name(name: str, depth: int = 2) -> str:
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, depth).get_name(name, (".weight",))
    assert theirs is not None
    return theirs


def test_the_shape_is_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model, reader = written(tmp_path / "m.gguf", tokenizer)
    config = model.config
    assert value(reader, "general.architecture") == "qwen3"
    for key, expected in {
        "block_count": config.depth,
        "context_length": config.context,
        "embedding_length": config.width,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "rope.freq_base": config.rope_theta,
        "vocab_size": config.vocab_size,
    }.items():
        assert value(reader, f"qwen3.{key}") == expected, key
    assert value(reader, "qwen3.attention.layer_norm_rms_epsilon") == pytest.approx(config.norm_eps)


@pytest.mark.parametrize("settings", [SHAPE, TIED], ids=["untied", "tied"])
def test_the_weights_are_ours_to_the_bit(
    tmp_path: Path, tokenizer: Tokenizer, settings: ModelSettings
) -> None:
    model, reader = written(tmp_path / "m.gguf", tokenizer, settings)
    found = as_written(reader)
    assert found.keys() == {llama_name(name) for name in model.weights()}
    assert ("output.weight" in found) == (not model.config.tied)
    for name, tensor in model.weights().items():
        assert np.array_equal(found[llama_name(name)], tensor.detach().numpy()), name


@pytest.mark.parametrize(("dtype", "worst"), [("bf16", 2**-8), ("q8_0", 1 / 127)])
def test_rounded_weights_are_near(tmp_path: Path, tokenizer: Tokenizer, dtype: Dtype, worst: float) -> None:
    """bf16 is off by 2^-9 of a weight, q8_0 by half a step of its block's scale; vectors by nothing."""
    model, reader = written(tmp_path / "m.gguf", tokenizer, dtype=dtype)
    found = as_written(reader)
    for name, tensor in model.weights().items():
        ours = tensor.detach().numpy()
        off = np.abs(found[llama_name(name)] - ours).max()
        assert off <= (worst * np.abs(ours).max() if ours.ndim == 2 else 0), name
    written(tmp_path / "plain.gguf", tokenizer)
    assert (tmp_path / "m.gguf").stat().st_size < (tmp_path / "plain.gguf").stat().st_size


def test_the_vocabulary_is_ours(tmp_path: Path, tokenizer: Tokenizer) -> None:
    _, reader = written(tmp_path / "m.gguf", tokenizer)
    tokens, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    assert tokens[: len(SPECIAL_TOKENS)] == list(SPECIAL_TOKENS)
    assert len(tokens) == len(types) == tokenizer.vocab_size
    assert value(reader, "tokenizer.ggml.pre") == "qwen2"
    assert [tuple(merge.split(" ")) for merge in value(reader, "tokenizer.ggml.merges")] == tokenizer.merges
    by_kind = {kind: {t for t, k in zip(tokens, types, strict=True) if k == kind} for kind in set(types)}
    assert by_kind[gguf.TokenType.CONTROL] >= {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert "<tool_call>" in by_kind[gguf.TokenType.USER_DEFINED]
    assert value(reader, "tokenizer.ggml.eos_token_id") == tokenizer.im_end_id
    assert value(reader, "tokenizer.ggml.add_bos_token") is False
    assert value(reader, "tokenizer.chat_template") == CHAT_TEMPLATE


def test_rows_without_a_token_are_unused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """An embedding may have more rows than the tokenizer has tokens."""
    model = network(SHAPE, vocab_size=320)
    write_file(tmp_path / "m.gguf", model.weights(), model.config, tokenizer, "tiny")
    types = value(gguf.GGUFReader(tmp_path / "m.gguf"), "tokenizer.ggml.token_type")
    assert types[tokenizer.vocab_size :] == [gguf.TokenType.UNUSED] * (320 - tokenizer.vocab_size)


@pytest.mark.parametrize(
    ("changes", "dtype", "said"),
    [
        ({"window": 16}, "fp32", "llama.cpp"),
        ({"softcap": 20.0}, "fp32", "model.softcap = 20.0"),
        ({"mlp_width": 100}, "q8_0", "model.mlp_width = 100; take bf16"),
    ],
)
def test_what_llama_cpp_would_get_wrong_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, changes: dict[str, Any], dtype: Dtype, said: str
) -> None:
    with pytest.raises(PilgrimError, match=said):
        written(tmp_path / "m.gguf", tokenizer, SHAPE.model_copy(update=changes), dtype)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path, tokenizer: Tokenizer) -> None:
    written(tmp_path / "m.gguf", tokenizer, dtype="bf16")
    written(tmp_path / "m.gguf", tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    (tmp_path / "letter.txt").write_text("Dear reader")
    with pytest.raises(PilgrimError, match=r"letter\.txt is no GGUF file, and would be lost"):
        written(tmp_path / "letter.txt", tokenizer)
    with pytest.raises(PilgrimError, match=r"is a folder; give the name of a file"):
        written(tmp_path, tokenizer)
    assert (tmp_path / "letter.txt").read_text() == "Dear reader"


def test_weights_of_another_model_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    other: ModelConfig = SHAPE.model_copy(update={"depth": 3}).config(288)
    with pytest.raises(PilgrimError, match=r"the weights lack model\.layers\.2"):
        write_file(tmp_path / "m.gguf", network(SHAPE).weights(), other, tokenizer, "tiny")
