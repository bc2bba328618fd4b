"""A batch's gradients, in as many parts as memory wants (train/fit.py says how that is found)."""

from dataclasses import asdict

import torch

from pilgrim.core.console import Console
from pilgrim.core.runlog import RunLog
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch
from pilgrim.model.transformer import Transformer
from pilgrim.train.fit import MicroBatch, measure, too_little
from pilgrim.train.grow import Phase, grown_windows
from pilgrim.train.step import StepResult, TokenLosses, accumulate


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
    ) -> None:
        self.model, self.losses, self.micro, self.runtime = model, losses, micro, runtime
        self.log, self.console = log, console

    def of(self, batch: Batch, phase: Phase, step: int) -> StepResult:
        """Add the gradient of the batch's mean loss to the parameters' `.grad`.

        Again in smaller parts as long as memory does not suffice; raises OutOfMemory if one row is too much.
        """
        while (result := self._tried(batch, phase)) is None:
            self._shrink(phase, step)
        return result

    def _tried(self, batch: Batch, phase: Phase) -> StepResult | None:
        """None if memory did not suffice.

        It is dealt with outside of here: the error holds on to the frames that it passed through, and with
        them to all that they had computed.
        """
        micro_rows = self.micro.rows(phase.rows, phase.context)
        try:
            with grown_windows(self.model, phase):
                return accumulate(self.model, batch, micro_rows, self.losses, self.runtime)
        except torch.OutOfMemoryError:
            return None

    def _shrink(self, phase: Phase, step: int) -> None:
        """Give back what the failed attempt has left, and halve the microbatch."""
        before = self.micro.rows(phase.rows, phase.context)
        self.model.zero_grad(set_to_none=True)
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self.micro.halve(phase.rows, phase.context):
            raise too_little(f"one row of {phase.context} tokens is too much")
        now = self.micro.rows(phase.rows, phase.context)
        self.log.event("out_of_memory", step=step, micro_rows=before, now=now)
        self.console.say(
            f"out of memory with {before} rows at once: goes on with {now}, which gives the same gradients"
        )

    def fit(self, largest: Phase, later_bytes: int) -> None:
        """Measure how many rows fit, before hours are lost; raises OutOfMemory if not even one does.

        `later_bytes` are what the optimizers will still allocate.
        """
        found = measure(self.model, self.losses, self.runtime, later_bytes, largest.rows, largest.context)
        self.micro.tokens = found.rows * largest.context
        self.log.event("fit", context=largest.context, **asdict(found))
        self.console.say(str(found))
