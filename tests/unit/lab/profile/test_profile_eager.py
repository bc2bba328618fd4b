"""Layers and lines, from a look without the compiler."""

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from pilgrim.lab.profile.eager import layers, parts_of, shapes, sources
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer


def test_a_model_is_taken_apart_down_to_the_parts_of_its_blocks() -> None:
    model = Transformer(ModelSettings(depth=1, width=16, head_size=8, context=8).config(32))
    assert [name for name, _ in parts_of(model)] == [
        "model.embed_tokens",
        "model.layers.0.input_layernorm",
        "model.layers.0.self_attn",
        "model.layers.0.post_attention_layernorm",
        "model.layers.0.mlp",
        "model.norm",
        "lm_head",
    ]


def test_layers_are_timed_forward_and_backward() -> None:
    """A layer that does a thousand times the work takes longer, both ways; hooks are gone after."""

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3000):
                x = x.sin()
            return x

    model = nn.Sequential(Slow(), nn.Tanh())
    x = torch.ones(100, requires_grad=True)

    def step() -> None:
        with record_function("pilgrim.forward"):
            y = model(x).sum()
        with record_function("pilgrim.backward"):
            y.backward()

    slow, quick, rest = layers(model, step, lambda: None)
    assert (slow.name, quick.name) == ("0", "1")
    assert slow.forward_s > quick.forward_s > 0
    assert slow.backward_s and quick.backward_s and slow.backward_s > quick.backward_s > 0
    assert rest.name.startswith("head, loss") and rest.backward_s is not None
    assert not model[0]._forward_hooks and not model[0]._backward_hooks


def test_shapes_of_a_call_and_of_a_trace_are_the_same() -> None:
    a, b = torch.ones(2, 3), torch.ones(())
    assert shapes((a, b, [4, 5], [a, a], 1.0)) == ((2, 3), (2, 3), (2, 3))
    assert shapes(((2, 3), (), (), ((2, 3), (2, 3)))) == ((2, 3), (2, 3), (2, 3))


def test_lines_are_found_forward_and_backward() -> None:
    model = Transformer(ModelSettings(depth=1, width=16, head_size=8, context=8).config(32))
    norm = model.model.norm
    x = torch.ones(4, 16, requires_grad=True)
    found = sources(lambda: norm(x).sum().backward())
    lines = {name: line for (name, _), line in found._exact.items()}
    assert (
        lines["aten::rsqrt"].startswith("pilgrim/model/layers.py:")
        and "RMSNorm.forward" in lines["aten::rsqrt"]
    )
    assert "RMSNorm.forward" in lines["aten::mul"]
