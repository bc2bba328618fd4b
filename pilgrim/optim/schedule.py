"""Schedules: pure functions from the step to a number, so that resuming needs no state."""

import math
from typing import Literal

Shape = Literal["linear", "sqrt", "cosine"]


def learning_rate(
    step: int, steps: int, warmup: int, decay: float, final: float, shape: Shape = "linear"
) -> float:
    """The multiplier on every learning rate at `step` (0 … steps - 1): warm up, hold, warm down.

    `warmup` is in steps; `decay` is the share of the run over which the multiplier falls from 1 to
    `final`, along a line, as 1 - sqrt(x) (Hägele et al. 2024), or along half a cosine.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    decay_steps = round(decay * steps)
    left = steps - step
    if left > decay_steps:
        return 1.0
    done = 1 - left / (decay_steps + 1)
    fall = {"linear": 1 - done, "sqrt": 1 - math.sqrt(done), "cosine": 0.5 * (1 + math.cos(math.pi * done))}[
        shape
    ]
    return final + (1 - final) * fall


def momentum(step: int, start: float, end: float, warmup: int) -> float:
    """Muon's momentum: from `start` to `end` over the first `warmup` steps, then constant."""
    if step >= warmup:
        return end
    return start + (end - start) * step / warmup
