"""A trained model as a Hugging Face folder, which transformers, vLLM, llama.cpp's converter and MLX read.

The network is numerically transformers' `Qwen3ForCausalLM` and its parameters already have Qwen3's names,
so exporting is writing files: the shape as config.json, the weights as model.safetensors, the tokenizer
with its chat template, and a model card. No code of ours is needed to use the result. Sliding windows are
the one thing that transformers computes and most other programs pass over in silence; card and export say so.

    runs/pocket/{sft | midtrain | pretrain}/checkpoints  ->  config.json  generation_config.json
                                                             model.safetensors  README.md
    runs/pocket/tokenizer                                ->  tokenizer.json  tokenizer_config.json

The weights are written in fp32 unless bf16 is asked for. fp32 is what was trained, to the bit, so that
results can be compared and training can go on elsewhere; bf16 is half as large and loses what the
training's own bf16 products never saw.

The folder is written under a temporary name and renamed, so it is there whole or not at all. An earlier
export in its place is replaced; anything else that lies there is not touched, and refused.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import CheckpointError, PilgrimError
from pilgrim.core.files import (
    explained,
    read_json,
    sha256_file,
    sync_folder,
    write_atomic,
    write_json_atomic,
)
from pilgrim.export.card import Subject, model_card, window_warning
from pilgrim.infer.load import load_tokenizer, newest_stage
from pilgrim.model.config import ModelConfig
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import Tokenizer

MANIFEST = "pilgrim_export.json"  # what was written, and from where: it marks a folder as an export
TEMPORARY = ".tmp-"

Dtype = Literal["fp32", "bf16"]
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Trained:
    """The newest model of a run, and where in the run it stands."""

    weights: Mapping[str, Tensor]
    config: ModelConfig
    tokenizer: Tokenizer
    stage: str
    step: int
    finished: bool


def export(run_folder: Path, out: Path, dtype: Dtype = "fp32", say: Callable[[str], None] = print) -> Path:
    """Write the newest trained model of a run to the folder `out`, and return that.

    `say` is told, in a sentence each, what is worth knowing: a damaged checkpoint that was passed over, a
    stage that is not finished, windows that other programs overlook. Raises PilgrimError if the run has no
    trained stage, or `out` holds something that is no earlier export.
    """
    trained = newest(run_folder, say)
    if not trained.finished:
        say(f"{run_folder / trained.stage} is not finished; this is its model after step {trained.step}")
    if trained.config.window is not None:
        say(window_warning(trained.config.window))
    name = run_folder.resolve().name
    subject = Subject(
        name, trained.config, TORCH_DTYPES[dtype], run_folder, trained.stage, trained.step, trained.finished
    )
    origin = {"run": name, "stage": trained.stage, "step": trained.step}
    return write_folder(out, trained.weights, trained.config, trained.tokenizer, subject, origin)


def export_weights(
    weights: Mapping[str, Tensor], config: ModelConfig, tokenizer: Tokenizer, out: Path, dtype: Dtype = "fp32"
) -> Path:
    """Write a model that comes from no run: `weights` as `Transformer.weights()` gives them.

    Raises PilgrimError if weights, config and tokenizer don't belong together, or as `export` does.
    """
    subject = Subject(out.resolve().name, config, TORCH_DTYPES[dtype])
    return write_folder(out, weights, config, tokenizer, subject, {})


def newest(run_folder: Path, say: Callable[[str], None]) -> Trained:
    """The last trained stage's newest checkpoint that is whole. Raises CheckpointError if there is none."""
    stage = newest_stage(run_folder)
    found = CheckpointStore(run_folder / stage / "checkpoints").load_latest(say)
    assert found is not None  # the stage has checkpoints; if all were damaged, that was raised
    try:
        config = ModelConfig.model_validate(found.state["model_config"])
    except (KeyError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{found.folder} is not a model that this version knows ({reason}); train it again"
        ) from error
    tokenizer = load_tokenizer(run_folder)
    finished = (run_folder / stage / "DONE.json").exists()
    return Trained(found.tensors["model"], config, tokenizer, stage, found.step, finished)


