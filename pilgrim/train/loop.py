"""THE loop. Pretraining, midtraining and SFT differ in their rows and rates, not in how they train.

    at every step:     next batch -> gradients -> update -> a row of metrics
    now and then:      check that losses are finite, save a checkpoint, evaluate and sample
    always:            a stopped run goes on from its last checkpoint, to the same bits

Everything that determines the future is in a checkpoint (train/keeping.py). Saving one stops training only
for a copy: it is written in the background. It is durable before an evaluation goes on record, before the
next one is saved, and before the loop ends, for whatever reason.

Nothing in a step waits for the device, so that a GPU has its next work before it is done with this: batches
are made ahead by a thread (data/prefetch.py) and counted before they are copied, and losses are looked at
only now and then.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.compiling import keep_compiled
from pilgrim.core.console import Console
from pilgrim.core.processes import ALONE
from pilgrim.core.runlog import RunLog, read_rows
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch, Rows
from pilgrim.data.prefetch import Prefetch
from pilgrim.model.transformer import Transformer
from pilgrim.optim import schedule
from pilgrim.optim.groups import Optimizers, OptimSettings
from pilgrim.train.fit import MicroBatch, blank, too_little
from pilgrim.train.gradients import Gradients
from pilgrim.train.grow import grown_batches, phase_at, phases
from pilgrim.train.health import NonFiniteLoss
from pilgrim.train.keeping import State, keep, put_back
from pilgrim.train.settings import TrainSettings
from pilgrim.train.step import StepResult, TokenLosses
from pilgrim.train.stopping import stop_asked

LOOK_EVERY = 10  # steps between looks at the losses: each look waits for the device


@dataclass(frozen=True)
class Parts:
    """What a stage assembles and hands to the loop. `settings` and `optim` are resolved (no None)."""

    model: Transformer
    optimizers: Optimizers
    optim: OptimSettings
    rows: Rows
    losses: TokenLosses
    micro: MicroBatch
    evaluate: Callable[[int], dict[str, Any]]  # step -> measures, "bpb" among them
    runtime: Runtime
    settings: TrainSettings
    folder: Path
    log: RunLog
    console: Console
    shares: Callable[[float], dict[str, float]] = lambda tokens_per_s: {}  # of the machine's peak


@dataclass
class Window:
    """What happened since the losses were last looked at."""

    rows: list[tuple[int, dict[str, float], StepResult]] = field(default_factory=list)
    tokens: int = 0
    began_s: float = field(default_factory=time.perf_counter)


class Loop:
    """A stage's training, from wherever it stands to its last step."""

    def __init__(self, parts: Parts) -> None:
        settings = parts.settings
        assert settings.rows and settings.steps
        self.parts, self.steps = parts, settings.steps
        self.phases = phases(settings.grow, settings.steps, settings.rows, parts.model.config.context)
        self.processes = ALONE
        self.store = CheckpointStore(
            parts.folder / "checkpoints", processes=self.processes, fence=parts.log.fence
        )
        self.state = State()
        self.window = Window()
        self.gradients = Gradients(
            parts.model, parts.losses, parts.micro, parts.runtime, parts.log, parts.console
        )
        self.saved: int | None = None  # the step of the newest checkpoint
        self.began_s = self.started_s = time.perf_counter()
        self.spent_s = 0.0  # device-seconds, before this process

    def run(self) -> State:
        """Train to the end. Raises NonFiniteLoss if it diverges, OutOfMemory if memory does not suffice,
        KeyboardInterrupt if asked to stop.
        """
        parts, settings, state = self.parts, self.parts.settings, self._resume()
        made = grown_batches(parts.rows, self.phases, state.step, state.position)
        with Prefetch(made, parts.runtime.device) as stream, self.store:
            self.prepare()
            with stop_asked() as stop, parts.console.progress(self.steps, "step", state.step) as progress:
                self._evaluate_if_due()
                self.window = Window()
                while state.step < self.steps:
                    waited_s = stream.waited_s
                    with record_function("pilgrim.data"):
                        batch, state.position = next(stream)
                    state.data_wait_s += stream.waited_s - waited_s
                    self.step(batch)
                    stopping = stop()  # read once, so that it can't rise between saving and stopping
                    evaluate = state.step % settings.eval_every == 0 or state.step == self.steps
                    save = state.step % settings.checkpoint_every == 0 or evaluate or stopping
                    if save or state.step % LOOK_EVERY == 0:
                        progress.advance(len(self.window.rows), **self._look())
                    if save:
                        self._save()
                    if stopping:
                        self._stop()
                    if evaluate:
                        self._evaluate_if_due()
                    if save:
                        self.window = Window()  # the clock of training stands still meanwhile
                if stop():  # asked for during the last evaluation
                    self._stop()
        self._count_time()
        return state

    def prepare(self) -> None:
        """Before the first step: find the microbatch, and compile all shapes that will come; say so.

        Changes no weight.
        """
        parts, began_s = self.parts, time.perf_counter()
        coming = [phase for phase in self.phases if self.state.step < phase.end]
        if not coming:
            return
        if parts.runtime.compile:
            parts.console.say(
                "compiling the training step: a minute or two the first time, "
                f"then seconds, as it is kept in {keep_compiled()}"
            )
        if parts.runtime.device.type == "cuda" and parts.micro.given is None and parts.micro.tokens is None:
            largest = max(coming, key=lambda phase: (phase.context, phase.rows))
            self.gradients.fit(largest, parts.optimizers.missing_bytes())
        if parts.runtime.compile:
            for phase in {(phase.rows, phase.context, phase.window): phase for phase in coming}.values():
                few = blank(parts.micro.rows(phase.rows, phase.context), phase.context)
                self.gradients.of(few, phase, self.state.step)
            parts.optimizers.rehearse()
            parts.log.event("compiled", elapsed_s=time.perf_counter() - began_s)

    def step(self, batch: Batch) -> None:
        """One update of the weights. Nobody waits for the device; an event is written if memory runs out."""
        parts, settings, state = self.parts, self.parts.settings, self.state
        assert parts.optim.matrix_lr is not None
        phase = phase_at(self.phases, state.step)
        by_step = schedule.learning_rate(
            state.step,
            self.steps,
            settings.warmup,
            settings.decay,
            settings.final_lr,
            settings.decay_shape,
        )
        multiplier = settings.lr_scale * by_step * phase.lr
        momentum = schedule.momentum(
            state.step, parts.optim.momentum_start, parts.optim.momentum, parts.optim.momentum_warmup
        )
        result = self.gradients.of(batch, phase, state.step)
        with record_function("pilgrim.optimizer"):
            try:
                parts.optimizers.step(multiplier, momentum)
            except torch.OutOfMemoryError:  # some weights have moved: this can't be done again
                raise too_little("none was left for the optimizers' step") from None
        tokens = batch.tokens
        state.step += 1
        state.tokens += tokens
        self.window.tokens += tokens
        measured = {"learning_rate": parts.optim.matrix_lr * multiplier, "tokens": state.tokens}
        self.window.rows.append((state.step, measured, result))

    def _look(self) -> dict[str, float]:
        """Write the window's rows; stop if a loss is not finite. The only place that waits for the device."""
        parts, window, state = self.parts, self.window, self.state
        loss = math.nan
        with record_function("pilgrim.sync"):  # what still runs on the device is waited for here
            found = [(float(result.loss), float(result.gradient_norm)) for *_, result in window.rows]
        for (step, measured, _), (loss, norm) in zip(window.rows, found, strict=True):
            parts.log.metrics(step, loss=loss, grad_norm=norm, **measured)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._diverged(step, step - 1, loss=loss, grad_norm=norm)
        elapsed_s = time.perf_counter() - window.began_s
        state.train_s += elapsed_s
        speed = window.tokens / elapsed_s
        shares = parts.shares(speed)
        parts.log.timing(
            state.step,
            elapsed_s=state.train_s,
            tokens_per_s=speed,
            data_wait_s=state.data_wait_s,
            **shares,
        )
        self.window = Window()
        return {"loss": loss, "tokens_per_s": speed, **shares}

    def _diverged(self, step: int, updates: int, **measured: float) -> None:
        """Stop: at `step` it was found that the weights after `updates` updates give no finite loss.

        No learning rate can mend that, so a checkpoint of just these weights is removed.
        """
        if self.saved == updates:
            self.store.remove(updates)
        kept = self.store.steps()[-1:]
        self.parts.log.event("non_finite_loss", step=step, **measured, kept=kept)
        found = " and ".join(f"{name} = {value}" for name, value in measured.items())
        raise NonFiniteLoss(
            f"{self.parts.folder}: training diverged, at step {step} {found}; "
            f"{f'the checkpoint of step {kept[0]} is kept' if kept else 'there was no good checkpoint yet'}; "
            "lower the learning rates of [optim] and run again with --accept-changes"
        )

    def _stop(self) -> None:
        self.store.wait()
        self.parts.log.event("stopped", step=self.state.step)
        raise KeyboardInterrupt

    def _evaluate_if_due(self) -> None:
        """Evaluate at step 0, every `eval_every` steps and at the end, unless that is already on record.

        Meanwhile the checkpoint of this step is written. It is durable before the measures are on record.
        """
        state, settings = self.state, self.parts.settings
        if state.step % settings.eval_every and state.step != settings.steps:
            return
        records = read_rows(self.parts.folder / "evals.jsonl")
        known = next((row for row in records if row["step"] == state.step), None)
        measures = known or self.parts.evaluate(state.step)
        numbers = {name: value for name, value in measures.items() if isinstance(value, float)}
        if not all(map(math.isfinite, numbers.values())):
            self._diverged(state.step, state.step, **numbers)
        if state.best_bpb is None or measures["bpb"] <= state.best_bpb:
            state.best_bpb = measures["bpb"]
            if state.step and not known:
                self.store.mark_best(state.step)
        if not known:
            self.store.wait()
            self.parts.log.evaluation(state.step, **measures)  # last: what is on record is not done again

    def _save(self) -> None:
        parts = self.parts
        self._count_time()
        keep(self.store, self.state, parts.model, parts.optimizers, parts.micro)
        self.saved = self.state.step

    def _count_time(self) -> None:
        now_s, state = time.perf_counter(), self.state
        state.elapsed_s = now_s - self.began_s
        state.device_s = self.spent_s + (now_s - self.started_s) * self.processes.count

    def _resume(self) -> State:
        parts = self.parts

        def damaged(sentence: str) -> None:
            parts.log.event("damaged_checkpoint", what=sentence)
            parts.console.say(sentence)

        found = self.store.load_latest(damaged)
        if found is None:
            parts.log.rewind(-1)
            parts.log.event("start", steps=parts.settings.steps)
            return self.state
        self.saved = found.step
        self.state = put_back(found, parts.model, parts.optimizers, parts.micro)
        self.began_s -= self.state.elapsed_s  # as if there had been no interruption
        self.spent_s = self.state.device_s
        parts.log.rewind(found.step)
        parts.log.event("resume", step=found.step)
        parts.console.say(f"goes on from step {found.step} of {parts.settings.steps}")
        return self.state
