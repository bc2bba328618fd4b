"""An exported GGUF file in llama.cpp: the same ids, the same logits, the same greedy text.

Needs llama-cpp-python, which is compiled while it is installed (7 minutes on two cores), and so is left to
whoever wants it: pip install -e ".[llama]".
"""

import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from odd_texts import FRAGMENTS, odd_conversation, odd_text, odd_tool_row

from pilgrim.core.runtime import Runtime
from pilgrim.export.gguf import write_file
from pilgrim.infer.engine import Engine
from pilgrim.infer.sampling import Sampling
from pilgrim.model.attention import packed_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.text.calls import dumps
from pilgrim.text.chat import messages_from_row, render_prompt
from pilgrim.text.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, Tokenizer, train_tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

CONTEXT = 1024
LONG = 600  # tokens of greedy text: beyond the 512 that llama.cpp reads in one go
SHAPES = {
    "grouped and tied": ModelSettings(
        depth=3, width=64, head_size=16, kv_heads=2, tied=True, context=CONTEXT
    ),
    "untied, other constants": ModelSettings(
        depth=2, width=96, head_size=32, kv_heads=1, rope_theta=500_000.0, norm_eps=1e-3, context=CONTEXT
    ),
    "heads wider than the stream": ModelSettings(
        depth=2, width=64, head_size=32, heads=6, kv_heads=3, mlp_width=96, context=CONTEXT
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["".join(FRAGMENTS) * 3, " ".join(FRAGMENTS) * 3], 400)


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def both(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Transformer, Any]:
    model = Transformer(request.param.config(tokenizer.vocab_size))
    initialize(model, torch.Generator().manual_seed(3))
    with torch.no_grad():  # initialize leaves the last matrices at zero: a network that says nothing
        for parameter in model.parameters():
            draws = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.add_(0.05 * draws)
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_file(file, model.weights(), model.config, tokenizer, "tiny")
    theirs = llama_cpp.Llama(
        str(file),
        n_ctx=CONTEXT,
        n_threads=1,
        logits_all=True,
        verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32,  # its KV cache is fp16 unless told
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
    )
    return model, theirs


def test_the_same_ids_for_odd_texts(both: tuple[Transformer, Any], tokenizer: Tokenizer) -> None:
    dice = random.Random(1)
    for _ in range(300):
        text = odd_text(dice)
        assert both[1].tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text), text


def test_what_looks_like_a_control_token_stays_text(
    both: tuple[Transformer, Any], tokenizer: Tokenizer
) -> None:
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|reserved_0|>"):
        text = f"so {token} there"
        assert both[1].tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)


def test_the_chat_template_gives_the_same_ids(both: tuple[Transformer, Any], tokenizer: Tokenizer) -> None:
    """llama-cpp-python renders the file's template by jinja2, and tokenizes the result."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    theirs = both[1]
    assert theirs.metadata["tokenizer.chat_template"] == CHAT_TEMPLATE
    render = Jinja2ChatFormatter(template=CHAT_TEMPLATE, eos_token="<|im_end|>", bos_token="<|endoftext|>")
    dice = random.Random(2)
    for _ in range(100):
        asked = odd_conversation(dice)[:-1]  # up to the user's last words
        if any(special in message.content for message in asked for special in SPECIAL_TOKENS):
            continue
        turns: Any = [{"role": m.role, "content": m.content} for m in asked]
        prompt = render(messages=turns).prompt
        ids = theirs.tokenize(prompt.encode(), add_bos=False, special=True)
        assert ids == render_prompt(asked, tokenizer)


def test_the_chat_template_gives_the_same_ids_with_tools(
    both: tuple[Transformer, Any], tokenizer: Tokenizer
) -> None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    render = Jinja2ChatFormatter(template=CHAT_TEMPLATE, eos_token="<|im_end|>", bos_token="<|endoftext|>")
    dice = random.Random(3)
    for _ in range(100):
        row = odd_tool_row(dice, waits=True)
        if any(special in dumps(row) for special in SPECIAL_TOKENS):
            continue
        prompt = render(messages=row["messages"], tools=row["tools"]).prompt
        ids = both[1].tokenize(prompt.encode(), add_bos=False, special=True)
        assert ids == render_prompt(messages_from_row(row, "row"), tokenizer)


def test_q8_0_is_rounded_as_llama_cpp_rounds(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Its own quantizer, given our fp32 file, writes the same bytes."""
    model = Transformer(SHAPES["untied, other constants"].config(tokenizer.vocab_size))
    initialize(model, torch.Generator().manual_seed(5))
    write_file(tmp_path / "fp32.gguf", model.weights(), model.config, tokenizer, "tiny")
    write_file(tmp_path / "ours.gguf", model.weights(), model.config, tokenizer, "tiny", "q8_0")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, 1
    files = (str(tmp_path / name).encode() for name in ("fp32.gguf", "theirs.gguf"))
    assert llama_cpp.llama_model_quantize(*files, parameters) == 0
    ours, theirs = (
        {
            tensor.name: (tensor.tensor_type, tensor.data)
            for tensor in gguf.GGUFReader(tmp_path / name).tensors
        }
        for name in ("ours.gguf", "theirs.gguf")
    )
    assert ours.keys() == theirs.keys()
    for name, (form, data) in ours.items():
        assert form == theirs[name][0]
        assert np.array_equal(data, theirs[name][1]), name


def test_the_same_logits(both: tuple[Transformer, Any]) -> None:
    model, theirs = both
    ids = torch.randint(16, model.config.vocab_size, (1, 300), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        attend = packed_attention(torch.zeros_like(ids, dtype=torch.int32), torch.float32, model.windows)
        ours = model.logits(model(ids, attend, dtype=torch.float32))[0].numpy()
    theirs.reset()
    theirs.eval(ids[0].tolist())
    found = np.array(theirs.scores[: ids.shape[1]])
    assert np.abs(found - ours).max() <= 2e-4 * np.abs(ours).max()


def test_the_same_greedy_text_past_512_tokens(both: tuple[Transformer, Any], tokenizer: Tokenizer) -> None:
    model, theirs = both
    prompt = tokenizer.encode("Once upon a time 1234 日本語")
    engine = Engine(model, Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1), rows=1)
    ours = engine.generate([prompt], Sampling(temperature=0, max_tokens=LONG), stop_ids=())[0].ids
    theirs.reset()
    theirs.eval(prompt)
    found: list[int] = []
    for _ in range(LONG):
        found.append(int(np.argmax(theirs.scores[theirs.n_tokens - 1])))
        theirs.eval(found[-1:])
    assert len(ours) == LONG
    assert found == ours