def write_folder(
    out: Path,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    tokenizer: Tokenizer,
    subject: Subject,
    origin: Mapping[str, Any],
) -> Path:
    """Write all files beside `out`, flush them to the disk, and put them in its place in one go."""
    out = out.resolve()
    refuse_softcap(config)
    _refuse_strangers(out)
    checked = checked_weights(weights, config, tokenizer)
    tensors = {name: t.detach().to("cpu", subject.dtype).contiguous() for name, t in checked.items()}
    temporary = out.with_name(TEMPORARY + out.name)
    with explained("written", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        write_json_atomic(temporary / "config.json", qwen3_config(config, tokenizer, subject.dtype))
        write_json_atomic(temporary / "generation_config.json", _generation_config(tokenizer))
        tokenizer.save(temporary)
        write_atomic(temporary / "README.md", model_card(subject))
        write_atomic(temporary / "model.safetensors", safetensors.torch.save(tensors, {"format": "pt"}))
        with explained("written", out):
            files = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
        write_json_atomic(temporary / MANIFEST, {"format": 1, **origin, "sha256": files})
        with explained("written", out):
            _put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def qwen3_config(config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    """What goes into config.json: the network's shape in Qwen3's words."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.context,
        # The one for programs up to transformers 4, the other for those since 5.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        **_windows(config),
        # Every document begins with <|endoftext|>; a chat's turn ends with <|im_end|>.
        "bos_token_id": tokenizer.eot_id,
        "eos_token_id": tokenizer.im_end_id,
        "pad_token_id": tokenizer.eot_id,
        "dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }


def _windows(config: ModelConfig) -> dict[str, Any]:
    """Sliding windows. transformers counts them as we do: a token sees `sliding_window` tokens with itself.

    `layer_types` says which layer has one; without it, layers from `max_window_layers` on would.
    """
    if config.window is None:
        return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": config.depth}
    return {
        "use_sliding_window": True,
        "sliding_window": config.window,
        "max_window_layers": 0,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in config.windows],
    }


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Generation stops where a turn ends and where a document ends."""
    return {
        "bos_token_id": tokenizer.eot_id,
        "eos_token_id": [tokenizer.im_end_id, tokenizer.eot_id],
        "pad_token_id": tokenizer.eot_id,
    }


def refuse_softcap(config: ModelConfig) -> None:
    """Raises PilgrimError for what no program that runs Qwen3 would compute."""
    if config.softcap is not None:
        raise PilgrimError(
            f"model.softcap = {config.softcap}: Qwen3 bounds no scores, so no program would compute what was "
            "trained; chat with it here, or train without model.softcap"
        )


def checked_weights(
    weights: Mapping[str, Tensor], config: ModelConfig, tokenizer: Tokenizer
) -> Mapping[str, Tensor]:
    """The weights, if they are all that the config asks for, nothing else, and enough for the tokenizer."""
    with torch.device("meta"):  # shapes only, no memory
        expected = Transformer(config).weights()
    cure = "take weights and config from one checkpoint"
    if unmatched := sorted(expected.keys() ^ weights.keys()):
        kind = "lack" if unmatched[0] in expected else "have an unknown"
        raise PilgrimError(f"the weights {kind} {unmatched[0]}; {cure}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise PilgrimError(
                f"the weights of {name} have the shape {list(tensor.shape)}, "
                f"but the config asks for {list(expected[name].shape)}; {cure}"
            )
    if tokenizer.vocab_size > config.vocab_size:
        raise PilgrimError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model only {config.vocab_size}; "
            "take the tokenizer that the model was trained with"
        )
    return weights


def _refuse_strangers(out: Path) -> None:
    """Raises PilgrimError if there is something at `out` that replacing it would lose."""
    if not out.exists():
        return
    if not out.is_dir():
        raise PilgrimError(f"{out} is a file; give the name of a folder")
    there = {path.name for path in out.iterdir()}
    if there and MANIFEST not in there:
        raise PilgrimError(
            f"{out} is not empty, and no earlier export; choose another folder, or empty this one"
        )
    if there:
        foreign = sorted(there - {MANIFEST, *read_json(out / MANIFEST)["sha256"]})
        if foreign:
            raise PilgrimError(
                f"{out} is an earlier export, but also holds {foreign[0]}, which would be lost; "
                "move it away, or choose another folder"
            )


def _put_in_place(temporary: Path, out: Path) -> None:
    """In one go, as far as a file system can: between two renames the earlier export is still beside it."""
    earlier = out.with_name(f"{TEMPORARY}old-{out.name}")
    shutil.rmtree(earlier, ignore_errors=True)
    if out.exists():
        out.rename(earlier)
    temporary.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(earlier, ignore_errors=True)
