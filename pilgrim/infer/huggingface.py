"""A Hugging Face folder as a model: the other direction of `pilgrim export`.

Our network is numerically `Qwen3ForCausalLM` and uses its parameter names, so a public Qwen3 model, or one
that anybody made with that architecture, is read by translating config.json and copying tensors:

    config.json                                             the shape, in Qwen3's words -> ModelConfig
    model.safetensors, or several with an index             tensors by name -> Transformer
    tokenizer.json, tokenizer_config.json                   text/foreign.py

What Qwen3 may have and our network has not is refused, by name: biases, scaled rotary positions, quantized
weights. A program that passed over such a thing would print a number, and it would be another model's.

Vocabularies are often padded to a round number: the model then has more ids than the tokenizer, whose scores
count in every softmax, as they do elsewhere. A tokenizer with more ids than the model is refused.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pilgrim.core.errors import CheckpointError, DataError
from pilgrim.core.files import read_json
from pilgrim.core.runtime import Runtime
from pilgrim.infer.engine import Engine
from pilgrim.model.config import ModelConfig
from pilgrim.model.transformer import Transformer
from pilgrim.text.foreign import Encoder, load_tokenizer

NATIVE = "Qwen3ForCausalLM"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FORMATS = (torch.float32, torch.bfloat16, torch.float16)
# Our names for what config.json must say.
SHAPE = {
    "vocab_size": "vocab_size",
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "head_size": "head_dim",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}


def load_folder(
    folder: Path, runtime: Runtime, context: int | None = None, rows: int = 32
) -> tuple[Engine, Encoder]:
    """An engine for the model in `folder`, and its tokenizer. `context`: use no more tokens than this.

    The weights are read in the runtime's number format; for a moment they are in memory twice. Raises
    CheckpointError for what is no native model or is damaged, DataError if the tokenizer doesn't fit to it.
    """
    file = folder / "config.json"
    if not file.exists():
        raise CheckpointError(f"{file}: there is no such file; give a Hugging Face folder")
    written = read_json(file)
    config = read_config(written, str(file))
    if context is not None:
        if not 8 <= context <= config.context:
            raise DataError(
                f"--context {context}: {folder.name} was made for 8 to {config.context} tokens; "
                "give a number from there"
            )
        config = config.model_copy(update={"context": context})
    tokenizer = load_tokenizer(folder, written)
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model only "
            f"{config.vocab_size}; they belong to different models, so get the folder again"
        )
    return Engine(load_transformer(folder, config, runtime.dtype), runtime, rows), tokenizer


def read_config(written: Any, place: str) -> ModelConfig:
    """The shape that a config.json describes. Raises CheckpointError if our network can't have it."""
    if not isinstance(written, dict):
        raise CheckpointError(f"{place} holds no table of settings; get the folder again")
    if problem := _not_native(written):
        raise CheckpointError(f"{place}: {problem}; pilgrim reads {NATIVE} and nothing else")
    for name in (*SHAPE.values(), "tie_word_embeddings"):
        if name not in written:
            raise CheckpointError(f"{place} says nothing of {name}; get the folder again")
    shape = {ours: written[theirs] for ours, theirs in SHAPE.items()}
    try:
        config = ModelConfig.model_validate(
            {
                **shape,
                "tied": written["tie_word_embeddings"],
                "rope_theta": _rope(written).get("rope_theta"),
                **_windows(written),
            }
        )
    except (ValidationError, TypeError) as error:
        reason = " ".join(str(error).splitlines()[1:3])
        raise CheckpointError(f"{place}: {reason}; get the folder again") from None
    if min(shape[name] for name in SHAPE) <= 0 or config.heads % config.kv_heads or config.head_size % 2:
        raise CheckpointError(
            f"{place}: num_attention_heads = {config.heads}, num_key_value_heads = {config.kv_heads} and "
            f"head_dim = {config.head_size} make no network (a multiple of the second, an even third, "
            "nothing below 1); get the folder again"
        )
    return config


