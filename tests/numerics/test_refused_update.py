"""An update that is refused on the device leaves everything to the bit what it was, and one that is not
refused is the same as where nothing can be. In each format of the optimizers' state, as it is and compiled.
"""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from pilgrim.core import machine
from pilgrim.optim.groups import Optimizers, OptimSettings
from pilgrim.optim.state import Format

needs_compiler = pytest.mark.skipif(machine.cpp_compiler() is None, reason="torch.compile needs a compiler")
RATES = OptimSettings(
    matrix_lr=0.02, embedding_lr=0.1, head_lr=0.02, norm_lr=0.01, weight_decay=0.1, head_weight_decay=0.1
)
STEPS, SKIPPED = 5, 3
FORMATS: tuple[Format, ...] = get_args(Format)
COMPILED = pytest.param(
    True,
    math.nan,
    marks=[needs_compiler, pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")],
    id="compiled",
)


class Net(nn.Module):
    """Two tables, two matrices of one shape, and a gain: all kinds of parameters."""

    def __init__(self) -> None:
        super().__init__()
        dice = torch.Generator().manual_seed(1)
        for name, shape in (
            ("embed_tokens", (7, 20)),
            ("a", (20, 24)),
            ("b", (20, 24)),
            ("lm_head", (7, 24)),
        ):
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=dice) * 0.1))
        self.gain = nn.Parameter(torch.ones(20))


def optimizers(net: Net, form: Format, compile: bool) -> Optimizers:
    return Optimizers(net, RATES.model_copy(update={"state": form}), torch.float32, compile)


def step(net: Net, made: Optimizers, number: int, take: Tensor | None = None, poison: float = 0.0) -> None:
    dice = torch.Generator().manual_seed(number)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=dice) + poison
    made.step(1.0 / number, 0.9, take)


def everything(net: Net, made: Optimizers) -> dict[str, Tensor]:
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    return weights | {name: t.clone() for name, t in made.tensors().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("compile", "poison"), [(False, 0.0), (False, math.nan), (False, math.inf), COMPILED]
)
def test_a_refused_update_changes_nothing(form: Format, compile: bool, poison: float) -> None:
    """Nor is anything remembered of it: the run is the one that has never seen it."""
    guarded, plain = Net(), Net()
    made, without = optimizers(guarded, form, compile), optimizers(plain, form, compile)
    # The compiler cuts the code for 8 bits into other kernels where it is guarded, which round otherwise.
    never_refused = torch.tensor(True) if compile and form == "8bit" else None
    for number in range(1, STEPS + 1):
        if number == SKIPPED:
            before = everything(guarded, made)
            step(guarded, made, number, torch.tensor(False), poison)
            assert_same(everything(guarded, made), before)
        else:
            step(guarded, made, number, torch.tensor(True))
            step(plain, without, number, never_refused)
    assert_same(everything(guarded, made), everything(plain, without))


def test_a_refused_first_update_changes_nothing() -> None:
    net, plain = Net(), Net()
    made, without = optimizers(net, "fp32", False), optimizers(plain, "fp32", False)
    step(net, made, 1, torch.tensor(False), math.nan)
    assert not any(tensor.any() for tensor in made.tensors().values())
    step(net, made, 2, torch.tensor(True))
    step(plain, without, 2)
    assert_same(everything(net, made), everything(plain, without))
