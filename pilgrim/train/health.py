"""Is this step healthy? Found out for every step on the device, without waiting for it.

Two numbers tell of a step before its update is made: the loss of its batch, and the norm of its gradient. A
step is bad in one of two ways:

    non-finite   one of the two is NaN or infinite
    spike        one of the two is far above its recent course

"Recent" is a running mean and variance over about the last WINDOW steps, of the loss and of the *logarithm*
of the norm, which varies by factors. "Far" is a number of standard deviations. OLMo 2 takes 6, over the last
128 steps (arXiv 2501.00656; `SkipStepOptimizer` in OLMo-core); ZClip takes 2.5, since it shortens a step and
does not skip it (arXiv 2504.02507). Here it is 8. In 23,600 steps of the pocket recipe and variants of it, in
which nothing went wrong, the farthest step was at 7.0 by its norm and at 4.6 by its loss; their batches are
small (2,048 tokens), so they are noisier than those of larger runs.

    share    = 1 / (steps so far, but at most WINDOW)    so the first steps count alike: no bias to correct
    mean     = mean + share · (value - mean)
    variance = (1 - share) · (variance + share · (value - mean)²)

Three precautions. A value beyond the limit enters the course as if it were *at* the limit: one spike does not
hide the next, and yet a lasting change of level is believed after some steps. A deviation never counts as
less than SMALLEST, so that a very even course makes nobody nervous. And nothing is a spike in the first
WARM_UP steps, nor in those after rows have grown (train/grow.py), when the course begins anew.

What is to be done about a bad step is said by `[health]` of the recipe, and done by train/faults.py.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pilgrim.core.config import Settings

WINDOW = 128  # steps
WARM_UP = 64  # steps
SMALLEST = (0.02, 0.1)  # deviation: of the loss, in nats; of the norm's logarithm
LEAST_NORM = 1e-30  # the logarithm of 0 would be infinite, and a gradient of zeros is no fault

Action = Literal["skip", "roll_back", "stop", "ignore"]
Kind = Literal["non_finite_loss", "spike"]


class HealthSettings(Settings):
    """`[health]` of a recipe: what is done about a bad step, in every stage that trains.

    The defaults are for a run that nobody watches. Skipping costs a batch and no time, comes before the harm,
    and a wrong alarm costs next to nothing. Where it does not help, as the weights themselves are spoiled,
    steps are bad many times in a row; then the run stops, with its last good checkpoint.
    """

    on_spike: Action = Field(
        "skip",
        description="what to do about a loss or gradient far above its recent course (docs/reliability.md)",
    )
    on_non_finite: Literal["skip", "roll_back", "stop"] = Field(
        "skip", description="what to do about a loss or gradient that is NaN or infinite"
    )
    spike_sigmas: float = Field(
        8.0, ge=3, description="standard deviations above the recent course that make a spike"
    )
    faults_in_a_row: int = Field(5, ge=1, description="so many bad steps without a good one between: stop")
    faults: int = Field(50, ge=1, description="so many bad steps in a stage: stop")

    def contradiction(self) -> str | None:
        """What can't be true together, in one sentence; None if nothing is wrong."""
        if self.faults < self.faults_in_a_row:
            return (
                f"health.faults = {self.faults} must be at least health.faults_in_a_row = "
                f"{self.faults_in_a_row}; write health.faults_in_a_row = {self.faults}"
            )
        return None

    def action(self, kind: Kind) -> Action:
        """What the recipe says about a bad step of that kind."""
        return self.on_spike if kind == "spike" else self.on_non_finite

    @property
    def guarded(self) -> bool:
        """Whether an update may have to be refused on the device."""
        return "skip" in (self.on_spike, self.on_non_finite)

    @property
    def goes_back(self) -> bool:
        return "roll_back" in (self.on_spike, self.on_non_finite)


@dataclass(frozen=True)
class Verdict:
    """About one step, still on the device."""

    told_6: Tensor  # loss, norm; 1 or 0: finite, calm; the limits of loss and norm
    take: Tensor | None  # bool []: whether to make the update; None: in any case


@dataclass(frozen=True)
class Judged:
    """The same, where the program can read it."""

    loss: float
    grad_norm: float
    loss_limit: float
    grad_norm_limit: float
    kind: Kind | None  # of its fault, if it has one


def read(verdict: Verdict) -> Judged:
    """Waits for the device."""
    loss, norm, finite, calm, loss_limit, norm_limit = verdict.told_6.tolist()
    kind: Kind | None = "non_finite_loss" if not finite else "spike" if not calm else None
    return Judged(loss, norm, loss_limit, norm_limit, kind)


class Health:
    """The recent course of loss and gradient norm, and the judgement by it. Everything is on the device."""

    def __init__(self, settings: HealthSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self._smallest_2 = torch.tensor(SMALLEST, device=device)
        self.forget()

    def forget(self) -> None:
        """Begin the course anew."""
        self._steps = torch.zeros((), device=self.device)
        self._mean_2 = torch.zeros(2, device=self.device)
        self._variance_2 = torch.zeros(2, device=self.device)

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Tensor) -> Verdict:
        """Both fp32 [], of the whole batch, over all processes: so all of them judge alike."""
        values_2 = torch.stack([loss, norm.clamp(min=LEAST_NORM).log()])
        finite = torch.isfinite(values_2).all()
        reach_2 = self.settings.spike_sigmas * self._variance_2.sqrt().maximum(self._smallest_2)
        reach_2 = torch.where(self._steps >= WARM_UP, reach_2, torch.inf)
        limits_2 = self._mean_2 + reach_2
        calm = (values_2 <= limits_2).all()
        self._learn(torch.where(finite, values_2 - self._mean_2, 0.0).clamp(-reach_2, reach_2), finite)
        numbers = [loss, norm, finite.float(), calm.float(), limits_2[0], limits_2[1].exp()]
        return Verdict(torch.stack(numbers), self._take(finite, calm))

    def _learn(self, off_2: Tensor, finite: Tensor) -> None:
        """Let the course go on by values that are `off_2` from its mean; of what is not finite, nothing."""
        self._steps = self._steps + finite
        share = torch.where(finite, 1 / self._steps.clamp(1, WINDOW), 0.0)
        self._mean_2 = self._mean_2 + share * off_2
        self._variance_2 = (1 - share) * (self._variance_2 + share * off_2.square())

    def _take(self, finite: Tensor, calm: Tensor) -> Tensor | None:
        if not self.settings.guarded:
            return None
        return finite & calm if self.settings.on_spike == "skip" else finite

    def rehearsal(self) -> Tensor | None:
        """What `take` is for a healthy step, to compile with."""
        return torch.ones((), dtype=torch.bool, device=self.device) if self.settings.guarded else None

    def values(self) -> dict[str, Any]:
        """The course as plain JSON, exactly. Waits for the device."""
        return {
            "steps": self._steps.item(),
            "mean": self._mean_2.tolist(),
            "variance": self._variance_2.tolist(),
        }

    def put_back(self, values: dict[str, Any]) -> None:
        """What `values` has given."""
        self._steps, self._mean_2, self._variance_2 = (
            torch.tensor(values[name], device=self.device) for name in ("steps", "mean", "variance")
        )
