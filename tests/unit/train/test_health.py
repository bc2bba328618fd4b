"""The judgement of a step: against the formula in plain Python, and on the course of a real run."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pilgrim.train.health import SMALLEST, WARM_UP, WINDOW, Health, HealthSettings, Judged, read

CPU = torch.device("cpu")
COURSE = Path(__file__).parent / "pocket_course.npy"  # loss and gradient norm of a pocket run, [2000, 2]
SIGMAS = HealthSettings().spike_sigmas


def judged(health: Health, loss: float, norm: float) -> Judged:
    return read(health.judge(torch.tensor(loss), torch.tensor(norm)))


def even(health: Health, steps: int = 2 * WARM_UP) -> None:
    """A course of which nothing is to be said."""
    for step in range(steps):
        assert judged(health, 3 + 0.05 * math.sin(step), 1 + 0.1 * math.cos(3 * step)).kind is None


class Twin:
    """The slow twin, with numbers one after the other."""

    def __init__(self) -> None:
        self.steps, self.mean, self.variance = 0, [0.0, 0.0], [0.0, 0.0]

    def judge(self, loss: float, norm: float) -> str | None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "non_finite_loss"
        values, spike = [loss, math.log(max(norm, 1e-30))], False
        reach = [SIGMAS * max(math.sqrt(v), least) for v, least in zip(self.variance, SMALLEST, strict=True)]
        known, self.steps = self.steps >= WARM_UP, self.steps + 1
        share = 1 / min(self.steps, WINDOW)
        for i in range(2):
            off = values[i] - self.mean[i]
            if known:
                spike |= off > reach[i]
                off = min(max(off, -reach[i]), reach[i])
            self.mean[i] += share * off
            self.variance[i] = (1 - share) * (self.variance[i] + share * off * off)
        return "spike" if spike else None


def test_it_is_the_formula() -> None:
    dice = np.random.default_rng(1)
    health, twin = Health(HealthSettings(), CPU), Twin()
    found = []
    for step in range(500):
        loss, norm = 3 + 3 * math.exp(-step / 50) + 0.1 * dice.normal(), math.exp(0.2 * dice.normal())
        if step % 40 == 39:  # in turn: nothing, NaN, a spike of either, zeros
            kind = step // 40 % 5
            loss += {1: math.nan, 2: 4.0}.get(kind, 0.0)
            norm = {3: 50.0, 4: 0.0}.get(kind, norm)
        verdict = judged(health, loss, norm).kind
        assert verdict == twin.judge(loss, norm), step
        found.append(verdict)
    assert {"spike", "non_finite_loss", None} == set(found)
    values = health.values()
    assert values["steps"] == twin.steps
    assert values["mean"] == pytest.approx(twin.mean, rel=1e-4)
    assert values["variance"] == pytest.approx(twin.variance, rel=1e-3)


def test_nothing_in_a_real_run_is_a_spike() -> None:
    health = Health(HealthSettings(), CPU)
    kinds = {judged(health, float(loss), float(norm)).kind for loss, norm in np.load(COURSE)}
    assert kinds == {None}


@pytest.mark.parametrize("at", [300, 1000, 1900])
def test_in_a_real_run_a_spike_is_found(at: int) -> None:
    course = np.load(COURSE)
    health = Health(HealthSettings(), CPU)
    for loss, norm in course[:at]:
        judged(health, float(loss), float(norm))
    kept = health.values()
    for loss, norm in ((6.0, 1.0), (0.0, 20.0)):  # batches are small, and so noisy: it must be much
        health.put_back(kept)
        found = judged(health, float(course[at, 0]) + loss, float(course[at, 1]) * norm)
        assert found.kind == "spike"
        assert found.loss > found.loss_limit or found.grad_norm > found.grad_norm_limit


def test_in_the_beginning_nothing_is_a_spike_but_nan_is_nan() -> None:
    health = Health(HealthSettings(), CPU)
    for step in range(WARM_UP):
        found = judged(health, 100.0 if step == 30 else 3.0, 1.0)
        assert (found.kind, found.loss_limit) == (None, math.inf)
    for loss, norm in ((math.nan, 1.0), (3.0, math.inf), (math.inf, math.nan)):
        assert judged(Health(HealthSettings(), CPU), loss, norm).kind == "non_finite_loss"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (3.0, math.nan), (math.inf, math.inf)])
def test_what_is_not_finite_leaves_no_trace(loss: float, norm: float) -> None:
    health = Health(HealthSettings(), CPU)
    even(health)
    before = health.values()
    assert judged(health, loss, norm).kind == "non_finite_loss"
    assert health.values() == before


def test_one_spike_does_not_hide_the_next_and_a_lasting_change_is_believed() -> None:
    health = Health(HealthSettings(), CPU)
    even(health)
    assert [judged(health, 100.0, 1.0).kind for _ in range(3)] == ["spike"] * 3
    kinds = [judged(health, 5.0, 1.0).kind for _ in range(WINDOW)]
    assert kinds[0] == "spike" and kinds[-1] is None


def test_a_fall_is_no_spike() -> None:
    health = Health(HealthSettings(), CPU)
    even(health)
    assert judged(health, 0.5, 0.001).kind is None


def test_very_even_courses_make_nobody_nervous() -> None:
    health = Health(HealthSettings(), CPU)
    for _ in range(200):
        assert judged(health, 1.0, 1.0).kind is None
    assert judged(health, 1.0 + 7 * SMALLEST[0], math.exp(7 * SMALLEST[1])).kind is None
    assert judged(health, 1.0 + 9 * SMALLEST[0], 1.0).kind == "spike"


def test_it_goes_on_to_the_same_bits() -> None:
    straight, resumed = Health(HealthSettings(), CPU), Health(HealthSettings(), CPU)
    even(straight, 100)
    resumed.put_back(straight.values())
    even(straight, 50)
    even(resumed, 50)
    assert straight.values() == resumed.values()


@pytest.mark.parametrize(
    ("spike", "non_finite", "takes"),
    [
        ("skip", "skip", {"calm": True, "spike": False, "nan": False}),
        ("ignore", "skip", {"calm": True, "spike": True, "nan": False}),
        ("roll_back", "skip", {"calm": True, "spike": True, "nan": False}),
        ("skip", "stop", {"calm": True, "spike": False, "nan": False}),
        ("ignore", "stop", {"calm": None, "spike": None, "nan": None}),
        ("roll_back", "roll_back", {"calm": None, "spike": None, "nan": None}),
    ],
)
def test_which_updates_are_made(spike: str, non_finite: str, takes: dict[str, bool | None]) -> None:
    settings = HealthSettings.model_validate({"on_spike": spike, "on_non_finite": non_finite})
    health = Health(settings, CPU)
    even(health)
    for loss, name in ((3.0, "calm"), (50.0, "spike"), (math.nan, "nan")):
        take = health.judge(torch.tensor(loss), torch.tensor(1.0)).take
        assert (None if take is None else bool(take)) == takes[name]
    assert (health.rehearsal() is None) == (takes["calm"] is None)


def test_contradictions() -> None:
    assert HealthSettings().contradiction() is None
    assert HealthSettings(faults=3).contradiction() == (
        "health.faults = 3 must be at least health.faults_in_a_row = 5; write health.faults_in_a_row = 3"
    )
