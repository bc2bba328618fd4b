"""Training in fp8 against its slow twin: round, multiply the rounded numbers in fp32, scale."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pilgrim.core.errors import SettingsError
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch
from pilgrim.infer.engine import Engine
from pilgrim.model.attention import causal_attention
from pilgrim.model.config import ModelConfig, ModelSettings
from pilgrim.model.layers import Linear
from pilgrim.model.precision import fp8_linear, quantize, refuse_odd_sizes, train_in_fp8
from pilgrim.model.transformer import Transformer
from pilgrim.train.losses import token_losses
from pilgrim.train.validation import validate

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
CONFIG = ModelSettings(depth=2, width=64, head_size=16, kv_heads=2, context=32).config(48)
CPU = Runtime(torch.device("cpu"), torch.bfloat16, compile=False, seed=1)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What is left of `x` after a scale for the whole of it, and `dtype`."""
    x8, scale = quantize(x, dtype)
    return x8.float() * scale


def network(config: ModelConfig = CONFIG) -> Transformer:
    model = Transformer(config)
    with torch.no_grad():
        for seed, p in enumerate(model.parameters()):
            p.copy_(draw(*p.shape, seed=seed) * p.shape[-1] ** -0.5 + (p.ndim == 1))
    return model


def off(ours: Tensor, theirs: Tensor) -> float:
    """The difference's length as a share of the whole."""
    return float((ours.detach().float() - theirs.float()).norm() / theirs.float().norm())


