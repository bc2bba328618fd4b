"""Muon against the exact decomposition, a stack against its members, and its refinements one by one."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pilgrim.core import machine
from pilgrim.optim.muon import Muon, muon_update, orthogonalize

FP32 = torch.float32
# What the five polynomials make of singular values between 0.001 and 1 of the matrix's norm.
LOWEST, HIGHEST = 0.845, 1.145


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def one_step(weights: Tensor, gradients: Tensor, **settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The first step of a stack [n, rows, columns]."""
    tensors = {"lr": 0.1, "beta": 0.9, "weight_decay": 0.0}
    numbers = {name: torch.tensor(settings.pop(name, value)) for name, value in tensors.items()}
    return updated(
        weights, gradients, torch.zeros_like(weights), torch.zeros_like(weights[..., :1]), **numbers
    )


def updated(
    weights: Tensor, gradients: Tensor, momentum: Tensor, rows: Tensor, **numbers: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """What `muon_update` makes of stacks [n, rows, columns], which stay as they are."""
    w, g, m, r = ([*x.clone().unbind()] for x in (weights, gradients, momentum, rows))
    muon_update(w, g, m, r, beta2=0.95, dtype=FP32, **numbers)
    return torch.stack(w), torch.stack(m), torch.stack(r)


def plain_update(
    weights: Tensor, gradients: Tensor, momentum: Tensor, rows: Tensor, lr: float, beta: float, decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The slow twin of `muon_update`: the papers' formulas one after the other, with whole matrices."""
    momentum = beta * momentum + (1 - beta) * gradients
    update = orthogonalize((1 - beta) * gradients + beta * momentum, FP32)
    size = update.norm(dim=(-2, -1), keepdim=True)
    rows = 0.95 * rows + 0.05 * update.square().mean(-1, keepdim=True)
    update = update / (rows + 1e-10).sqrt()
    update = update * size / update.norm(dim=(-2, -1), keepdim=True)
    update = update * max(1.0, weights.shape[-2] / weights.shape[-1]) ** 0.5
    return weights - lr * (update + decay * weights * (update * weights > 0)), momentum, rows


# Orthogonalization --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48), (1, 9), (9, 1), (1, 1), (64, 63)])
def test_orthogonalize_keeps_singular_vectors_and_brings_the_values_near_one(shape: tuple[int, int]) -> None:
    rank = min(shape)
    u = torch.linalg.qr(draw(shape[0], rank, seed=1))[0]
    v = torch.linalg.qr(draw(shape[1], rank, seed=2))[0]
    values = torch.logspace(-2.5, 0, rank)
    ours = orthogonalize((u * values @ v.T)[None], FP32)[0]
    seen = u.T @ ours @ v
    assert LOWEST < seen.diagonal().min() <= seen.diagonal().max() < HIGHEST
    assert (seen - seen.diagonal().diag()).abs().max() < 2e-3
    assert (ours - u @ v.T).norm() / rank**0.5 < 0.15


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_orthogonalize_does_not_depend_on_the_size_of_the_matrix(scale: float) -> None:
    matrix = draw(1, 12, 20)
    torch.testing.assert_close(
        orthogonalize(matrix * scale, FP32), orthogonalize(matrix, FP32), rtol=1e-2, atol=1e-2
    )


def test_a_transposed_matrix_gives_the_transposed_result() -> None:
    matrix = draw(1, 12, 20)
    torch.testing.assert_close(orthogonalize(matrix.mT, FP32), orthogonalize(matrix, FP32).mT)


def test_zero_stays_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 8, 4), FP32), torch.zeros(2, 8, 4))


def test_in_bf16_the_values_are_near_one_too() -> None:
    ours = orthogonalize(draw(3, 64, 32), torch.bfloat16)
    assert ours.dtype == torch.bfloat16
    values = torch.linalg.svdvals(ours.float())
    assert LOWEST - 0.02 < values.min() <= values.max() < HIGHEST + 0.02


def test_a_stack_is_its_members_one_by_one() -> None:
    stack = draw(5, 12, 20) * torch.logspace(-3, 3, 5)[:, None, None]
    apart = torch.cat([orthogonalize(matrix[None], FP32) for matrix in stack])
    torch.testing.assert_close(orthogonalize(stack, FP32), apart, rtol=1e-4, atol=1e-5)


# One update ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (32, 8), (8, 32)])
def test_normuon_keeps_the_size_of_the_update_and_evens_out_its_rows(shape: tuple[int, int]) -> None:
    gradients = draw(3, *shape)
    weights, _, row_moment = one_step(torch.zeros(3, *shape), gradients, lr=1.0)
    update = orthogonalize(gradients, FP32)
    size = update.norm(dim=(-2, -1)) * max(1.0, shape[0] / shape[1]) ** 0.5
    torch.testing.assert_close(weights.norm(dim=(-2, -1)), size)
    rows = weights.norm(dim=-1)
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    torch.testing.assert_close(row_moment, 0.05 * update.square().mean(-1, keepdim=True))


def test_it_goes_down_the_gradient() -> None:
    gradients = draw(2, 8, 12)
    weights, momentum, _ = one_step(torch.zeros(2, 8, 12), gradients)
    assert (weights * gradients).sum((-2, -1)).max() < 0
    torch.testing.assert_close(momentum, 0.1 * gradients)


