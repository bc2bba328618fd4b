"""The engine's network against the model's own forward, its slow twin."""

import copy

import pytest
import torch

from pilgrim.infer.network import Network
from pilgrim.model.attention import causal_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer

SHAPES = {
    "grouped": ModelSettings(depth=2, width=32, head_size=8, heads=4, kv_heads=2, context=64),
    "tied, capped, wide heads": ModelSettings(
        depth=2, width=32, head_size=32, heads=3, kv_heads=3, context=64, tied=True, softcap=5.0
    ),
}


def some_model(settings: ModelSettings, seed: int = 1) -> Transformer:
    model = Transformer(settings.config(vocab_size=96))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw) * weight.shape[-1] ** -0.5 * 2)
    return model


@torch.no_grad()
def both(model: Transformer, network: Network, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(96, (40,), generator=torch.Generator().manual_seed(2))
    slow = model.logits(model(ids[None], causal_attention, torch.arange(40)[None], dtype))[0]
    return slow, network.scores(network.hidden(ids, torch.arange(40), causal_attention))


@pytest.mark.parametrize("name", SHAPES)
def test_it_computes_what_the_model_does(name: str) -> None:
    model = some_model(SHAPES[name])
    slow, fast = both(model, Network(model), torch.float32)
    assert torch.allclose(slow, fast, atol=1e-4)
    model = copy.deepcopy(model).bfloat16()
    slow, fast = both(model, Network(model), torch.bfloat16)
    assert (slow - fast).float().abs().mean() < 0.02 * slow.float().std()


@pytest.mark.parametrize("name", SHAPES)
def test_its_weights_are_the_models(name: str) -> None:
    """Joining them takes no memory, and other weights in the model are other weights here."""
    model, other = some_model(SHAPES[name]), some_model(SHAPES[name], seed=9)
    before = {key: weight.clone() for key, weight in model.weights().items()}
    network = Network(model)
    assert all(torch.equal(before[key], weight) for key, weight in model.weights().items())
    model.load_weights(other.weights())
    slow, _ = both(other, network, torch.float32)
    _, fast = both(model, network, torch.float32)
    assert torch.allclose(slow, fast, atol=1e-4)
