"""Schedules at the points one can work out by hand, and their shape in between."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilgrim.optim.schedule import Shape, learning_rate, momentum

SHAPES: tuple[Shape, ...] = ("linear", "sqrt", "cosine")


@pytest.mark.parametrize("shape", SHAPES)
def test_known_points(shape: Shape) -> None:
    """100 steps: 4 of warm-up, 56 at the top, 40 down to a tenth."""

    def rate(step: int) -> float:
        return learning_rate(step, steps=100, warmup=4, decay=0.4, final=0.1, shape=shape)

    assert [rate(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert {rate(step) for step in range(4, 60)} == {1.0}
    assert rate(60) < 1.0
    assert rate(100) == pytest.approx(0.1)  # where the line points; the last step taken is 99


def test_the_way_down() -> None:
    def rate(step: int, shape: Shape) -> float:
        return learning_rate(step, steps=99, warmup=0, decay=1.0, final=0.0, shape=shape)

    # Step 74 of 99 is three quarters of the way from step -1 to step 99.
    assert rate(74, "linear") == pytest.approx(0.25)
    assert rate(74, "sqrt") == pytest.approx(1 - 0.75**0.5)
    assert rate(74, "cosine") == pytest.approx(0.5 * (1 - 0.5**0.5))


@given(
    steps=st.integers(1, 400),
    warmup=st.integers(0, 50),
    decay=st.floats(0, 1),
    final=st.floats(0, 1),
    shape=st.sampled_from(SHAPES),
)
def test_it_rises_holds_and_falls(steps: int, warmup: int, decay: float, final: float, shape: Shape) -> None:
    rates = [learning_rate(step, steps, warmup, decay, final, shape) for step in range(steps)]
    up, down = rates[:warmup], rates[warmup:]
    assert all(0 < a < b < 1 for a, b in pairwise(up))
    assert all(a >= b - 1e-12 for a, b in pairwise(down))
    assert all(final - 1e-12 <= rate <= 1 for rate in down)
    if warmup < steps:
        below = sum(rate < 1 for rate in down)
        assert below <= round(decay * steps)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_decay_it_stays_at_the_top(shape: Shape) -> None:
    assert {learning_rate(step, 50, 0, 0.0, 0.0, shape) for step in range(50)} == {1.0}


def test_it_never_reaches_zero() -> None:
    """A step of rate zero would be a step for nothing."""
    assert all(learning_rate(step, 30, 5, 1.0, 0.0, shape) > 0 for step in range(30) for shape in SHAPES)


def test_momentum_rises_along_a_line_and_stays() -> None:
    values = [momentum(step, 0.85, 0.95, 10) for step in (0, 5, 10, 1000)]
    assert values == pytest.approx([0.85, 0.90, 0.95, 0.95])
    assert momentum(0, 0.85, 0.95, 0) == 0.95