def test_momentum_remembers_and_looks_ahead() -> None:
    """The second step follows (1 - beta) g2 + beta m2, not g2 alone."""
    first, second = draw(1, 6, 6, seed=1), draw(1, 6, 6, seed=2)
    zeros = torch.zeros(1, 6, 6)
    _, momentum, rows = one_step(zeros, first)
    numbers = {name: torch.tensor(x) for name, x in (("lr", 1.0), ("beta", 0.9), ("weight_decay", 0.0))}
    weights, again, _ = updated(zeros, second, momentum, rows, **numbers)
    torch.testing.assert_close(again, 0.9 * momentum + 0.1 * second)
    update = orthogonalize(0.1 * second + 0.9 * again, FP32)
    assert torch.cosine_similarity(-weights.flatten(), update.flatten(), dim=0) > 0.95


def test_decay_is_cautious() -> None:
    """Entries that the update shrinks lose lr · decay of their size; the growing ones nothing at all."""
    weights, gradients = draw(2, 10, 14, seed=3), draw(2, 10, 14, seed=4)
    free, _, _ = one_step(weights, gradients)
    decayed, _, _ = one_step(weights, gradients, weight_decay=0.5)
    update = (weights - free) / 0.1
    shrinking = update * weights > 0
    assert 0.2 < shrinking.float().mean() < 0.8
    assert torch.equal(decayed[~shrinking], free[~shrinking])
    torch.testing.assert_close((free - decayed)[shrinking], (0.1 * 0.5 * weights)[shrinking])


@pytest.mark.parametrize("shape", [(16, 16), (32, 8), (8, 32)])
def test_three_steps_are_those_of_the_plain_formulas(shape: tuple[int, int]) -> None:
    fast = slow = draw(3, *shape), torch.zeros(3, *shape), torch.zeros(3, shape[0], 1)
    for step in range(3):
        gradients, lr, beta, decay = draw(3, *shape, seed=10 + step), 0.1 / (step + 1), 0.8 + 0.05 * step, 0.3
        numbers = {"lr": torch.tensor(lr), "beta": torch.tensor(beta), "weight_decay": torch.tensor(decay)}
        fast = updated(fast[0], gradients, *fast[1:], **numbers)
        slow = plain_update(slow[0], gradients, *slow[1:], lr, beta, decay)
    for quick, plain in zip(fast, slow, strict=True):
        torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, when it loads its compiler
@pytest.mark.skipif(machine.cpp_compiler() is None, reason="torch.compile needs a C++ compiler")
def test_compiled_is_eager() -> None:
    """Also with other numbers on the second call: they are tensors, so nothing is compiled anew."""
    results = []
    for compiled in (False, True):
        parameters = [torch.nn.Parameter(draw(12, 8, seed=s)) for s in (1, 2)]
        optimizer = Muon(parameters, lr=0.1, weight_decay=0.1, dtype=FP32, compile=compiled)
        for step in (1, 2):
            for p in parameters:
                p.grad = draw(12, 8, seed=step)
            optimizer.param_groups[0].update(lr=0.1 / step, beta=0.8 + 0.05 * step)
            optimizer.step()
        results.append([*parameters, *(x for p in parameters for x in optimizer.state[p].values())])
    for eager, compiled_one in zip(*results, strict=True):
        torch.testing.assert_close(compiled_one, eager, rtol=1e-4, atol=1e-5)


# The optimizer ------------------------------------------------------------------------------------

SHAPES = [(6, 4), (4, 6), (6, 4), (8, 8), (6, 4)]


def some_parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(draw(*shape, seed=i)) for i, shape in enumerate(SHAPES)]


def give_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    for i, p in enumerate(parameters):
        p.grad = draw(*p.shape, seed=100 * step + i)


def test_matrices_of_all_shapes_get_their_own_update() -> None:
    together, apart = some_parameters(), some_parameters()
    whole = Muon(together, weight_decay=0.1, dtype=FP32)
    single = [Muon([p], weight_decay=0.1, dtype=FP32) for p in apart]
    for step in range(1, 4):
        give_gradients(together, step)
        give_gradients(apart, step)
        whole.step()
        for optimizer in single:
            optimizer.step()
    for ours, alone in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)


def test_a_parameter_without_gradient_stays() -> None:
    parameters = some_parameters()
    before = [p.detach().clone() for p in parameters]
    give_gradients(parameters, 1)
    parameters[2].grad = None
    optimizer = Muon(parameters, dtype=FP32)
    optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip(parameters, before, strict=True)]
    assert moved == [True, True, False, True, True]
    assert parameters[2] not in optimizer.state


def test_groups_have_rates_of_their_own() -> None:
    a, b = (torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(2))
    a.grad = b.grad = draw(4, 4)
    Muon([{"params": [a], "lr": 0.2}, {"params": [b], "lr": 0.1}], dtype=FP32).step()
    torch.testing.assert_close(a.detach(), 2 * b.detach())


def test_a_saved_state_goes_on_to_the_same_bits() -> None:
    straight, resumed = some_parameters(), some_parameters()
    optimizer = Muon(straight, lr=0.1, weight_decay=0.1, dtype=FP32)
    first_half = Muon(resumed, lr=0.1, weight_decay=0.1, dtype=FP32)
    for step in range(1, 7):
        give_gradients(straight, step)
        optimizer.step()
        if step <= 3:
            give_gradients(resumed, step)
            first_half.step()
    second_half = Muon(resumed, dtype=FP32)
    second_half.load_state_dict(copy.deepcopy(first_half.state_dict()))
    for step in range(4, 7):
        give_gradients(resumed, step)
        second_half.step()
    for a, b in zip(straight, resumed, strict=True):
        assert torch.equal(a, b)
