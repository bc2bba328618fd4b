"""A trained model as one GGUF file, which llama.cpp, Ollama and LM Studio read.

GGUF is a list of settings, a list of tensors, and their bytes. llama.cpp knows Qwen3's network, so as for the
Hugging Face folder nothing is computed: settings and tensors only get llama.cpp's names. What its own
converter would refuse is the tokenizer, because it recognizes those by a hash over token ids, and knows none
that was trained at home. It knows the *rule* by which ours splits text, though: it is Qwen2's to the letter,
and the file may say so (`tokenizer.ggml.pre = "qwen2"`). Vocabulary and merges go along, so that the ids are
the same.

    fp32   what was trained, to the bit
    bf16   half as large
    q8_0   a quarter: blocks of 32 weights share a scale, and each is one of 255 steps of it

Vectors (the norms' gains) stay in fp32 in any of them, as llama.cpp wants it.

The file is written under a temporary name and renamed, so it is there whole or not at all.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType, TokenType
from torch import Tensor

from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import explained, sync_file, sync_folder
from pilgrim.export.card import window_warning
from pilgrim.export.huggingface import checked_weights, newest, refuse_softcap
from pilgrim.model.config import ModelConfig
from pilgrim.text.tokenizer import CHAT_TEMPLATE, INNER_MARKS, SPECIAL_TOKENS, Tokenizer

MAGIC = b"GGUF"
TEMPORARY = ".tmp-"
ARCHITECTURE = gguf.MODEL_ARCH.QWEN3

Dtype = Literal["fp32", "bf16", "q8_0"]
FORMATS = {
    "fp32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
BLOCK = 32  # weights that share a scale in q8_0


def export(run_folder: Path, out: Path, dtype: Dtype = "fp32", say: Callable[[str], None] = print) -> Path:
    """Write the newest trained model of a run to the file `out`, and return that.

    `say` is told, in a sentence each, what is worth knowing. Raises PilgrimError if the run has no trained
    stage, if `out` is something else than a GGUF file, or if llama.cpp would compute something else.
    """
    trained = newest(run_folder, say)
    if not trained.finished:
        say(f"{run_folder / trained.stage} is not finished; this is its model after step {trained.step}")
    name = run_folder.resolve().name
    return write_file(out, trained.weights, trained.config, trained.tokenizer, name, dtype)


def write_file(
    out: Path,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    tokenizer: Tokenizer,
    name: str,
    dtype: Dtype = "fp32",
) -> Path:
    """Write `weights`, as `Transformer.weights()` gives them, beside `out`, and put the file in its place."""
    out = out.resolve()
    refuse_softcap(config)
    if config.window is not None:
        raise PilgrimError(f"{out} is not written. {window_warning(config.window)}")
    _refuse_odd_sizes(config, dtype)
    _refuse_strangers(out)
    tensors = checked_weights(weights, config, tokenizer)
    with explained("written", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f"{TEMPORARY}{out.name}-{os.getpid()}")
        try:
            writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[ARCHITECTURE])
            _add_shape(writer, config, name, dtype)
            _add_tokenizer(writer, tokenizer, config.vocab_size)
            _add_tensors(writer, tensors, config, dtype)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            sync_file(temporary)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(out.parent)
    return out


def _add_shape(writer: gguf.GGUFWriter, config: ModelConfig, name: str, dtype: Dtype) -> None:
    writer.add_name(name)
    writer.add_file_type(FORMATS[dtype][1])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.depth)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Vocabulary, merges, and what is special. Rows of the embedding that have no token are called unused."""
    tokens, types = [], []
    for token_id, token in enumerate(tokenizer.spellings()):
        tokens.append(token)
        types.append(_type_of(token_id))
    for unused in range(tokenizer.vocab_size, vocab_size):
        tokens.append(f"<|unused_{unused}|>")
        types.append(TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")  # its name for byte-level BPE
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{left} {right}" for left, right in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.eot_id)  # every document begins with <|endoftext|>,
    writer.add_add_bos_token(False)  # and the chat template writes it by itself
    writer.add_eos_token_id(tokenizer.im_end_id)
    writer.add_eot_token_id(tokenizer.im_end_id)
    writer.add_pad_token_id(tokenizer.eot_id)
    writer.add_chat_template(CHAT_TEMPLATE)


def _type_of(token_id: int) -> TokenType:
    """Marks inside a turn are shown in a reply, as Qwen3's are; the other special tokens are not."""
    if token_id >= len(SPECIAL_TOKENS):
        return TokenType.NORMAL
    return TokenType.USER_DEFINED if SPECIAL_TOKENS[token_id] in INNER_MARKS else TokenType.CONTROL


def _add_tensors(
    writer: gguf.GGUFWriter, tensors: Mapping[str, Tensor], config: ModelConfig, dtype: Dtype
) -> None:
    names = gguf.get_tensor_name_map(ARCHITECTURE, config.depth)
    for name, tensor in tensors.items():
        theirs = names.get_name(name, try_suffixes=(".weight",))
        assert theirs is not None, name
        form = FORMATS[dtype][0] if tensor.ndim == 2 else GGMLQuantizationType.F32
        data = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        writer.add_tensor(theirs, _in_form(data, form), raw_dtype=form)


def _in_form(data: "np.ndarray", form: GGMLQuantizationType) -> "np.ndarray":
    if form == GGMLQuantizationType.F32:
        return data
    quantized: np.ndarray = gguf.quantize(data, form)
    return quantized


def _refuse_odd_sizes(config: ModelConfig, dtype: Dtype) -> None:
    """Rows of a matrix are cut into blocks of 32."""
    sizes = {
        "model.width": config.width,
        "model.mlp_width": config.mlp_width,
        "heads · head_size": config.heads * config.head_size,
    }
    for what, size in sizes.items():
        if dtype == "q8_0" and size % BLOCK:
            raise PilgrimError(
                f"--dtype q8_0 needs rows of a multiple of {BLOCK} weights, and {what} = {size}; take bf16"
            )


def _refuse_strangers(out: Path) -> None:
    """Raises PilgrimError if there is something at `out` that replacing it would lose."""
    if out.is_dir():
        raise PilgrimError(f"{out} is a folder; give the name of a file, such as {out / 'model.gguf'}")
    if out.exists() and out.stat().st_size:
        with out.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise PilgrimError(f"{out} is no GGUF file, and would be lost; choose another name")
