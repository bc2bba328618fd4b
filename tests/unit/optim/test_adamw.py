"""Our AdamW is torch's, step by step, and its state goes on where it was saved."""

import copy

import pytest
import torch
from torch import Tensor

from pilgrim.core import machine
from pilgrim.optim.adamw import AdamW

SHAPES = [(7,), (5, 3), (2, 3, 4)]


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(draw(*shape, seed=i)) for i, shape in enumerate(SHAPES)]


def give_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    for i, p in enumerate(parameters):
        p.grad = draw(*p.shape, seed=100 * step + i) * 10.0 ** (i - 1)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.8, 0.95), 1e-10)])
def test_it_is_torchs(betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    ours, theirs = some_parameters(), some_parameters()
    our_optimizer = AdamW(ours, lr=0.03, betas=betas, eps=eps, weight_decay=weight_decay)
    their_optimizer = torch.optim.AdamW(theirs, lr=0.03, betas=betas, eps=eps, weight_decay=weight_decay)
    for step in range(20):
        for parameters, optimizer in ((ours, our_optimizer), (theirs, their_optimizer)):
            give_gradients(parameters, step)
            for group in optimizer.param_groups:
                group["lr"] = 0.03 * (1 - step / 20)
            optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=3e-6)


def test_the_first_step_has_the_size_of_the_rate() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1e-4, -5.0, 300.0])
    AdamW([p], lr=0.1).step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.1, 0.1, -0.1]))


def test_a_zero_gradient_moves_nothing() -> None:
    p = torch.nn.Parameter(draw(4))
    before, p.grad = p.detach().clone(), torch.zeros(4)
    AdamW([p], lr=0.1).step()
    assert torch.equal(p, before)


def test_a_parameter_without_gradient_stays() -> None:
    a, b = (torch.nn.Parameter(draw(3, seed=s)) for s in (1, 2))
    before, a.grad = b.detach().clone(), torch.ones(3)
    optimizer = AdamW([a, b], weight_decay=0.5)
    optimizer.step()
    assert torch.equal(b, before)
    assert b not in optimizer.state


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, when it loads its compiler
@pytest.mark.skipif(machine.cpp_compiler() is None, reason="torch.compile needs a C++ compiler")
def test_compiled_is_eager() -> None:
    """Also with another rate and count at every step: they are tensors, so nothing is compiled anew."""
    results = []
    for compiled in (False, True):
        p = torch.nn.Parameter(draw(5, 3))
        optimizer = AdamW([p], compile=compiled)
        for step in (1, 2, 3):
            give_gradients([p], step)
            optimizer.param_groups[0]["lr"] = 0.1 / step
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results)


def test_a_saved_state_goes_on_to_the_same_bits() -> None:
    straight, resumed = some_parameters(), some_parameters()
    optimizer, first_half = AdamW(straight, lr=0.1), AdamW(resumed, lr=0.1)
    for step in range(1, 7):
        give_gradients(straight, step)
        optimizer.step()
        if step <= 3:
            give_gradients(resumed, step)
            first_half.step()
    second_half = AdamW(resumed)
    second_half.load_state_dict(copy.deepcopy(first_half.state_dict()))
    for step in range(4, 7):
        give_gradients(resumed, step)
        second_half.step()
    for a, b in zip(straight, resumed, strict=True):
        assert torch.equal(a, b)
