"""Tokens per second on several processes, and how much of a step nothing but communication goes on.

    python benchmarks/scale.py                            # 1 and 2 processes on this CPU
    python benchmarks/scale.py --preset d20 --processes 1 2 4 8 --parallel zero fsdp

Every process computes the same number of rows, whatever the number of processes (weak scaling), of random
tokens. Timed are steps after warming up, by the median. "Exposed" is from a trace of rank 0: the time in
which it talks, or waits for another process, and computes nothing, as a share of the step's time. "Hidden" is
the share of all talk that goes on while it computes. On a CPU the processes share the cores: with two cores,
two processes of one thread are compared with one process of one thread.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pilgrim.core.peaks import synchronize
from pilgrim.core.runtime import Runtime, RuntimeSettings, started
from pilgrim.data.loader import Batch
from pilgrim.lab.profile.intervals import length, minus, union
from pilgrim.lab.profile.trace import read_trace
from pilgrim.model.attention_choice import activated, choose
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers, OptimSettings
from pilgrim.train.parallel import in_parallel, losses_of
from pilgrim.train.step import accumulate

# depth, context, vocabulary, rows of a process, rows of a microbatch; the width follows from the depth
PRESETS = {"d4": (4, 512, 4096, 4, 4), "d12": (12, 2048, 32768, 32, 16), "d20": (20, 2048, 32768, 32, 8)}
RATES = OptimSettings(matrix_lr=0.02, embedding_lr=0.1, head_lr=0.01, norm_lr=0.01)
WARMUP, TRACED = 3, 2


def main() -> None:
    arguments = parsed()
    if arguments.worker is not None:
        work(arguments)
        return
    print(f"{'processes':>9} {'parallel':>8} {'tokens/s':>10} {'of linear':>9} {'exposed':>8} {'hidden':>7}")
    alone: float | None = None
    for count in arguments.processes:
        for parallel in arguments.parallel if count > 1 else arguments.parallel[:1]:
            found = measured(arguments, count, parallel)
            alone = alone or found["tokens_per_s"] / count
            linear = found["tokens_per_s"] / count / alone
            print(
                f"{count:9} {parallel if count > 1 else '-':>8} {found['tokens_per_s']:10,.0f} {linear:9.1%} "
                f"{found['exposed']:8.1%} {found['hidden']:7.1%}",
                flush=True,
            )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="d4")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--parallel", nargs="+", default=["zero"], choices=["ddp", "zero", "fsdp"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compile", choices=["auto", "off"], default="auto")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(arguments: argparse.Namespace, count: int, parallel: str) -> dict[str, Any]:
    """Start `count` processes of this file, and read what the first has found."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={count}",
        ]
        chosen = [f"--preset={arguments.preset}", f"--parallel={parallel}", f"--steps={arguments.steps}"]
        own = [__file__, *chosen, f"--compile={arguments.compile}", f"--worker={result}"]
        subprocess.run([*launcher, *own], check=True)
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def work(arguments: argparse.Namespace) -> None:
    settings = RuntimeSettings(compile=arguments.compile, parallel=arguments.parallel[0], threads=1)
    with started(settings, seed=1) as runtime:
        step, tokens = made(arguments.preset, runtime)
        for _ in range(WARMUP):
            step()
        times_s = []
        for _ in range(arguments.steps):
            synchronize(runtime.device)
            began_s = time.perf_counter()
            step()
            synchronize(runtime.device)
            times_s.append(time.perf_counter() - began_s)
        exposed, hidden = communication(step, runtime)
        if runtime.processes.first:
            speed = tokens * runtime.processes.count / statistics.median(times_s)
            found = {"tokens_per_s": speed, "exposed": exposed, "hidden": hidden}
            Path(arguments.worker).write_text(json.dumps(found))


def made(preset: str, runtime: Runtime) -> tuple[Any, int]:
    """A training step, and the tokens of this process in it."""
    depth, context, vocabulary, rows, micro_rows = PRESETS[preset]
    model = Transformer(ModelSettings(depth=depth, context=context).config(vocabulary))
    initialize(model, runtime.generator("initialize"))
    if runtime.parallel != "fsdp":
        model = model.to(runtime.device)
    choice = activated(runtime.processes.by_first(lambda: choose(runtime, model.config, micro_rows)))
    parallel = in_parallel(model, losses_of(model, runtime, choice.backend)[0], runtime)
    optimizers = Optimizers(model, RATES, runtime.dtype, runtime.compile, runtime.parallel)
    generator = runtime.generator("tokens", runtime.processes.rank)
    ids = torch.randint(vocabulary, (rows, context + 1), generator=generator)
    documents = torch.zeros(rows, context, dtype=torch.int32)
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), documents)

    def step() -> None:
        accumulate(model, batch, micro_rows, parallel.losses, runtime, parallel.quietly)
        with record_function("pilgrim.optimizer"):
            optimizers.step(1.0, 0.95)

    return step, rows * context


def communication(step: Any, runtime: Runtime) -> tuple[float, float]:
    """Of rank 0: the share of a step in which only talk goes on, and the share of talk that is hidden."""
    activities = [ProfilerActivity.CPU]
    if runtime.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(TRACED):
            with record_function("pilgrim.step"):
                step()
        synchronize(runtime.device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        trace = read_trace(file)
    talk = union((task.begin_us, task.end_us) for task in trace.tasks if task.communication)
    busy = ((task.begin_us, task.end_us) for task in trace.tasks if not task.communication)
    alone_us, talk_us = length(minus(talk, busy)), length(talk)
    return alone_us / (trace.window[1] - trace.window[0]), 1 - alone_us / talk_us if talk_us else 0.0


if __name__ == "__main__":
    main()
