"""Adapters change nothing at first, leave what they adapt alone, and are one with it when merged."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.model.attention import causal_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.layers import Linear
from pilgrim.model.lora import Lora, LoraSettings, adapt, adapters, merged
from pilgrim.model.transformer import Transformer

TOLERANCE = 2e-6  # of scores of size 1: fp32's rounding, summed in another order


def network() -> Transformer:
    """Two layers, with no matrix at zero."""
    model = Transformer(ModelSettings(depth=2, width=32, head_size=8, kv_heads=2).config(40))
    dice = torch.Generator().manual_seed(1)
    initialize(model, dice)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=dice) * parameter.shape[1] ** -0.5)
    return model


def adapted(moved: bool = True, **settings: object) -> Transformer:
    """The same, with adapters; `moved`: as after some training."""
    model, dice = network(), torch.Generator().manual_seed(2)
    adapt(model, LoraSettings.model_validate(settings), dice)
    for adapter in adapters(model).values() if moved else ():
        adapter.copy_(torch.randn(adapter.shape, generator=dice) * 0.1)
    return model


def scores(model: Transformer) -> Tensor:
    ids_bt = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(3))
    logits: Tensor = model.logits(model(ids_bt, causal_attention))
    return logits


def test_at_first_nothing_is_changed() -> None:
    assert torch.equal(scores(adapted(moved=False)), scores(network()))


def test_it_is_the_formula() -> None:
    layer, x = Linear(6, 5), torch.randn(3, 6)
    layer.weight.data.normal_()
    layer.lora = Lora(6, 5, LoraSettings(rank=2, alpha=8))
    layer.lora.a.data.normal_()
    layer.lora.b.data.normal_()
    expected = x @ layer.weight.T + 8 / 2 * x @ layer.lora.a.T @ layer.lora.b.T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(F.linear(x, merged(layer)), expected)


@pytest.mark.parametrize("layers", ["all", "attention", "mlp"])
def test_merged_it_is_the_same_network(layers: str) -> None:
    model, plain = adapted(layers=layers), network()
    plain.load_weights(model.weights())
    assert plain.weights().keys() == model.weights().keys()
    for grad in (False, True):  # joined matrix products, and one by one
        with torch.set_grad_enabled(grad):
            difference = (scores(plain) - scores(model)).abs().max()
            assert difference < TOLERANCE * scores(plain).abs().max()
    assert not torch.allclose(scores(model), scores(network()), atol=0.01)


@pytest.mark.parametrize(("layers", "count"), [("all", 14), ("attention", 8), ("mlp", 6)])
def test_which_matrices_are_adapted(layers: str, count: int) -> None:
    model = adapted(layers=layers, rank=3)
    assert len(adapters(model)) == 2 * count
    assert {name for name, p in model.named_parameters() if p.requires_grad} == adapters(model).keys()
    assert any("mlp.gate_proj" in name for name in adapters(model)) == (layers != "attention")


def test_only_adapters_get_a_gradient() -> None:
    model = adapted()
    scores(model).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".lora." in name), name


def test_of_full_rank_it_reaches_any_matrix() -> None:
    """With as many directions as there are, any change of a matrix is a product B A."""
    layer, wanted = Linear(6, 5), torch.randn(5, 6)
    layer.weight.data.normal_()
    layer.lora = Lora(6, 5, LoraSettings(rank=6, alpha=6))
    layer.lora.a.data.copy_(torch.eye(6))
    layer.lora.b.data.copy_(wanted - layer.weight)
    torch.testing.assert_close(merged(layer), wanted)


def test_the_same_draws_make_the_same_adapters() -> None:
    one, other = (adapters(adapted(moved=False)) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(one[name].any() for name in one)
    for name, adapter in one.items():
        if name.endswith(".a"):  # what it makes of a normalized input has about its size
            assert 0.5 < adapter.std() * adapter.shape[1] ** 0.5 < 1.5


def test_weights_of_another_stage_go_in_beside_the_adapters() -> None:
    model = adapted()
    before = {name: adapter.clone() for name, adapter in adapters(model).items()}
    model.load_weights(network().weights())
    assert all(torch.equal(before[name], adapter) for name, adapter in adapters(model).items())
