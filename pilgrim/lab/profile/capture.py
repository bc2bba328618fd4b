"""Measuring: warm up, time steps as they are, trace some, time some more, and look once without the compiler.

    warm up    fits the microbatch, compiles, fills caches; timed, and in no trace
    plain      the times that count: no profiler is on
    traced     the same steps under torch.profiler: what they consist of
    plain      once more, so that a machine that got slower meanwhile doesn't look like the profiler's cost
    eager      layers, and the lines behind operations (eager.py)

A profiler costs time itself, some percent. That's why times come from plain steps, and only shares from the
trace. On a GPU, the times of single steps are taken on the device, by events between them: the host runs
ahead and would only see how fast it hands out work.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pilgrim.core.files import explained
from pilgrim.core.peaks import synchronize
from pilgrim.lab.profile import eager
from pilgrim.lab.profile.compilation import CompileLog, listening, without_compiling
from pilgrim.lab.profile.findings import Layer
from pilgrim.lab.profile.steps import Held, Load, Work

TRACE = "trace.json.gz"
SNAPSHOT = "memory_snapshot.pickle"
HISTORY = 200_000  # entries of the allocator's history that a snapshot keeps


@dataclass(frozen=True)
class Captured:
    """What was measured, still to be analysed."""

    trace: Path
    snapshot: Path | None
    warm_s: tuple[float, ...]  # preparing, and the steps of warming up: compilation is in there
    plain_s: tuple[float, ...]  # steps without the profiler
    loads: tuple[Load, ...]  # of the traced steps
    held: Held
    compile_log: CompileLog
    layers: tuple[Layer, ...]
    sources: eager.Sources


def capture(
    work: Work, device: torch.device, steps: int, warmup: int, folder: Path, looks: bool = True
) -> Captured:
    """Measure `steps` steps, and write trace and snapshot into `folder`.

    Of several processes, which can only step together, one `looks`; the others' result is of no use.
    """
    with listening() as log:
        warm_s = [_seconds(work.prepare), *(_seconds(_whole(work)) for _ in range(warmup))]
        log.steady = True
        before_s = timed(work, device, steps)
        loads = _traced(work, device, steps, folder) if looks else _made(work, steps)
        after_s = timed(work, device, steps)
        log.steady = False
        held = work.held()  # after steps, since the optimizer's state begins with the first
        with without_compiling():
            step = _whole(work)
            step()
            layers = eager.layers(work.model, step, lambda: synchronize(device))
            sources = eager.sources(step)
    snapshot = folder / SNAPSHOT
    return Captured(
        folder / TRACE,
        snapshot if device.type == "cuda" else None,
        tuple(warm_s),
        (*before_s, *after_s),
        loads,
        held,
        log,
        layers,
        sources,
    )


def timed(work: Work, device: torch.device, steps: int) -> list[float]:
    """Seconds of each of `steps` steps, one after the other and not waited for in between."""
    synchronize(device)
    with _no_collection():
        if device.type == "cuda":
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
            marks[0].record()
            for mark in marks[1:]:
                work.step()
                mark.record()
            work.finish()
            return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
        clock = [time.perf_counter()]
        for step in range(steps):
            work.step()
            if step == steps - 1:
                work.finish()
            clock.append(time.perf_counter())
        return [b - a for a, b in pairwise(clock)]


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _whole(work: Work) -> Callable[[], None]:
    """A step that is waited for."""

    def step() -> None:
        work.step()
        work.finish()

    return step


def _made(work: Work, steps: int) -> tuple[Load, ...]:
    """Steps that somebody else traces."""
    loads = tuple(work.step() for _ in range(steps))
    work.finish()
    return loads


def _traced(work: Work, device: torch.device, steps: int, folder: Path) -> tuple[Load, ...]:
    """Trace steps into the folder; on CUDA, a snapshot of the allocator's history too."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.memory._record_memory_history(max_entries=HISTORY)
    loads = []
    synchronize(device)
    with (
        _no_collection(),
        profile(activities=activities, record_shapes=True, profile_memory=True) as profiler,
    ):
        for _ in range(steps):
            with record_function("pilgrim.step"):
                loads.append(work.step())
        work.finish()
    if device.type == "cuda":
        torch.cuda.memory._dump_snapshot(str(folder / SNAPSHOT))
        torch.cuda.memory._record_memory_history(enabled=None)
    with explained("written", folder / TRACE):
        profiler.export_chrome_trace(str(folder / TRACE))
    return tuple(loads)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector stops the host for milliseconds, now and then; not while we measure."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