@pytest.mark.parametrize(("dtype", "step"), [(E4M3, 2**-4), (E5M2, 2**-3)], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_rounding_keeps_as_many_bits_as_the_format_has(dtype: torch.dtype, step: float, size: float) -> None:
    """Whatever the size of the tensor; and its largest entry is hit exactly, but for the scale's rounding."""
    x = draw(64, 96) * size
    error = (rounded(x, dtype) - x).abs()
    subnormal = float(x.abs().max() / torch.finfo(dtype).max * torch.finfo(dtype).tiny)
    assert (error <= step * x.abs().clamp(min=subnormal) * 1.001).all()
    largest = x.abs().argmax()
    torch.testing.assert_close(rounded(x, dtype).flatten()[largest], x.flatten()[largest])


def test_zeros_stay_and_what_is_not_finite_is_noticed() -> None:
    assert torch.equal(rounded(torch.zeros(3, 3), E4M3), torch.zeros(3, 3))
    for bad in (float("nan"), float("inf")):
        x = torch.ones(3, 3)
        x[1, 1] = bad
        assert not rounded(x, E4M3).isfinite().all()


@pytest.mark.usefixtures("fp8_products")
@pytest.mark.parametrize("tokens", [(16,), (2, 8)], ids=["flat", "rows"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile of torch itself
def test_products_and_gradients_are_those_of_the_rounded_numbers(
    tokens: tuple[int, ...], compiled: bool
) -> None:
    x, weight = draw(*tokens, 64).bfloat16().requires_grad_(), (draw(48, 64, seed=2) * 0.1).requires_grad_()
    d_out = draw(*tokens, 48, seed=3).bfloat16()
    linear: Callable[[Tensor, Tensor], Tensor] = fp8_linear
    if compiled:
        linear = torch.compile(fp8_linear, fullgraph=True, backend="aot_eager")
    out = linear(x, weight)
    d_x, d_weight = torch.autograd.grad(out, (x, weight), d_out)
    assert (out.dtype, d_x.dtype, d_weight.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)

    x8, w8, d8 = rounded(x.detach(), E4M3), rounded(weight.detach(), E4M3), rounded(d_out, E5M2)
    assert off(out, x8 @ w8.T) < 2**-8  # the result is rounded to bf16
    assert off(d_x, d8 @ w8) < 2**-8
    assert off(d_weight, d8.flatten(0, -2).T @ x8.flatten(0, -2)) < 1e-5

    # And against what it stands for: two factors of 3 bits, or of 2 and 3, and errors that partly cancel.
    plain = x.detach().float() @ weight.detach().T
    assert 0.01 < off(out, plain) < 2**-4
    assert 0.01 < off(d_x, d_out.float() @ weight.detach()) < 2**-3
    assert 0.01 < off(d_weight, d_out.float().flatten(0, -2).T @ x.detach().float().flatten(0, -2)) < 2**-3


def batch(config: ModelConfig = CONFIG) -> Batch:
    ids, targets = (
        torch.randint(config.vocab_size, (2, config.context), generator=torch.Generator().manual_seed(seed))
        for seed in (1, 2)
    )
    return Batch(ids, targets, torch.zeros(2, config.context, dtype=torch.int32))


def test_only_the_blocks_linear_layers_change() -> None:
    model = network()
    train_in_fp8(model.model.layers)
    fp8 = {name for name, layer in model.named_modules() if isinstance(layer, Linear) and layer.fp8}
    every = {name for name, layer in model.named_modules() if isinstance(layer, Linear)}
    assert every - fp8 == {"lm_head"}
    assert len(fp8) == 7 * CONFIG.depth


@pytest.mark.usefixtures("fp8_products")
def test_the_whole_gradient_points_where_bf16_s_does() -> None:
    model, directions = network(), []
    for fp8 in (False, True):
        if fp8:
            train_in_fp8(model.model.layers)
        model.zero_grad()
        token_losses(model, batch(), torch.bfloat16).total.backward()
        directions.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
    bf16, eight = directions
    assert bf16.keys() == eight.keys()
    for name, gradient in bf16.items():
        cosine = float(
            torch.nn.functional.cosine_similarity(gradient.flatten(), eight[name].flatten(), dim=0)
        )
        assert 0.95 < cosine < 1, f"{name}: {cosine}"


@pytest.mark.usefixtures("fp8_products")
def test_evaluation_and_replies_are_in_bf16_to_the_bit() -> None:
    plain, model = network(), network()
    train_in_fp8(model.model.layers)
    assert not torch.equal(*(losses(m, batch()) for m in (plain, model)))
    found = [validate(m, [batch()], [1] * 48, token_losses, CPU) for m in (plain, model)]
    assert found[0] == found[1]
    assert model.training  # training goes on in fp8
    ids = batch().inputs_bt
    hidden = [Engine(m, CPU).model(ids, causal_attention, dtype=torch.bfloat16) for m in (plain, model)]
    assert torch.equal(*hidden)


def losses(model: Transformer, rows: Batch) -> Tensor:
    return token_losses(model, rows, torch.bfloat16).each_bt


def test_sizes_that_do_not_fit_are_refused() -> None:
    refuse_odd_sizes(CONFIG, tokens=64)
    with pytest.raises(
        SettingsError, match=r"micro_rows x model.context = 40 must be a multiple of 16; try 48"
    ):
        refuse_odd_sizes(CONFIG, tokens=40)
    odd = ModelSettings(depth=2, width=40, head_size=8).config(48)
    with pytest.raises(SettingsError, match=r"model.width = 40 must be a multiple of 16"):
        refuse_odd_sizes(odd, tokens=64)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs a CUDA GPU with fp8, of compute capability 8.9 or later",
)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_gpu_multiplies_as_the_cpu_does(compiled: bool) -> None:
    x, weight, d_out = draw(256, 512).bfloat16(), draw(768, 512, seed=2) * 0.1, draw(256, 768, seed=3)
    found = []
    for device in ("cpu", "cuda"):
        linear = torch.compile(fp8_linear, fullgraph=True) if compiled and device == "cuda" else fp8_linear
        leaves = [t.to(device).requires_grad_() for t in (x, weight)]
        out = linear(*leaves)
        gradients = torch.autograd.grad(out, leaves, d_out.bfloat16().to(device))
        found.append([t.detach().cpu() for t in (out, *gradients)])
    for ours, theirs in zip(*found, strict=True):
        assert off(theirs, ours) < 0.01  # Hopper adds up with fewer bits
