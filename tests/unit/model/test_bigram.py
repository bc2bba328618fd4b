"""The bigram beginning: at step 0 the network predicts as a table of counted pairs does."""

import math

import pytest
import torch
from torch import Tensor

from pilgrim.model.attention import causal_attention
from pilgrim.model.bigram import _statistics, begin_as_bigram
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer

VOCABULARY = 48


def counts() -> Tensor:
    """Pairs of a made-up language in which every token prefers a few followers."""
    generator = torch.Generator().manual_seed(7)
    shape = torch.rand(VOCABULARY, 6, generator=generator) @ torch.rand(6, VOCABULARY, generator=generator)
    return (40 * (shape - 1.2).clamp(min=0) ** 2).round()


def begun(width: int, tied: bool = False) -> Transformer:
    model = Transformer(ModelSettings(depth=2, width=width, head_size=16, tied=tied).config(VOCABULARY))
    initialize(model, torch.Generator().manual_seed(1))
    begin_as_bigram(model, counts(), torch.Generator().manual_seed(2))
    return model


def predicted(model: Transformer) -> Tensor:
    """log P(w | c) of the whole network for every single token c, [c, w]."""
    with torch.no_grad():
        hidden = model(torch.arange(VOCABULARY)[:, None], causal_attention)
        return model.logits(hidden)[:, 0].log_softmax(-1)


def test_with_enough_rank_the_network_is_the_smoothed_table() -> None:
    log_unigram, information, _ = _statistics(counts())
    table = log_unigram + information
    assert torch.allclose(table.exp().sum(-1), torch.ones(VOCABULARY), atol=1e-5)
    seen = counts().sum(1) > 0
    difference = (predicted(begun(width=64)) - table)[seen]
    assert difference.abs().mean() < 0.05


def test_it_knows_more_than_nothing_with_little_rank() -> None:
    nats = -(counts() * predicted(begun(width=32))).sum() / counts().sum()
    assert nats < math.log(VOCABULARY) - 0.3


def test_a_tied_model_is_refused() -> None:
    with pytest.raises(ValueError, match="untied"):
        begun(width=32, tied=True)


def test_the_same_seed_begins_alike() -> None:
    assert torch.equal(begun(32).lm_head.weight, begun(32).lm_head.weight)
