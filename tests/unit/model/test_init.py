"""How the weights begin: reproducible, at the right sizes, and with every block the identity."""

import math

import pytest
import torch
import torch.nn.functional as F

from pilgrim.model.attention import causal_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer

VOCABULARY = 300


def begun(seed: int = 1, tied: bool = False, depth: int = 2) -> Transformer:
    model = Transformer(ModelSettings(depth=depth, width=64, head_size=16, tied=tied).config(VOCABULARY))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(math.nan)  # what is forgotten shows
    initialize(model, torch.Generator().manual_seed(seed))
    return model


def some_ids(b: int = 4, t: int = 32) -> torch.Tensor:
    return torch.randint(VOCABULARY, (b, t), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_filled_and_a_seed_means_the_same(tied: bool) -> None:
    once, again, other = begun(1, tied), begun(1, tied), begun(2, tied)
    for (name, a), b, c in zip(once.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert a.isfinite().all(), name
        assert torch.equal(a, b), name
        fixed = a.ndim == 1 or name.endswith(("o_proj.weight", "down_proj.weight"))
        assert torch.equal(a, c) == fixed, name


def test_nothing_is_drawn_from_the_global_state() -> None:
    model = begun()
    state = torch.get_rng_state()
    initialize(model, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_loss_is_that_of_a_guess(tied: bool) -> None:
    model, ids = begun(tied=tied), some_ids()
    logits = model.logits(model(ids, causal_attention))
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(VOCABULARY)) < 0.03


def test_every_block_begins_as_the_identity() -> None:
    model, ids = begun(depth=5), some_ids()
    expected = model.model.norm(model.model.embed_tokens(ids))
    assert torch.equal(model(ids, causal_attention), expected)


def test_reading_matrices_keep_the_size_of_a_normalized_input() -> None:
    layer = begun().get_submodule("model.layers.0.self_attn")
    x = torch.randn(2000, 64, generator=torch.Generator().manual_seed(3))
    size = layer.get_submodule("q_proj")(x).square().mean().sqrt().item()
    assert abs(size - 1) < 0.05


def test_a_tied_table_is_one_parameter() -> None:
    model = begun(tied=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    assert model.lm_head.weight.std().item() < 0.03
    untied = begun()
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
