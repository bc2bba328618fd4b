"""A batch's gradients, in as many parts as memory wants (train/fit.py says how that is found).

With several processes, each has its share of the rows, and all the same number of microbatches: what fits in
the fullest memory. If memory runs out later, one process alone can't do the batch again, as the others are in
the middle of adding up gradients with it. So it notes what would have been enough, and ends the run with a
sentence; started again, all go on from the last checkpoint with that.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace

import torch

from pilgrim.core.console import Console
from pilgrim.core.errors import StartAgain
from pilgrim.core.files import read_json, write_json_atomic
from pilgrim.core.processes import ALONE
from pilgrim.core.runlog import RunLog
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch
from pilgrim.model.transformer import Transformer
from pilgrim.train.fit import MicroBatch, measure, too_little
from pilgrim.train.grow import Phase, grown_windows
from pilgrim.train.step import Divisor, Quietly, StepResult, TokenLosses, accumulate, trained_tokens

NOTE = "out_of_memory.json"  # in a stage's folder


class Gradients:
    """Forward and backward over a batch. If memory runs out, in smaller parts, with an event."""

    def __init__(
        self,
        model: Transformer,
        losses: TokenLosses,
        micro: MicroBatch,
        runtime: Runtime,
        log: RunLog,
        console: Console,
        quietly: Quietly = nullcontext,
        divisor: Divisor = trained_tokens,
    ) -> None:
        self.model, self.losses, self.micro, self.runtime = model, losses, micro, runtime
        self.log, self.console, self.quietly, self.divisor = log, console, quietly, divisor

    def rows(self, phase: Phase) -> int:
        """Rows of a microbatch of this process's share."""
        return self.micro.rows(self.runtime.processes.share(phase.rows), phase.context)

    def of(self, batch: Batch, phase: Phase, step: int) -> StepResult:
        """Add the gradient of the batch's mean loss to the parameters' `.grad`.

        Again in smaller parts as long as memory does not suffice; raises OutOfMemory if one row is too much,
        and StartAgain where that can't be done in one of several processes.
        """
        while (result := self._tried(batch, phase)) is None:
            self._shrink(phase, step)
        return result

    def _tried(self, batch: Batch, phase: Phase) -> StepResult | None:
        """None if memory did not suffice.

        It is dealt with outside of here: the error holds on to the frames that it passed through, and with
        them to all that they had computed.
        """
        try:
            with grown_windows(self.model, phase):
                return accumulate(
                    self.model, batch, self.rows(phase), self.losses, self.runtime, self.quietly, self.divisor
                )
        except torch.OutOfMemoryError:
            return None

    def _shrink(self, phase: Phase, step: int) -> None:
        """Give back what the failed attempt has left, and halve the microbatch."""
        before = self.rows(phase)
        self.model.zero_grad(set_to_none=True)
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self.micro.halve(self.runtime.processes.share(phase.rows), phase.context):
            raise too_little(f"one row of {phase.context} tokens is too much")
        now = self.rows(phase)
        if self.runtime.processes.count > 1:
            write_json_atomic(self.log.folder / NOTE, {"micro_tokens": self.micro.tokens})
            raise StartAgain(
                f"process {self.runtime.processes.rank} ran out of memory at step {step} with {before} rows "
                f"at once; run again: it goes on from the last checkpoint, with {now}"
            )
        self.log.event("out_of_memory", step=step, micro_rows=before, now=now)
        self.console.say(
            f"out of memory with {before} rows at once: goes on with {now}, which gives the same gradients"
        )

    def recall(self) -> None:
        """Take over what a process that ran out of memory has noted."""
        noted = self.runtime.processes.by_first(self._noted)
        if noted is not None and (self.micro.tokens is None or noted < self.micro.tokens):
            self.micro.tokens = noted
            self.log.event("out_of_memory", micro_tokens=noted)

    def _noted(self) -> int | None:
        file = self.log.folder / NOTE
        return int(read_json(file)["micro_tokens"]) if file.exists() else None

    def fit(self, largest: Phase, later_bytes: int, extra: Sequence[str] = ()) -> None:
        """Measure how many rows fit, before hours are lost; raises OutOfMemory if not even one does.

        `later_bytes` are what the optimizers will still allocate, `extra` what a batch holds besides. Several
        processes measure each for itself, and take what fits everywhere.
        """
        processes, runtime = self.runtime.processes, self.runtime
        if runtime.parallel != "fsdp":  # memory may run out in one only: nobody must wait for it meanwhile
            runtime = replace(runtime, processes=ALONE)
        with self.quietly():
            rows = processes.share(largest.rows)
            found = measure(self.model, self.losses, runtime, later_bytes, rows, largest.context, extra)
        self.micro.tokens = processes.least(found.rows) * largest.context
        self.log.event("fit", context=largest.context, **asdict(found))
        self.console.say(str(found))
