"""Hugging Face folders that aren't what they should be: one sentence each, before anything is asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pilgrim.core.errors import PilgrimError
from pilgrim.core.runtime import Runtime
from pilgrim.export.huggingface import export_weights
from pilgrim.infer.huggingface import load_folder, read_config
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import train_tokenizer

CPU = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
# config.json of Qwen3-0.6B as it is on the hub (transformers 4's way of saying things).
PUBLIC: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_the_shape_of_a_public_model() -> None:
    config = read_config(PUBLIC, "config.json")
    assert (config.width, config.heads, config.head_size, config.kv_heads) == (1024, 16, 128, 8)
    assert (config.rope_theta, config.norm_eps, config.tied) == (1e6, 1e-6, True)
    assert config.context == 40960 and config.windows == (None,) * 28


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architectures = ['LlamaForCausalLM']; pilgrim reads"),
        ({"attention_bias": True}, "attention_bias is set"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantized"),
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu"'),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 'scaled (rope_type = "yarn")'),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1.0}}, 'scaled (rope_type = "linear")'),
        ({"layer_types": ["linear_attention"] * 28}, "layer_types has linear_attention"),
        ({"num_key_value_heads": 5}, "num_key_value_heads = 5"),
        ({"hidden_size": "big"}, "valid integer"),
        ({"rope_theta": None}, "valid number"),
        ({"head_dim": 0}, "nothing below 1"),
    ],
)
def test_what_is_not_native_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PilgrimError) as caught:
        read_config({**PUBLIC, **changes}, "config.json")
    assert sentence in str(caught.value) and str(caught.value).startswith("config.json")
    assert "\n" not in str(caught.value)


def test_a_setting_that_is_missing_is_named() -> None:
    with pytest.raises(PilgrimError, match=r"config.json says nothing of head_dim"):
        read_config({key: value for key, value in PUBLIC.items() if key != "head_dim"}, "config.json")


def test_windows_without_layer_types_begin_where_max_window_layers_says() -> None:
    windows = {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 26}
    assert read_config({**PUBLIC, **windows}, "c").windows == (None,) * 26 + (512,) * 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["the cat sat on the mat " * 9], 280)
    config = ModelSettings(depth=1, width=32, head_size=16, context=32).config(280)
    model = Transformer(config)
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(seed))
    return export_weights(model.weights(), config, tokenizer, tmp_path / "model")


def change(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def spoil(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        (Q, None, f"lacks {Q}"),
        (Q, torch.zeros(3, 3), f"{Q} has the shape [3, 3], but config.json asks for [32, 32]"),
        (Q, torch.zeros(32, 32, dtype=torch.int8), f"{Q} is int8, so the weights are quantized"),
        ("model.layers.0.self_attn.q_proj.bias", torch.zeros(32), "which Qwen3ForCausalLM has not"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, name: str, tensor: torch.Tensor | None, sentence: str) -> None:
    spoil(folder, name, tensor)
    with pytest.raises(PilgrimError) as caught:
        load_folder(folder, CPU)
    assert sentence in str(caught.value)


def test_a_shared_matrix_may_be_stored_twice_but_not_two(folder: Path) -> None:
    change(folder, tie_word_embeddings=True)
    with pytest.raises(PilgrimError, match=r"lm_head.weight is another matrix than model.embed_tokens"):
        load_folder(folder, CPU)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    spoil(folder, "lm_head.weight", tensors["model.embed_tokens.weight"].clone())
    engine, _ = load_folder(folder, CPU)
    assert engine.model.lm_head.weight is engine.model.model.embed_tokens.weight


def test_files_that_are_not_there_or_broken(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(PilgrimError, match="is damaged"):
        load_folder(folder, CPU)
    file.unlink()
    with pytest.raises(PilgrimError, match="there is no such file"):
        load_folder(folder, CPU)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1.safetensors"}}')
    with pytest.raises(PilgrimError, match=r"part-1.safetensors: there is no such file"):
        load_folder(folder, CPU)
    (folder / "config.json").unlink()
    with pytest.raises(PilgrimError, match="give a Hugging Face folder"):
        load_folder(folder, CPU)


def test_tokenizer_and_context_must_fit(folder: Path) -> None:
    engine, _ = load_folder(folder, CPU, context=16)
    assert engine.config.context == 16
    for context in (7, 33):
        with pytest.raises(PilgrimError, match=r"--context .* was made for 8 to 32 tokens"):
            load_folder(folder, CPU, context)
    change(folder, vocab_size=200)
    with pytest.raises(PilgrimError, match="the tokenizer has 280 tokens and the model only 200"):
        load_folder(folder, CPU)
