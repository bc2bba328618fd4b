"""Rounded state: how far off it is, that nothing is lost on average, and that it resumes to the same bits."""

import math

import pytest
import torch
from torch import Tensor, nn

from pilgrim.core import machine
from pilgrim.core.compiling import compiled
from pilgrim.core.errors import ChangedRecipe
from pilgrim.optim.groups import Optimizers, OptimSettings
from pilgrim.optim.state import BLOCK, LEVELS, OCTAVES, Format, empty, read, stored, write

FORMATS: list[Format] = ["bf16", "8bit"]
SHAPES = [(), (1,), (7,), (256,), (3, 100), (40, 64), (2, 3, 129)]


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def there_and_back(values: Tensor, form: Format, signed: bool = True, step: int = 1) -> Tensor:
    state = empty("x", values, form)
    write(values, stored(state, "x"), signed, torch.tensor(float(step)))
    return read(stored(state, "x"), signed)


def level_ratio(signed: bool) -> float:
    """From one level of the 8-bit code to the next."""
    return float(2 ** (OCTAVES[signed] / LEVELS[signed]))


# One rounding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", [*FORMATS, "fp32"])
@pytest.mark.parametrize("signed", [True, False])
def test_zeros_stay_zeros_and_shapes_stay_shapes(shape: tuple[int, ...], form: Format, signed: bool) -> None:
    zeros = torch.zeros(shape)
    state = empty("x", zeros, form)
    assert torch.equal(read(stored(state, "x"), signed), zeros)
    back = there_and_back(zeros, form, signed)
    assert torch.equal(back, zeros) and back.dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_is_kept_as_it_is(shape: tuple[int, ...]) -> None:
    values = draw(*shape)
    assert torch.equal(there_and_back(values, "fp32"), values)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_8bit_is_within_one_level(shape: tuple[int, ...], signed: bool, scale: float) -> None:
    """Over four orders of magnitude within a block, and with the sign kept."""
    values = draw(*shape).sign() * 10 ** -draw(*shape, seed=2).abs().clamp(max=4) * scale
    values = values if signed else values.abs()
    ratio = there_and_back(values, "8bit", signed) / values
    assert (ratio > 0).all()
    assert ratio.log().abs().max() <= math.log(level_ratio(signed)) * 1.001


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_bf16_is_within_one_step(scale: float) -> None:
    values = draw(40, 64) * scale
    assert ((there_and_back(values, "bf16") / values) - 1).abs().max() <= 2**-7


def test_what_bf16_holds_it_keeps() -> None:
    values = torch.cat([draw(100).bfloat16().float(), torch.tensor([math.inf, -math.inf, 0.0])])
    for step in range(5):
        assert torch.equal(there_and_back(values, "bf16", step=step), values)
    assert there_and_back(torch.tensor([math.nan]), "bf16").isnan().all()


def test_the_largest_of_each_block_is_exact_and_blocks_do_not_meddle() -> None:
    values = draw(4 * BLOCK)
    values[BLOCK] = 1e10
    back = there_and_back(values, "8bit")
    for i in range(4):
        block = slice(i * BLOCK, (i + 1) * BLOCK)
        at = values[block].abs().argmax()
        assert back[block][at] == values[block][at]
    others = torch.cat([values[:BLOCK], values[2 * BLOCK :]])
    kept = torch.cat([back[:BLOCK], back[2 * BLOCK :]])
    assert (kept / others).log().abs().max() <= math.log(level_ratio(True)) * 1.001


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("signed", [True, False])
def test_on_average_nothing_is_lost(form: Format, signed: bool) -> None:
    """Over many steps at one place, and over many places in one step."""
    value, steps = 0.3141, 2000
    values = torch.full((2 * BLOCK,), value)
    values[0] = values[BLOCK] = 1.0
    over_steps = torch.stack([there_and_back(values, form, signed, step) for step in range(steps)])
    assert over_steps[:, 7].mean() == pytest.approx(value, rel=2e-3)
    assert over_steps[0, 1:].mean() == pytest.approx(float(values[1:].mean()), rel=5e-3)


def test_far_below_the_largest_a_signed_number_ends_and_a_square_does_not() -> None:
    values = torch.tensor([1.0, 1e-7])
    seen = torch.stack([there_and_back(values, "8bit", True, step) for step in range(3000)])[:, 1]
    assert (seen == 0).float().mean() > 0.9
    assert seen.mean() == pytest.approx(1e-7, rel=0.15)
    values = torch.tensor([1.0, 1e-14])
    assert there_and_back(values, "8bit", False)[1] == pytest.approx(2**-32, rel=0.1)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("beta", "bound"), [(0.8, 0.1), (0.95, 0.1), (0.999, 0.1)])
def test_an_average_arrives_however_slowly_it_moves(form: Format, beta: float, bound: float) -> None:
    """To the nearest, an average that moves by a thousandth of the way would never leave its level."""
    target, state = draw(300), empty("x", torch.zeros(300), form)
    average = torch.zeros(300)
    for step in range(1, 4000):
        average = torch.lerp(read(stored(state, "x"), True), target, 1 - beta)
        write(average, stored(state, "x"), True, torch.tensor(float(step)))
    assert torch.linalg.vector_norm(average - target) <= bound * torch.linalg.vector_norm(target)


