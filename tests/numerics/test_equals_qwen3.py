"""An exported model in transformers: every key in its place, the same logits, the same greedy text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pilgrim.export.huggingface import export_weights
from pilgrim.model.attention import packed_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

CONTEXT = 256
CONTINUATION = 200
SHAPES = {
    "plain": ModelSettings(depth=2, width=64, head_size=32, context=CONTEXT),
    "grouped and tied": ModelSettings(
        depth=3, width=64, head_size=16, kv_heads=2, tied=True, context=CONTEXT
    ),
    "one key head, other constants": ModelSettings(
        depth=2, width=48, head_size=16, kv_heads=1, rope_theta=500_000.0, norm_eps=1e-3, context=CONTEXT
    ),
    "heads wider than the stream": ModelSettings(
        depth=2, width=40, head_size=24, heads=6, kv_heads=3, mlp_width=88, context=CONTEXT
    ),
    "heads narrower than the stream": ModelSettings(
        depth=2, width=56, head_size=8, heads=2, mlp_width=40, tied=True, context=CONTEXT
    ),
    "one layer": ModelSettings(depth=1, context=CONTEXT),
    "windows in two layers of three": ModelSettings(
        depth=4, width=64, head_size=16, kv_heads=2, context=CONTEXT, window=24, window_pattern="SSL"
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat " * 9, "hello, hello " * 9], 288)


Both = tuple[Transformer, Any, dict[str, Any]]


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def both(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Both:
    """Our model, theirs as loaded from the exported folder, and what transformers says of the loading."""
    ours = network(request.param, tokenizer.vocab_size)
    folder: Path = export_weights(
        ours.weights(), ours.config, tokenizer, tmp_path_factory.mktemp("out") / "m"
    )
    load: Any = AutoModelForCausalLM.from_pretrained
    theirs, loading = load(folder, output_loading_info=True)
    return ours, theirs, loading


def network(settings: ModelSettings, vocab_size: int) -> Transformer:
    """Large random weights, gains of the norms too: a slip anywhere shows in the logits."""
    model = Transformer(settings.config(vocab_size))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            spread = 0.3 if p.ndim == 1 else 1.5 * p.shape[1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * spread + (p.ndim == 1))
    return model


def logits(model: Transformer, ids: Tensor) -> Tensor:
    """Of rows that are one document each."""
    return model.logits(model(ids, packed_attention(torch.zeros_like(ids), torch.float32, model.windows)))


def some_ids(vocab_size: int, b: int, t: int) -> Tensor:
    return torch.randint(vocab_size, (b, t), generator=torch.Generator().manual_seed(8))


def test_every_key_finds_its_place(both: Both) -> None:
    ours, theirs, loading = both
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    assert not any(loading.values()), loading
    assert theirs.dtype == torch.float32
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    assert theirs.config.tie_word_embeddings == ours.config.tied
    assert theirs.config.rope_parameters["rope_theta"] == ours.config.rope_theta
    kinds = ["full_attention" if window is None else "sliding_attention" for window in ours.windows]
    assert theirs.config.layer_types == kinds


@torch.no_grad()
def test_logits_are_the_same(both: Both) -> None:
    ours, theirs, _ = both
    ids = some_ids(ours.config.vocab_size, 2, CONTEXT)
    our_logits, their_logits = logits(ours, ids), theirs(ids).logits
    error = (our_logits - their_logits).abs().max() / their_logits.abs().max()
    assert error <= 1e-5
    assert their_logits.std() > 0.5  # it is no comparison of zeros


@torch.no_grad()
def test_the_windows_are_not_a_word_only() -> None:
    """Behind the window's length the same weights without windows say something else, and before not."""
    settings = SHAPES["windows in two layers of three"]
    near, far = (
        network(s, 97)
        for s in (settings, settings.model_copy(update={"window": None, "window_pattern": None}))
    )
    ids = some_ids(97, 1, CONTEXT)
    difference = (logits(near, ids) - logits(far, ids)).abs().amax(-1)[0]
    assert difference[:24].max() < 1e-4
    assert difference[24:].min() > 0.01


@torch.no_grad()
def test_greedy_continuations_are_the_same(both: Both) -> None:
    """Ours anew for every token and without a cache; theirs by `generate`, with its cache."""
    ours, theirs, _ = both
    ids = prompt = some_ids(ours.config.vocab_size, 1, 16)
    for _ in range(CONTINUATION):
        ids = torch.cat([ids, logits(ours, ids)[:, -1].argmax(-1, keepdim=True)], 1)
    theirs.generation_config.eos_token_id = None  # or it would stop there
    continued = theirs.generate(prompt, max_new_tokens=CONTINUATION, do_sample=False)
    assert continued.tolist() == ids.tolist()
    assert len(set(ids[0, 16:].tolist())) > 20  # it is no comparison of loops


@torch.no_grad()
def test_bf16_is_the_rounding_of_every_weight(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours = network(SHAPES["grouped and tied"], tokenizer.vocab_size)
    export_weights(ours.weights(), ours.config, tokenizer, tmp_path / "m", dtype="bf16")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert theirs.dtype == torch.bfloat16
    for name, weight in theirs.named_parameters():
        assert torch.equal(weight, ours.weights()[name].bfloat16()), name
