"""THE loop. Stages differ in their rows, their rates and what they train for, not in how they train.

    at every step:     next batch -> gradients -> update -> a row of metrics
    now and then:      look at the losses, save a checkpoint, evaluate and sample
    always:            a stopped run goes on from its last checkpoint, to the same bits

Everything that determines the future is in a checkpoint (train/keeping.py). Saving one stops training only
for a copy: it is written in the background. It is durable before an evaluation goes on record, before the
next one is saved, and before the loop ends, for whatever reason.

Nothing in a step waits for the device, so that a GPU has its next work before it is done with this: batches
are made ahead by a thread (data/prefetch.py) and counted before they are copied, and losses are looked at
only now and then. Whether a step is bad is found on the device (train/health.py), which can refuse its
update; whatever else is to be done about it is done when it is looked at (train/faults.py).
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.compiling import keep_compiled
from pilgrim.core.console import Console
from pilgrim.core.errors import Stopped
from pilgrim.core.runlog import RunLog, read_rows
from pilgrim.core.runtime import Runtime
from pilgrim.core.watchdog import UNWATCHED, Watchdog
from pilgrim.data.loader import Batch, Position, Rows
from pilgrim.data.prefetch import InTurn, Prefetch
from pilgrim.model.transformer import Transformer
from pilgrim.optim import schedule
from pilgrim.optim.groups import Optimizers, OptimSettings
from pilgrim.train.faults import Diverged, Fault, Faults, RollBack, in_evaluation, in_step
from pilgrim.train.fit import MicroBatch, blank, too_little
from pilgrim.train.gradients import Gradients
from pilgrim.train.grow import grown_batches, phase_at, phases
from pilgrim.train.health import Health, HealthSettings, Verdict, read
from pilgrim.train.keeping import COUNTS, State, keep, put_back
from pilgrim.train.objective import NEXT_TOKEN, Objective
from pilgrim.train.settings import TrainSettings
from pilgrim.train.step import Quietly, TokenLosses
from pilgrim.train.stopping import Agreed, stop_asked

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
    watchdog: Watchdog = UNWATCHED
    quietly: Quietly = nullcontext  # around all microbatches but the last (train/parallel.py)
    health: HealthSettings = field(default_factory=HealthSettings)
    objective: Objective = NEXT_TOKEN  # of which `losses` are made
    ahead: bool = True  # batches may be made ahead; not so where they depend on the weights of now


@dataclass(frozen=True)
class Row:
    """One step, not looked at yet."""

    step: int
    position: Position | None  # of the loader, behind its batch
    measured: dict[str, Any]
    verdict: Verdict
    sums_k: Tensor | None  # what the objective wants logged; on the device


@dataclass
class Window:
    """What happened since the losses were last looked at."""

    rows: list[Row] = field(default_factory=list)
    tokens: int = 0
    began_s: float = field(default_factory=time.perf_counter)


class Loop:
    """A stage's training, from wherever it stands to its last step."""

    def __init__(self, parts: Parts) -> None:
        settings = parts.settings
        assert settings.rows and settings.steps
        self.parts, self.steps = parts, settings.steps
        self.phases = phases(settings.grow, settings.steps, settings.rows, parts.model.config.context)
        self.processes = parts.runtime.processes
        self.store = CheckpointStore(
            parts.folder / "checkpoints", processes=self.processes, fence=parts.log.fence
        )
        self.state = State()
        self.window = Window()
        self.gradients = Gradients(
            parts.model,
            parts.losses,
            parts.micro,
            parts.runtime,
            parts.log,
            parts.console,
            parts.quietly,
            parts.objective.divisor,
        )
        self.health = Health(parts.health, parts.runtime.device)
        self.faults = Faults(parts.health, parts.folder, parts.log, parts.console)
        self.saved: int | None = None  # the step of the newest checkpoint
        self.skipped: int | None = None  # the last step whose update was refused, on the way from there
        self.began_s = self.started_s = time.perf_counter()
        self.spent_s = 0.0  # device-seconds, before this process

    def run(self) -> State:
        """Train to the end. Raises Diverged if training goes wrong for good, OutOfMemory if memory does not
        suffice, Stopped if asked to.
        """
        self._resume()
        with self.parts.watchdog.watching():
            self.prepare()
            with stop_asked() as asked, self.store:
                stop = Agreed(asked, self.processes)
                while True:
                    try:
                        self._train(stop)
                        break
                    except RollBack as back:
                        with self.parts.watchdog.patient():
                            self._roll_back(back.fault)
                if stopping := stop.now():  # asked for during the last evaluation
                    self._stop(stopping)
        self._count_time()
        return self.state

    def _train(self, stop: Callable[[], int]) -> None:
        """From where the state stands to the last step. Raises RollBack where the way leads back."""
        parts, settings, state = self.parts, self.parts.settings, self.state
        made = grown_batches(parts.rows, self.phases, state.step, state.position)
        shares = ((batch.share(self.processes), position) for batch, position in made)
        with (
            (Prefetch if parts.ahead else InTurn)(shares, parts.runtime.device) as stream,
            parts.console.progress(self.steps, "step", state.step) as progress,
        ):
            self._evaluate_if_due()
            self.window, owed = Window(), False
            while state.step < self.steps:
                waited_s = stream.waited_s
                with record_function("pilgrim.data"):
                    batch, state.position = next(stream)
                state.data_wait_s += stream.waited_s - waited_s
                self.step(batch)
                parts.watchdog.alive()
                stopping = stop()  # read once, so that it can't rise between saving and stopping
                evaluate = state.step % settings.eval_every == 0 or state.step == self.steps
                owed = owed or stopping > 0 or evaluate or state.step % settings.checkpoint_every == 0
                if owed or state.step % LOOK_EVERY == 0:
                    progress.advance(len(self.window.rows), **self._look())
                # Not behind a bad step: weights that may be spoiled must not push good ones out.
                save = owed and (state.step != self.skipped or state.step == self.steps)
                if not (save or stopping or evaluate):
                    continue
                with parts.watchdog.patient():
                    if save:
                        self._save()
                        owed = False
                    if stopping:
                        self._stop(stopping)
                    if evaluate:
                        self._evaluate_if_due()
                self.window = Window()  # the clock of training stands still meanwhile

    def prepare(self) -> None:
        """Before the first step: find the microbatch, and compile all shapes that will come; say so.

        Changes no weight.
        """
        parts, began_s = self.parts, time.perf_counter()
        coming = [phase for phase in self.phases if self.state.step < phase.end]
        if not coming:
            return
        self.gradients.recall()
        if parts.runtime.compile:
            parts.console.say(
                "compiling the training step: a minute or two the first time, "
                f"then seconds, as it is kept in {keep_compiled()}"
            )
        if parts.runtime.device.type == "cuda" and parts.micro.given is None and parts.micro.tokens is None:
            largest = max(coming, key=lambda phase: (phase.context, phase.rows))
            self.gradients.fit(largest, parts.optimizers.missing_bytes(), parts.objective.extra)
        # Several processes settle by it how gradients are sent, too: a resumed run adds in the same order.
        if parts.runtime.compile or self.processes.count > 1:
            for phase in {(phase.rows, phase.context, phase.window): phase for phase in coming}.values():
                few = blank(self.gradients.rows(phase), phase.context, parts.objective.extra)
                self.gradients.of(few, phase, self.state.step)
            parts.optimizers.rehearse(self.health.rehearsal())
        if parts.runtime.compile:
            parts.log.event("compiled", elapsed_s=time.perf_counter() - began_s)

    def step(self, batch: Batch) -> None:
        """One update of the weights. Nobody waits for the device; an event is written if memory runs out."""
        parts, settings, state = self.parts, self.parts.settings, self.state
        phase = phase_at(self.phases, state.step)
        by_step = schedule.learning_rate(
            state.step,
            self.steps,
            settings.warmup,
            settings.decay,
            settings.final_lr,
            settings.decay_shape,
        )
        multiplier = settings.rate_scale * by_step * phase.lr
        momentum = schedule.momentum(
            state.step, parts.optim.momentum_start, parts.optim.momentum, parts.optim.momentum_warmup
        )
        if state.step == phase.first:
            self.health.forget()
        result = self.gradients.of(batch, phase, state.step)
        with record_function("pilgrim.optimizer"):
            verdict = self.health.judge(result.loss, result.gradient_norm)
            try:
                if batch.trained_tokens:  # else momentum alone would move the weights
                    parts.optimizers.step(multiplier, momentum, verdict.take)
            except torch.OutOfMemoryError:  # some weights have moved: this can't be done again
                raise too_little("none was left for the optimizers' step") from None
        tokens = batch.tokens
        state.step += 1
        state.tokens += tokens
        self.window.tokens += tokens
        learning_rate = parts.optimizers.peak_lr * multiplier
        measured = {"learning_rate": learning_rate, "tokens": state.tokens, **batch.told}
        self.window.rows.append(Row(state.step, state.position, measured, verdict, result.sums_k))

    def _look(self) -> dict[str, float]:
        """Write the window's rows, and see to bad steps. The only place that waits for the device."""
        parts, window, state = self.parts, self.window, self.state
        loss = math.nan
        with record_function("pilgrim.sync"):  # what still runs on the device is waited for here
            found = [read(row.verdict) for row in window.rows]
            told = [
                {} if row.sums_k is None else parts.objective.measures(row.sums_k.tolist())
                for row in window.rows
            ]
        for row, judged, more in zip(window.rows, found, told, strict=True):
            loss = judged.loss
            parts.log.metrics(row.step, loss=loss, grad_norm=judged.grad_norm, **row.measured, **more)
            if fault := in_step(row.step, judged, row.position):
                self._see_to(fault)
            else:
                self.faults.passed(row.step, state)
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

    def _see_to(self, fault: Fault) -> None:
        """Do what the recipe says about a bad step."""
        match self.faults.met(fault, self.state):
            case "stop":
                raise self._diverged(fault)
            case "roll_back":
                raise RollBack(fault)
            case "skip":
                self.skipped = fault.step
                self.faults.tell(fault, "its batch is skipped")
            case "ignore":
                self.faults.tell(fault, "ignored, as health.on_spike says")

    def _diverged(self, fault: Fault) -> Diverged:
        """What to raise where training can't go on.

        Weights that give no finite loss can't be mended by a learning rate, so their checkpoints are removed.
        """
        self.store.wait()
        if fault.kind == "non_finite_loss":
            for step in self._saved_steps():
                if step >= self.state.fault_updates:
                    self.store.remove(step)
        return self.faults.error(fault, self.state, self._saved_steps())

    def _saved_steps(self) -> list[int]:
        return self.processes.by_first(self.store.steps)

    def _roll_back(self, fault: Fault) -> None:
        """All as at the newest checkpoint that is surely good, but on with the data behind the fault."""
        parts, now = self.parts, self.state
        self.store.wait()
        found = self.store.load_latest(self._damaged, before=max(fault.updates, now.back_to + 1))
        if found is None:
            raise self._diverged(fault)
        now.back_to = found.step
        fits = parts.micro.tokens  # not what did before it was measured, or before memory ran out
        then = put_back(found, parts.model, parts.optimizers, parts.micro)
        parts.micro.tokens = fits
        spent = {name: getattr(now, name) for name in ("data_wait_s", "train_s", "elapsed_s", "device_s")}
        counts = {name: getattr(now, name) for name in COUNTS}
        self.state = replace(then, position=fault.position, **spent, **counts)
        self.skipped = None  # a step that is made again is a new one
        self._judge_as_in(self.state)
        self._save()
        self.store.wait()  # before the logs are cut: a kill in between must not leave rows missing
        parts.log.rewind(found.step)
        self.faults.tell(fault, f"back to step {found.step}, and on with the data behind it")

    def _stop(self, signal_number: int) -> None:
        self.store.wait()
        self.parts.log.event("stopped", step=self.state.step)
        raise Stopped(signal_number)

    def _evaluate_if_due(self) -> None:
        """Evaluate at step 0, every `eval_every` steps and at the end, unless that is already on record.

        Meanwhile the checkpoint of this step is written. It is durable before the measures are on record.
        """
        state, settings = self.state, self.parts.settings
        if state.step % settings.eval_every and state.step != settings.steps:
            return
        records = self.processes.by_first(lambda: read_rows(self.parts.folder / "evals.jsonl"))
        known = next((row for row in records if row["step"] == state.step), None)
        measures = known or self.parts.evaluate(state.step)
        numbers = {name: value for name, value in measures.items() if isinstance(value, float)}
        if fault := in_evaluation(state, numbers):  # of the weights: no batch can be skipped
            if self.faults.met(fault, state) != "roll_back":
                raise self._diverged(fault)
            raise RollBack(fault)
        saved = state.step == self.saved  # it is not behind a bad step
        better = state.best_bpb is None or measures["bpb"] <= state.best_bpb
        if better and (saved or not state.step):
            state.best_bpb = measures["bpb"]
            if state.step and not known:
                self.store.mark_best(state.step)
        if not known:
            self.store.wait()
            self.parts.log.evaluation(state.step, **measures)  # last: what is on record is not done again

    def _save(self) -> None:
        parts = self.parts
        self._count_time()
        self.state.health = self.health.values()
        keep(self.store, self.state, parts.model, parts.optimizers, parts.micro)
        self.saved = self.state.step

    def _count_time(self) -> None:
        now_s, state = time.perf_counter(), self.state
        state.elapsed_s = now_s - self.began_s
        state.device_s = self.spent_s + (now_s - self.started_s) * self.processes.count

    def _damaged(self, sentence: str) -> None:
        self.parts.log.event("damaged_checkpoint", what=sentence)
        self.parts.console.say(sentence)

    def _resume(self) -> None:
        parts = self.parts
        found = self.store.load_latest(self._damaged)
        if found is None:
            parts.log.rewind(-1)
            parts.log.event("start", steps=parts.settings.steps)
            if parts.health.goes_back:
                self._save()  # something to go back to
            return
        self.saved = found.step
        self.state = put_back(found, parts.model, parts.optimizers, parts.micro)
        self._judge_as_in(self.state)
        self.began_s -= self.state.elapsed_s  # as if there had been no interruption
        self.spent_s = self.state.device_s
        parts.log.rewind(found.step)
        parts.log.event("resume", step=found.step)
        parts.console.say(f"goes on from step {found.step} of {parts.settings.steps}")

    def _judge_as_in(self, state: State) -> None:
        """Go on with the course of a checkpoint; begin anew where it is from before there was one."""
        if state.health is not None:
            self.health.put_back(state.health)
