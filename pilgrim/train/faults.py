"""What is done about a bad step, once the program has looked and found it (train/health.py).

    skip        Nothing is left to do: the device has refused the update. Weights and all that the optimizers
                remember are to the bit what they were, and the next batch follows.
    roll back   Weights, optimizers and all else come from the newest checkpoint that is surely good, and
                training goes on with the data *behind* the bad batch.
    stop        It ends with one sentence, and the last good checkpoint stays.
    ignore      It is only told.

A checkpoint of step s is surely good if step s + 1, the first to compute with its weights, was. So nothing is
saved right behind a bad step, and a row of them can't push the good ones out.

Rolling back is what PaLM's trainers did by hand, about twenty times: they went back about 100 steps and left
out 200 to 500 batches, after which the spike did not come again. The batches were harmless by themselves; it
takes a certain batch and certain weights (arXiv 2204.02311, section 5.1). Here the checkpoint is saved again
with its new future, so that a kill in between changes nothing.

Whatever is done is told to the person and becomes an event: what was measured, against which limits, and what
was done. Faults are counted, since what comes again and again is no accident: after too many, the run stops.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from pilgrim.core.console import Console
from pilgrim.core.errors import PilgrimError
from pilgrim.core.runlog import RunLog
from pilgrim.data.loader import Position
from pilgrim.train.health import Action, HealthSettings, Judged, Kind
from pilgrim.train.keeping import State


class Diverged(PilgrimError):
    """Training went wrong in a way that the recipe does not go on from; the last good checkpoint is kept."""


class NonFiniteLoss(Diverged):
    """A loss or a gradient is no number any more."""


class LossSpike(Diverged):
    """A loss or a gradient is far above its recent course."""


@dataclass(frozen=True)
class Fault:
    """What was found at a step, with the weights that `updates` updates had made."""

    kind: Kind
    step: int
    updates: int
    position: Position | None  # of the loader, behind the step's batch
    measured: dict[str, float]
    limits: dict[str, float]


class RollBack(Exception):
    """No error, but the way out of the steps and back to a checkpoint older than `fault.updates`."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"back to before step {fault.step}")
        self.fault = fault


def in_step(step: int, judged: Judged, position: Position | None) -> Fault | None:
    """The fault of a step, if it has one."""
    if judged.kind is None:
        return None
    limits = {"loss_limit": judged.loss_limit, "grad_norm_limit": judged.grad_norm_limit}
    measured = {"loss": judged.loss, "grad_norm": judged.grad_norm}
    return Fault(judged.kind, step, step - 1, position, measured, limits)


def in_evaluation(state: State, measures: dict[str, float]) -> Fault | None:
    """The fault of the weights of a step, if they measure what is no number."""
    if all(map(math.isfinite, measures.values())):
        return None
    return Fault("non_finite_loss", state.step, state.step, state.position, measures, {})


class Faults:
    """Counts them, tells them, and says what is to be done. The counts are part of the stage's `State`."""

    def __init__(self, settings: HealthSettings, folder: Path, log: RunLog, console: Console) -> None:
        self.settings, self.folder, self.log, self.console = settings, folder, log, console

    def met(self, fault: Fault, state: State) -> Action:
        """What to do about it: "stop", too, if there were too many."""
        action = self.settings.action(fault.kind)
        if action == "ignore":
            return action
        if not state.faults_in_a_row:
            state.fault_updates = fault.updates
        state.faults += 1
        state.faults_in_a_row += 1
        state.fault_step = max(fault.step, state.fault_step)
        return "stop" if self._too_many(state) else action

    def passed(self, step: int, state: State) -> None:
        """A good step. It ends a row of bad ones if it lies behind them, not on the way back to them."""
        if step > state.fault_step:
            state.faults_in_a_row = 0

    def tell(self, fault: Fault, done: str) -> None:
        """To the person, and as an event."""
        self._event(fault, done=done)
        said = " and ".join(f"{name} = {value:.4g}" for name, value in fault.measured.items())
        if fault.kind == "spike":
            said += f", a spike (limits: {' and '.join(f'{x:.4g}' for x in fault.limits.values())})"
        self.console.say(f"step {fault.step}: {said}: {done}")

    def error(self, fault: Fault, state: State, kept: list[int]) -> Diverged:
        """The sentence with which training stops; its event is written. `kept`: steps of checkpoints."""
        self._event(fault, done="stopped", kept=kept[-1:])
        found = " and ".join(f"{name} = {value}" for name, value in fault.measured.items())
        where = f"the checkpoint of step {kept[-1]} is kept" if kept else "there was no good checkpoint yet"
        begin, end = f"{self.folder}: training", "and run again with --accept-changes"
        cure = "lower the learning rates of [optim]"
        if fault.kind == "non_finite_loss":
            return NonFiniteLoss(
                f"{begin} diverged, at step {fault.step} {found}{self._why(state)}; {where}; {cure} {end}"
            )
        if self.settings.on_spike != "roll_back":
            cure += ', or write health.on_spike = "roll_back",'
        limits = " and ".join(str(limit) for limit in fault.limits.values())
        return LossSpike(
            f"{begin} is unstable, at step {fault.step} {found}, against limits of {limits}"
            f"{self._why(state)}; {where}; {cure} {end}"
        )

    def _event(self, fault: Fault, **about: object) -> None:
        self.log.event(fault.kind, step=fault.step, **fault.measured, **fault.limits, **about)

    def _too_many(self, state: State) -> bool:
        s = self.settings
        return state.faults_in_a_row >= s.faults_in_a_row or state.faults >= s.faults

    def _why(self, state: State) -> str:
        """The part of the sentence that names the bound which was reached."""
        if 1 < self.settings.faults_in_a_row <= state.faults_in_a_row:
            return f", the last of {state.faults_in_a_row} bad steps in a row (health.faults_in_a_row)"
        if self.settings.faults <= state.faults:
            return f", the last of {state.faults} bad steps (health.faults)"
        return ""