def _rope(written: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of rotary positions: together since transformers 5, in two places before."""
    scaling = written.get("rope_parameters") or written.get("rope_scaling") or {}
    return {"rope_theta": written.get("rope_theta"), **scaling}


def _not_native(written: Mapping[str, Any]) -> str | None:
    """What our network doesn't have, in a few words; None if it has all."""
    architectures = written.get("architectures")
    if architectures != [NATIVE]:
        return f"architectures = {architectures}"
    if "quantization_config" in written:
        return "quantization_config is set, so the weights are quantized"
    if written.get("attention_bias"):
        return "attention_bias is set, which adds vectors that our attention has not"
    if (act := written.get("hidden_act", "silu")) != "silu":
        return f'hidden_act = "{act}"'
    rope = _rope(written)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        return f'rotary positions are scaled (rope_type = "{kind}")'
    unknown = set(written.get("layer_types") or []) - {"full_attention", "sliding_attention"}
    return f"layer_types has {sorted(unknown)[0]}" if unknown else None


def _windows(written: Mapping[str, Any]) -> dict[str, Any]:
    """Sliding windows, as transformers reads them: `layer_types`, or all layers from a certain one on."""
    window = written.get("sliding_window") if written.get("use_sliding_window") else None
    if window is None:
        return {}
    depth, first = written["num_hidden_layers"], written.get("max_window_layers", 28)
    kinds = written.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(depth)
    ]
    letters = "".join("S" if kind == "sliding_attention" else "L" for kind in kinds)
    if len(letters) != depth:
        raise TypeError(f"\nlayer_types names {len(letters)} layers of {depth}")
    return {"window": window, "window_pattern": letters} if "S" in letters else {}


# Weights ------------------------------------------------------------------------------------------


def load_transformer(folder: Path, config: ModelConfig, dtype: torch.dtype) -> Transformer:
    """The network with the folder's weights, on the CPU in `dtype`.

    Raises CheckpointError for a tensor that is missing, too much, of another shape or number format.
    """
    model = Transformer(config).to(dtype)
    wanted = model.weights()
    missing = set(wanted)
    for place, name, tensor in _tensors(folder):
        if name == HEAD and config.tied:
            _refuse_other_head(place, folder, tensor)
            continue
        if name not in wanted:
            raise CheckpointError(f"{place} has {name}, which {NATIVE} has not; it is another kind of model")
        if tensor.dtype not in FORMATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{place}: {name} is {kind}, so the weights are quantized; get the model in bf16 or fp32"
            )
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{place}: {name} has the shape {list(tensor.shape)}, but config.json asks for "
                f"{list(wanted[name].shape)}; get the folder again"
            )
        wanted[name].copy_(tensor)
        missing.discard(name)
    if missing:
        raise CheckpointError(f"{folder} lacks {sorted(missing)[0]}; get the folder again")
    return model


def _refuse_other_head(place: Path, folder: Path, head: Tensor) -> None:
    """Some folders store the shared matrix twice. That is fine as long as it is the same."""
    for _, name, tensor in _tensors(folder, only=EMBEDDING):
        if name == EMBEDDING and not torch.equal(tensor, head):
            raise CheckpointError(
                f"{place}: {HEAD} is another matrix than {EMBEDDING}, though config.json says "
                "tie_word_embeddings; one of the two is wrong, so get the folder again"
            )


def _tensors(folder: Path, only: str | None = None) -> Iterator[tuple[Path, str, Tensor]]:
    """(file, name, tensor) of all files, one tensor in memory at a time."""
    for file in _files(folder):
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                    if only in (None, name):
                        yield file, name, opened.get_tensor(name)
        except FileNotFoundError:
            raise CheckpointError(f"{file}: there is no such file; get the folder again") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged ({error}); get it again") from None


def _files(folder: Path) -> list[Path]:
    """One file, or those that the index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        return [single]
    written = read_json(index)
    if not isinstance(written, dict) or not isinstance(written.get("weight_map"), dict):
        raise CheckpointError(f"{index} has no weight_map; get the folder again")
    return [folder / name for name in sorted(set(written["weight_map"].values()))]
