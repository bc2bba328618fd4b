"""Traces made by hand, whose answers are known, and the smallest training that a real trace can be taken of.

Events are in Chrome's format, with times in milliseconds for legibility.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pilgrim.core.console import Console
from pilgrim.core.peaks import Peaks
from pilgrim.core.runlog import RunLog
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch, PackedRows, Position, Rows
from pilgrim.data.shards import TokenSet
from pilgrim.lab.profile.analysis import Setting, analyse
from pilgrim.lab.profile.capture import capture
from pilgrim.lab.profile.findings import Findings
from pilgrim.lab.profile.steps import TrainingSteps
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers, OptimSettings
from pilgrim.train.fit import MicroBatch
from pilgrim.train.keeping import State
from pilgrim.train.loop import Parts
from pilgrim.train.losses import token_losses
from pilgrim.train.settings import TrainSettings
from pilgrim.train.step import TokenLosses

HOST = 1
VOCABULARY, CONTEXT = 64, 128
PEAKS = Peaks(matmul_flops=1e12, copy_bytes_per_s=1e10)


class Story:
    """Tells what host and device did, and gives the events that the profiler would have written."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._id = 0

    def mark(self, name: str, begin: float, end: float) -> "Story":
        """A step or a phase: mark("step", 0, 10), mark("data", 0, 1)."""
        return self._add("user_annotation", f"pilgrim.{name}", begin, end, {})

    def op(
        self, name: str, begin: float, end: float, *dims: Any, kind: str = "float", **args: Any
    ) -> "Story":
        """An operation on the host, with the shapes of its tensors."""
        self._id += 1
        shapes = {"Input Dims": list(dims), "Input type": [kind] * len(dims), "External id": self._id}
        return self._add("cpu_op", name, begin, end, {**shapes, **args})

    def kernel(self, name: str, begin: float, end: float, called: float, what: str = "kernel") -> "Story":
        """What the device did, for the operation told last, which the host called at `called`."""
        correlation = len(self.events)
        self._add("cuda_runtime", "cudaLaunchKernel", called, called + 0.001, {"correlation": correlation})
        return self._add(what, name, begin, end, {"correlation": correlation, "External id": self._id}, tid=7)

    def wait(self, begin: float, end: float) -> "Story":
        """The host waits for the device."""
        return self._add("cuda_runtime", "cudaStreamSynchronize", begin, end, {"correlation": -1})

    def memory(self, at: float, address: int, size: int, device: int = 0, **args: int) -> "Story":
        """Bytes taken, or given back if negative."""
        found = {
            "Addr": address,
            "Bytes": size,
            "Device Type": device,
            "Total Allocated": 0,
            "Total Reserved": 0,
        }
        event = {"ph": "i", "name": "[memory]", "ts": at * 1e3, "tid": HOST, "args": {**found, **args}}
        self.events.append(event)
        return self

    def _add(
        self, cat: str, name: str, begin: float, end: float, args: dict[str, Any], tid: int = HOST
    ) -> "Story":
        times = {"ts": begin * 1e3, "dur": (end - begin) * 1e3}
        self.events.append({"ph": "X", "cat": cat, "name": name, "tid": tid, **times, "args": args})
        return self


@pytest.fixture
def story() -> Callable[[], Story]:
    return Story


# Real traces -----------------------------------------------------------------------------------------

RATES = OptimSettings(matrix_lr=0.02, embedding_lr=0.1, head_lr=0.01, norm_lr=0.01)


class RandomRows:
    """Rows of one document each; `before` is called for every row."""

    def __init__(self, runtime: Runtime, before: Callable[[], None]) -> None:
        dice = np.random.default_rng(1)
        tokens = dice.integers(1, VOCABULARY, 64 * CONTEXT).astype(np.uint16)
        starts = np.arange(0, 65 * CONTEXT, CONTEXT).astype(np.int64)
        self.runtime = runtime
        self.packed = PackedRows(TokenSet("random", tokens, starts, None, {}), CONTEXT, 0, runtime)
        self.before = before

    def at(self, context: int) -> "RandomRows":
        return self

    def rows(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        for row in self.packed.rows(position):
            self.before()
            yield row


def tiny_parts(
    folder: Path,
    losses: TokenLosses = token_losses,
    before: Callable[[], None] = lambda: None,
    depth: int = 2,
) -> Parts:
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
    model = Transformer(
        ModelSettings(depth=depth, width=64, head_size=32, context=CONTEXT).config(VOCABULARY)
    )
    initialize(model, runtime.generator("initialize"))
    rows: Rows = RandomRows(runtime, before)
    optimizers = Optimizers(model, RATES, runtime.dtype, compile=False)
    settings = TrainSettings(steps=100, rows=4, micro_rows=2)
    log, console = RunLog(folder), Console(quiet=True)
    return Parts(
        model,
        optimizers,
        RATES,
        rows,
        losses,
        MicroBatch(2),
        lambda step: {},
        runtime,
        settings,
        folder,
        log,
        console,
    )


def profiled(parts: Parts, compiled: bool = False, warmup: int = 2) -> Findings:
    """The tiny training, measured for real. The machine's peaks are given, as measuring them takes
    seconds."""
    work = TrainingSteps(parts, State())
    with closing(work):
        captured = capture(work, parts.runtime.device, steps=3, warmup=warmup, folder=parts.folder)
    runtime = Runtime(parts.runtime.device, parts.runtime.dtype, compiled, seed=1)
    return analyse(captured, Setting("tiny", "pretrain", 100, 2, 4, runtime), PEAKS)


@pytest.fixture
def tiny() -> Callable[..., Parts]:
    return tiny_parts


@pytest.fixture
def profile() -> Callable[..., Findings]:
    return profiled
