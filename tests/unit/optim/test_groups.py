"""Every parameter in exactly one group, the schedule reaches them all, and the state comes back."""

import pytest
import torch
from torch import Tensor

from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers, OptimSettings, kind_of

RATES = {"matrix": 0.02, "embedding": 0.3, "head": 0.01, "norm": 0.005}
SETTINGS = OptimSettings().with_rates(**RATES)


def network(tied: bool = False) -> Transformer:
    model = Transformer(ModelSettings(depth=2, width=16, head_size=8, tied=tied).config(30))
    initialize(model, torch.Generator().manual_seed(1))
    return model


def made(model: Transformer) -> Optimizers:
    return Optimizers(model, SETTINGS, torch.float32, compile=False)


def give_gradients(model: Transformer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def values(model: Transformer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_one_kind(tied: bool) -> None:
    model = network(tied)
    kinds = {name: kind_of(name, p) for name, p in model.named_parameters()}
    assert kinds["model.embed_tokens.weight"] == "embedding"
    assert kinds["model.layers.0.self_attn.q_norm.weight"] == kinds["model.norm.weight"] == "norm"
    assert {kind for name, kind in kinds.items() if "_proj" in name} == {"matrix"}
    assert kinds.get("lm_head.weight", "tied") == ("tied" if tied else "head")
    optimizers = made(model)
    groups = [*optimizers.muon.param_groups, *optimizers.adamw.param_groups]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert {group["base_lr"] for group in groups} == {RATES[kind] for kind in kinds.values()}


def test_a_step_moves_everything_and_clears_the_gradients() -> None:
    model = network()
    before = values(model)
    give_gradients(model, 1)
    made(model).step(multiplier=0.5, momentum=0.9)
    for name, p in model.named_parameters():
        assert not torch.equal(p, before[name]), name
        assert p.grad is None


def test_the_multiplier_scales_every_rate() -> None:
    steps = []
    for multiplier in (1.0, 0.5):
        model = network()
        before = values(model)
        give_gradients(model, 1)
        made(model).step(multiplier, momentum=0.9)
        steps.append({name: p - before[name] for name, p in values(model).items()})
    for name, whole in steps[0].items():
        torch.testing.assert_close(0.5 * whole, steps[1][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_state_goes_on_to_the_same_bits(tied: bool) -> None:
    straight, resumed = network(tied), network(tied)
    optimizers, first_half = made(straight), made(resumed)
    for step in range(1, 5):
        give_gradients(straight, step)
        optimizers.step(1 / step, 0.9)
        if step <= 2:
            give_gradients(resumed, step)
            first_half.step(1 / step, 0.9)
    saved = {name: x.clone() for name, x in first_half.tensors().items()}
    second_half = made(resumed)
    second_half.load(saved)
    for step in (3, 4):
        give_gradients(resumed, step)
        second_half.step(1 / step, 0.9)
    for (name, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert saved.keys() == second_half.tensors().keys() == optimizers.tensors().keys()


def test_the_state_has_the_names_of_the_parameters() -> None:
    model = network()
    give_gradients(model, 1)
    optimizers = made(model)
    assert optimizers.tensors() == {}
    optimizers.step(1.0, 0.9)
    names = {name.rpartition("/")[0] for name in optimizers.tensors()}
    assert names == {name for name, _ in model.named_parameters()}


def test_rates_must_be_resolved() -> None:
    with pytest.raises(ValueError, match="must be resolved"):
        Optimizers(network(), OptimSettings(matrix_lr=0.1), torch.float32, compile=False)


def test_given_rates_stay() -> None:
    settings = OptimSettings(head_lr=0.7).with_rates(**RATES)
    assert (settings.head_lr, settings.matrix_lr) == (0.7, RATES["matrix"])