# The optimizers -----------------------------------------------------------------------------------


class Net(nn.Module):
    """A regression with a table, two matrices and a gain: all four kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(20, 24)
        self.inner = nn.Linear(24, 40, bias=False)
        self.back = nn.Linear(40, 24, bias=False)
        self.norm = nn.Parameter(torch.ones(24))
        self.lm_head = nn.Linear(24, 20, bias=False)
        for i, p in enumerate(self.parameters()):
            p.data = draw(*p.shape, seed=i) * 0.3

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        out: Tensor = self.lm_head((x + self.back(torch.tanh(self.inner(x)))) * self.norm)
        return out


RATES = OptimSettings(matrix_lr=0.02, embedding_lr=0.05, head_lr=0.02, norm_lr=0.02)


def trained(form: Format, steps: int, again_at: int | None = None) -> tuple[list[float], Net, Optimizers]:
    """Learn which token follows which; `again_at` saves and loads in between."""
    net = Net()

    def new() -> Optimizers:
        return Optimizers(net, RATES.model_copy(update={"state": form}), torch.float32, compile=False)

    optimizers, losses = new(), []
    for step in range(steps):
        if step == again_at:
            saved = {name: t.clone() for name, t in optimizers.tensors().items()}
            optimizers = new()
            optimizers.load(saved)
        ids = torch.randint(20, (32,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(net(ids), (ids * 7 + 3) % 20)
        loss.backward()
        optimizers.step(1 - step / steps, 0.9)
        losses.append(float(loss.detach()))
    return losses, net, optimizers


@pytest.mark.parametrize("form", FORMATS)
def test_training_drifts_but_little_from_fp32(form: Format) -> None:
    exact, rounded = trained("fp32", 60)[0], trained(form, 60)[0]
    assert exact[-1] < 0.2 * exact[0]
    worst = max(abs(a - b) for a, b in zip(exact, rounded, strict=True))
    assert 0 < worst < {"bf16": 0.01, "8bit": 0.1}[form] * exact[0]


@pytest.mark.parametrize("form", [*FORMATS, "fp32"])
def test_a_saved_state_goes_on_to_the_same_bits(form: Format) -> None:
    straight, resumed = trained(form, 20), trained(form, 20, again_at=9)
    assert straight[0] == resumed[0]
    for a, b in zip(straight[1].parameters(), resumed[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("form", "share"), [("bf16", 0.5), ("8bit", 0.27)])
def test_it_is_smaller(form: Format, share: float) -> None:
    def held(form: Format) -> int:
        tensors = trained(form, 1)[2].tensors()
        return sum(
            t.numel() * t.element_size()
            for name, t in tensors.items()
            if not name.endswith(("step", "moment"))
        )

    assert held(form) <= share * held("fp32")


@pytest.mark.parametrize("form", [*FORMATS, "fp32"])
def test_a_rehearsal_changes_nothing(form: Format) -> None:
    _, net, optimizers = trained(form, 3)
    weights = [p.detach().clone() for p in net.parameters()]
    state = {name: t.clone() for name, t in optimizers.tensors().items()}
    net(torch.arange(20)).sum().backward()
    optimizers.rehearse()
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert all(p.grad is None for p in net.parameters())
    after = optimizers.tensors()
    assert after.keys() == state.keys()
    assert all(torch.equal(state[name], after[name]) for name in state)

    fresh = Optimizers(net, RATES.model_copy(update={"state": form}), torch.float32, compile=False)
    net(torch.arange(20)).sum().backward()
    fresh.rehearse()
    assert fresh.tensors() == {} and fresh.missing_bytes() > 0


def test_another_format_in_the_checkpoint_is_told() -> None:
    saved = trained("8bit", 1)[2].tensors()
    optimizers = Optimizers(Net(), RATES, torch.float32, compile=False)
    with pytest.raises(ChangedRecipe, match=r'optim.state = "fp32", but the state .* is "8bit"; go back'):
        optimizers.load(saved)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, within its compiler
@pytest.mark.skipif(machine.cpp_compiler() is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("form", FORMATS)
def test_compiled_is_eager(form: Format, signed: bool) -> None:
    """To within a level: a last bit of the logarithm may decide a draw."""
    values = draw(3, 300) if signed else draw(3, 300).abs()
    eager, ours = empty("x", values, form), empty("x", values, form)
    write(values, stored(eager, "x"), signed, torch.tensor(5.0))
    compiled(write)(values, stored(ours, "x"), signed, torch.tensor(5.0))
    apart = ours["x"].float() != eager["x"].float()
    assert apart.float().mean() < 0.01
    found, expected = compiled(read)(stored(ours, "x"), signed), read(stored(eager, "x"), signed)
    torch.testing.assert_close(found, expected, rtol=level_ratio(signed) - 1 + 1e-3, atol=0)
