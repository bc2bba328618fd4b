"""Each small part against its formula or torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.model.config import ModelSettings
from pilgrim.model.layers import MLP, Linear, RMSNorm, joint_linear, rotary_angles, rotate, softcapped


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs: int, outputs: int, seed: int = 1) -> Linear:
    layer = Linear(inputs, outputs)
    layer.weight.data = draw(outputs, inputs, seed=seed)
    return layer


def test_linear_computes_in_the_dtype_of_its_input() -> None:
    layer, x = linear(6, 4), draw(2, 3, 6, seed=2)
    assert torch.equal(layer(x), x @ layer.weight.T)
    half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    assert torch.equal(half, F.linear(x.bfloat16(), layer.weight.bfloat16()))


def test_a_joint_product_is_the_separate_products() -> None:
    layers = [linear(6, outputs, seed=outputs) for outputs in (4, 2, 2)]
    x = draw(5, 6, seed=9)
    joint = joint_linear(x, *layers)
    for out, layer in zip(joint, layers, strict=True):
        torch.testing.assert_close(out, layer(x))
    torch.cat(joint, -1).square().sum().backward()
    together = [layer.weight.grad for layer in layers]
    for layer in layers:
        layer.zero_grad()
        layer(x).square().sum().backward()
    for ours, layer in zip(together, layers, strict=True):
        torch.testing.assert_close(ours, layer.weight.grad)


def test_bounded_scores_stay_in_their_bounds_and_small_ones_as_they_are() -> None:
    scores = torch.tensor([-1e6, -0.01, 0.0, 0.01, 20.0, 1e6])
    bounded = softcapped(scores, 15.0)
    assert bounded.abs().max() <= 15.0 and bounded[4] < 15.0
    torch.testing.assert_close(bounded[1:4], scores[1:4], rtol=1e-6, atol=0)
    assert softcapped(scores, None) is scores


def test_rmsnorm_is_torchs() -> None:
    norm, x = RMSNorm(8, 1e-5), draw(3, 4, 8)
    norm.weight.data = draw(8, seed=2)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.weight, 1e-5))


def test_rmsnorm_of_zeros_is_zero_and_huge_bf16_does_not_overflow() -> None:
    norm = RMSNorm(8, 1e-6)
    assert torch.equal(norm(torch.zeros(2, 8)), torch.zeros(2, 8))
    huge = torch.full((8,), 3e38, dtype=torch.float32) / 1e20
    assert norm(huge.bfloat16()).isfinite().all()


def test_rmsnorm_is_computed_in_fp32_and_returned_in_the_inputs_dtype() -> None:
    norm, x = RMSNorm(64, 1e-6), draw(7, 64).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), norm(x.float()).bfloat16())


def test_rotation_is_multiplication_by_a_complex_number() -> None:
    """Pair i of the head at position p turns by p · theta^(-2i/d)."""
    x, positions, theta = draw(5, 8), torch.arange(5), 100.0
    turned = rotate(x, *rotary_angles(positions, 8, theta))
    angle = positions[:, None] * torch.tensor([theta ** (-2 * i / 8) for i in range(4)])
    expected = torch.complex(x[:, :4], x[:, 4:]) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1))


def test_rotation_keeps_lengths_and_leaves_position_zero_alone() -> None:
    x = draw(9, 16)
    turned = rotate(x, *rotary_angles(torch.arange(9), 16, 10_000.0))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[0], x[0])


@pytest.mark.parametrize("shift", [1, 17, 400])
def test_scores_depend_only_on_the_distance(shift: int) -> None:
    q, k, positions = draw(6, 16, seed=1), draw(6, 16, seed=2), torch.arange(6)

    def scores(first: int) -> Tensor:
        angles = rotary_angles(positions + first, 16, 10_000.0)
        return rotate(q, *angles) @ rotate(k, *angles).T

    torch.testing.assert_close(scores(0), scores(shift), atol=1e-4, rtol=1e-4)


def test_angles_have_the_shape_of_the_positions() -> None:
    cos, sin = rotary_angles(torch.arange(6).view(2, 3), 4, 10.0)
    assert cos.shape == sin.shape == (2, 3, 4)
    assert cos.dtype == sin.dtype == torch.float32


def test_the_mlp_is_swiglu() -> None:
    mlp = MLP(ModelSettings(depth=1, width=8, mlp_width=12).config(10))
    for i, layer in enumerate((mlp.gate_proj, mlp.up_proj, mlp.down_proj)):
        layer.weight.data = draw(*layer.weight.shape, seed=i)
    x = draw(3, 8)
    gate, up = x @ mlp.gate_proj.weight.T, x @ mlp.up_proj.weight.T
    torch.testing.assert_close(mlp(x), (gate / (1 + (-gate).exp()) * up) @ mlp.down_proj.weight.T)
