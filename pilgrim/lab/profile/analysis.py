"""From what was captured to findings: every part of the analysis, put together."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch

from pilgrim.core import machine, peaks
from pilgrim.core.peaks import DTYPE_NAMES, Peaks
from pilgrim.core.runtime import Runtime
from pilgrim.lab.profile.capture import Captured
from pilgrim.lab.profile.findings import Findings
from pilgrim.lab.profile.fixes import Evidence, fixes
from pilgrim.lab.profile.generated import calls_of
from pilgrim.lab.profile.intervals import overlap, union
from pilgrim.lab.profile.kernels import kernels
from pilgrim.lab.profile.memory import Known, memory
from pilgrim.lab.profile.trace import Trace, read_trace
from pilgrim.lab.profile.waterfall import Limits, phases, priced, waterfall

RESTLESS = 1.25  # the slowest step by the fastest: more is no property of the step


@dataclass(frozen=True)
class Setting:
    """What was profiled, and where."""

    recipe: str
    stage: str
    stage_steps: int  # of the whole stage; 0 for generation
    micro_rows: int
    rows: int
    runtime: Runtime
    checkpointing: str | None = None  # the setting that switches recomputation off, if it is on
    notes: tuple[str, ...] = ()


def analyse(captured: Captured, setting: Setting, limits: Peaks) -> Findings:
    """Findings from a capture; `limits` are the peaks measured on the same machine."""
    runtime, trace = setting.runtime, read_trace(captured.trace)
    device = runtime.device
    steps, step_s = len(trace.steps), median(captured.plain_s)
    traced_s = (trace.window[1] - trace.window[0]) / 1e6 / steps
    # Counting what is needed is the same in all steps; how many tokens a batch holds differs a little.
    needed, tokens = mean(load.flops for load in captured.loads), mean(load.tokens for load in captured.loads)
    compiles = runtime.compile and setting.stage != "generate"
    measured = Limits(limits.matmul_flops, limits.copy_bytes_per_s)
    calls = calls_of(trace, captured.compile_log.graphs)
    tasks = priced(trace, measured, {t: c.bytes for t, c in calls.items() if c.bytes is not None})
    falls = waterfall(trace, tasks, measured, needed, step_s)
    times = phases(trace, tasks, step_s)
    held = memory(trace, _known(captured, setting))
    warming_s = max(0.0, sum(captured.warm_s) - (len(captured.warm_s) - 1) * step_s) if compiles else 0.0
    compilation = captured.compile_log.compilation(compiles, warming_s)
    spec = peaks.spec_of(machine.device_name(device))
    promised = spec.peak(runtime.dtype) if spec else None
    evidence = Evidence(
        setting.stage,
        setting.rows,
        setting.stage_steps,
        torch.get_num_threads(),
        machine.cores(),
        {loss.name: loss.share for loss in falls.losses},
        {phase.name: phase.seconds / step_s for phase in times},
        tasks,
        steps,
        held,
        compilation,
        setting.stage != "generate",
        captured.compile_log.late,
        _waits(trace),
        trace.on_device,
        _faster_dtype(runtime, limits),
        setting.checkpointing,
    )
    files = {"findings": "profile.json", "trace": captured.trace.name}
    if captured.snapshot:
        files["snapshot"] = captured.snapshot.name
    return Findings(
        recipe=setting.recipe,
        stage=setting.stage,
        machine=machine.device_name(device),
        dtype=DTYPE_NAMES[runtime.dtype],
        steps=steps,
        step_s=step_s,
        step_s_each=captured.plain_s,
        tokens=round(tokens),
        flops=needed,
        peak_flops=limits.matmul_flops,
        copy_bytes_per_s=limits.copy_bytes_per_s,
        spec_flops=promised,
        mfu=needed / step_s / limits.matmul_flops,
        mfu_spec=needed / step_s / promised if promised else None,
        losses=falls.losses,
        phases=times,
        layers=captured.layers,
        kernels=kernels(tasks, steps, calls, captured.sources),
        memory=held,
        compilation=compilation,
        fixes=fixes(evidence),
        files=files,
        notes=(*setting.notes, *_notes(traced_s, captured.plain_s, compiles)),
        traced_step_s=traced_s,
    )


def _known(captured: Captured, setting: Setting) -> Known:
    held = captured.held
    return Known(
        held.parameters,
        held.optimizer,
        held.cache,
        _capacity(setting.runtime.device),
        setting.micro_rows,
        tuple(load.gradients for load in captured.loads),
        grows=held.cache,
    )


def _capacity(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return machine.memory_bytes()[0]


def _waits(trace: Trace) -> float:
    """How often, in a step, the host waits for the device within a phase that should only hand out work."""
    at_work = union(span for p in ("data", "forward", "backward", "optimizer") for span in trace.phases[p])
    return len(overlap(trace.waits, at_work)) / len(trace.steps)


def _faster_dtype(runtime: Runtime, limits: Peaks) -> float | None:
    """How many times as fast products are in bf16 here, if the run is in fp32 and the machine has bf16."""
    if runtime.dtype != torch.float32:
        return None
    cuda = runtime.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = runtime.device.type == "cpu" and bool(machine.bf16_instructions())
    if not (cuda or cpu):
        return None
    return peaks.matmul_flops(runtime.device, torch.bfloat16) / limits.matmul_flops


def _notes(traced_s: float, plain_s: Sequence[float], compiles: bool) -> list[str]:
    cost = traced_s / median(plain_s) - 1
    notes = ["Steps were as fast under the profiler as without it."]
    if cost > 0.005:
        notes = [
            f"Steps took {cost:.0%} longer under the profiler; times are without it, shares from the trace."
        ]
    if max(plain_s) > RESTLESS * min(plain_s):
        notes.append(
            f"Steps took from {min(plain_s) * 1e3:.0f} to {max(plain_s) * 1e3:.0f} ms: something else is at "
            "work on this machine, or its clock varies; end other programs, and measure again."
        )
    if compiles:
        notes.append("Layers were timed in an extra step without torch.compile, which fuses across them.")
    return notes
