"""Memory by kind, from traces whose blocks are known."""

from collections.abc import Callable

import pytest

from pilgrim.lab.profile.memory import POINTS, Known, memory
from pilgrim.lab.profile.trace import parse_trace

from .conftest import Story

A, B, C, D = 10, 20, 30, 40  # addresses
KNOWN = Known(
    parameters=100, optimizer=200, other=0, capacity=10_000, micro_rows=2, gradients=[frozenset({C})]
)


def a_step(story: Callable[[], Story]) -> Story:
    """A batch of 5; activations of 40 and 30, of which 40 are given back in backward, where gradients of 60
    come."""
    told = story().mark("step", 0, 10).mark("data", 0, 1).mark("forward", 1, 4).mark("backward", 4, 8)
    told.mark("optimizer", 8, 10).memory(0.5, A, 5).memory(2, B, 40).memory(3, C, 30)
    told.memory(5, C, -30).memory(6, C, 60).memory(7, B, -40).memory(9, C, -60).memory(9.5, A, -5)
    return told


def test_every_byte_has_its_kind(story: Callable[[], Story]) -> None:
    found = memory(parse_trace(a_step(story).events), KNOWN)
    assert (found.parameters, found.optimizer) == (100, 200)
    # The peak is at 6 ms; the address of the gradient held an activation before.
    assert (found.gradients, found.activations, found.other) == (60, 40, 5)
    assert found.curve == (
        (0.0005, 305), (0.002, 345), (0.003, 375), (0.005, 345), (0.006, 405), (0.007, 365), (0.009, 305),
        (0.0095, 300)
    )  # fmt: skip
    assert found.fragmentation is None


def test_the_rows_that_fit_follow_from_the_most_activations(story: Callable[[], Story]) -> None:
    """70 bytes for two rows; weights, state and gradients are there in any case; 8% stay free."""
    found = memory(parse_trace(a_step(story).events), KNOWN)
    assert found.micro_rows_that_fit == int((10_000 * 0.92 - 300 - 60) / 35)


def test_a_cache_grows_with_the_rows(story: Callable[[], Story]) -> None:
    known = Known(100, 0, 50, 1000, 5, [frozenset()], grows=50)
    told = story().mark("step", 0, 2).mark("forward", 0, 2).memory(1, A, 50).memory(1.5, A, -50)
    found = memory(parse_trace(told.events), known)
    assert found.other == 50 and found.activations == 50
    assert found.micro_rows_that_fit == int((1000 * 0.92 - 100) / 20)


def test_on_a_gpu_the_allocator_tells_the_rest(story: Callable[[], Story]) -> None:
    told = story().mark("step", 0, 10).mark("forward", 0, 5)
    told.op("aten::add", 0, 1, [5]).kernel("add", 1, 2, called=0.5)
    told.memory(1, A, 64, device=1, **{"Total Allocated": 464, "Total Reserved": 600})
    told.memory(2, A, -64, device=1, **{"Total Allocated": 400, "Total Reserved": 600})
    told.memory(2, B, 999)  # on the host: not what is asked for
    found = memory(parse_trace(told.events), KNOWN)
    assert (found.activations, found.other, found.fragmentation) == (64, 100, 136)


def test_a_long_curve_is_thinned_and_keeps_its_peak(story: Callable[[], Story]) -> None:
    told = story().mark("step", 0, 100).mark("forward", 0, 100)
    for i in range(2000):
        told.memory(i / 20, i, 1000 if i == 777 else 1).memory(i / 20 + 0.01, i, -1)
    found = memory(parse_trace(told.events), KNOWN)
    assert len(found.curve) <= POINTS
    assert max(held for _, held in found.curve) == 300 + 1000


@pytest.mark.parametrize("steps", [1, 3])
def test_without_any_event(story: Callable[[], Story], steps: int) -> None:
    told = story()
    for step in range(steps):
        told.mark("step", step, step + 0.9)
    assert memory(parse_trace(told.events), KNOWN).curve == ((0.0, 300),)
