"""Layers of 8 and 4 bits against their slow twin: the rounded weights in full precision."""

import copy
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from pilgrim.core.errors import SettingsError
from pilgrim.core.runtime import Runtime
from pilgrim.infer.engine import Engine
from pilgrim.infer.quantized import FEW, Fp8Linear, Int4Linear, Int8Linear, Weights, quantized, rounded
from pilgrim.infer.sampling import Sampling
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer

LAYERS: dict[Weights, type[Int8Linear | Int4Linear | Fp8Linear]] = {
    "int8": Int8Linear,
    "int4": Int4Linear,
    "fp8": Fp8Linear,
}
RUNTIME = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)


def some_model(**more: bool) -> Transformer:
    settings = ModelSettings(depth=2, width=64, head_size=16, kv_heads=2, context=64, **more)  # type: ignore[arg-type]
    model = Transformer(settings.config(vocab_size=96))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw) * weight.shape[-1] ** -0.5 * 2)
    return model


@pytest.mark.parametrize("weights", LAYERS)
@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_multiplies_the_rounded_weights(
    weights: Weights, rows: int, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    if weights == "fp8":
        request.getfixturevalue("fp8_products")
    model = some_model()
    weight = model.lm_head.weight.detach().clone()
    weight[3] = 0  # a row without any scale
    with torch.no_grad():
        model.lm_head.weight.copy_(weight)
    layer, slow = LAYERS[weights](weight), rounded(model, weights).lm_head.weight.detach()
    x = torch.randn(2, rows, 64, generator=torch.Generator().manual_seed(rows)).to(dtype)
    fast, expected = layer(x), F.linear(x.float(), slow)
    assert fast.dtype == dtype and fast.shape == expected.shape
    error = (fast.float() - expected).abs().max() / expected.std()
    # bf16 has 8 bits of precision; fp8 rounds the activations, too, to 4.
    assert error < (0.15 if weights == "fp8" else 0.03)


@pytest.mark.parametrize(("weights", "most"), [("int8", 0.01), ("int4", 0.12), ("fp8", 0.04)])
def test_how_far_weights_are_rounded(weights: Weights, most: float) -> None:
    model, whole = some_model(tied=True), some_model(tied=True)
    rounded(model, weights)
    for name, weight in whole.model.layers.named_parameters():
        off = model.model.layers.get_parameter(name) - weight
        assert off.norm() <= most * weight.norm()
    # The embedding is looked up, not multiplied: it stays, even where the head begins as the same tensor.
    assert torch.equal(model.model.embed_tokens.weight, whole.model.embed_tokens.weight)
    assert not torch.equal(model.lm_head.weight, whole.lm_head.weight)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_an_engine_thinks_what_the_rounded_model_thinks(weights: Weights) -> None:
    """Prompts by the product for many rows, steps by the kernel for few; activations in fp32."""
    model, thoughts = some_model(), []
    twin = rounded(copy.deepcopy(model), weights)
    for engine in (Engine(twin, RUNTIME, rows=1), Engine(model, RUNTIME, rows=1, weights=weights)):
        request = engine.submit(list(range(20, 50)), Sampling(temperature=0, max_tokens=12), top_logprobs=1)
        events = []
        while not request.over:
            events += engine.step()
        thoughts.append([event.scores.likeliest[0][1] for event in events[:3] if event.scores])
    assert thoughts[0] == pytest.approx(thoughts[1], abs=0.1)


def test_full_weights_are_left_alone() -> None:
    model = some_model()
    before = {name: weight.clone() for name, weight in model.weights().items()}
    assert quantized(model, "full") is model and rounded(model, "full") is model
    assert all(torch.equal(before[name], weight) for name, weight in model.weights().items())


@pytest.mark.parametrize("weights", [w for w in get_args(Weights) if w != "full"])
def test_what_has_no_kernel_is_refused_in_a_sentence(weights: Weights) -> None:
    odd = Transformer(ModelSettings(depth=1, width=24, head_size=8, context=64).config(vocab_size=97))
    with pytest.raises(SettingsError, match=weights):
        Engine(odd, RUNTIME, weights=weights)
