"""The waterfall: from what the machine could multiply in a step's time down to what the model needed of it.

Imagine a step in which the device multiplies at its measured peak from beginning to end, and nothing but what
the network's mathematics asks for. Every real step loses time against that, and each bit of time is lost
to exactly one cause. They are taken off in this order, and what is left is the share that was achieved: the
model FLOPs utilization (MFU). By construction all of them sum to the whole step.

    data_wait              The device has nothing to do while the host is in "pilgrim.data".
                           CPU: all time in "pilgrim.data", as nothing else can be done meanwhile.
    launch_overhead        The device has nothing to do while the host is at work on forward, backward or the
                           optimizer: it does not hand out kernels fast enough. And kernels with so
                           little to do (less than a microsecond's worth) that starting them is all.
                           CPU: time in these phases between operations (Python, torch's dispatcher, memory),
                           and operations with so little to do that calling them is all.
    idle                   The device has nothing to do for any other reason: the host waits for a result,
                           logs, or works between the phases.
    exposed_communication  Nothing but communication (nccl, gloo) is under way: waiting for another process
                           counts as that, too.
    recomputation          Forward kernels that run again in backward (activation checkpointing), but only
                           where that can be told: in eager mode.
    memory_bound           Time in which a kernel can't be faster because of the bytes it must move: bytes
                           divided by the measured copy speed, as far as that is more than its products would
                           take at the peak. (On a CPU, what fits into the caches may move faster than a large
                           copy does; then that limit is taken for the kernel's whole time.)
    elementwise_inefficiency  What kernels without products take longer than their bytes need: arithmetic that
                           is no product (exponentials, conversions), strided access, too few threads.
    extra_products         Products that the model's FLOPs don't count, at the peak's speed: the optimizer's
                           (Muon's orthogonalization), and attention scores that a mask throws away.
    matmul_inefficiency    What products take longer than their operations and bytes need: small shapes, above
                           all, and tiles that don't fit them.

The profiler itself costs time, on the host. Its cost is known, because steps are timed without it too, and
it is taken off where it arises: first of launch overhead, then of idle time and of the data's, then of all.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pilgrim.lab.profile.costs import bytes_moved, flops, is_product
from pilgrim.lab.profile.findings import LOSSES, Loss, Phase
from pilgrim.lab.profile.intervals import length, minus, overlap, union
from pilgrim.lab.profile.trace import PHASES, Task, Trace, idle

NOTHING_US = 1.0  # work that would take less, at the machine's best, is not what a kernel spends its time on
SHORT_US = {True: 4.0, False: 10.0}  # on a device, on a CPU: the same for kernels whose work is not known
CAUSES = (  # in a trace, before products are divided
    "data_wait",
    "launch_overhead",
    "idle",
    "exposed_communication",
    "recomputation",
    "memory_bound",
    "elementwise_inefficiency",
    "products",
)
TAKEN_FIRST = ("launch_overhead", "idle", "data_wait")  # where the profiler's own cost arises


@dataclass(frozen=True)
class Limits:
    """What the machine can do at best, as measured."""

    flops: float  # of products, per second
    bytes_per_s: float  # of copies, read and written


@dataclass(frozen=True)
class Priced:
    """A task, what it costs and what it is bound by. The times are parts of `exposed_us`, in this order."""

    task: Task
    exposed_us: float  # of its time, what no earlier task covers: streams may overlap
    product: bool
    flops: float | None
    bytes: float | None
    bound: str  # "compute", "memory", "launch" or "unknown"
    multiply_us: float  # what its products would take at the peak
    move_us: float  # what its bytes would take at the copy's speed, beyond that

    @property
    def slow_us(self) -> float:
        """What neither products nor bytes explain."""
        return self.exposed_us - self.multiply_us - self.move_us


@dataclass(frozen=True)
class Waterfall:
    losses: tuple[Loss, ...]  # in the order of LOSSES; with `achieved` they sum to 1
    achieved: float


def priced(trace: Trace, limits: Limits, compiled_bytes: dict[Task, float] | None = None) -> list[Priced]:
    """Every task with its price. `compiled_bytes`: of kernels whose shapes the trace does not have."""
    found, covered_us = [], float("-inf")
    for task in trace.tasks:
        exposed = max(0.0, task.end_us - max(task.begin_us, covered_us))
        if task.communication:
            exposed = 0.0  # counted by itself, where nothing hides it
        elif not trace.on_device:
            exposed = task.busy_us
        else:
            covered_us = max(covered_us, task.end_us)
        found.append(_price(task, exposed, trace.on_device, limits, compiled_bytes or {}))
    return found


def _price(
    task: Task, exposed_us: float, on_device: bool, limits: Limits, compiled_bytes: dict[Task, float]
) -> Priced:
    product = is_product(task.name, task.op)
    work = flops(task.name, task.op) if product else None
    moved = compiled_bytes.get(task, bytes_moved(task.op))
    multiply_us = (work or 0.0) / limits.flops * 1e6
    move_us = math.inf if moved is None and not product else (moved or 0.0) / limits.bytes_per_s * 1e6
    bound = _bound(task, product, multiply_us, move_us, on_device)
    multiply_part = min(multiply_us, exposed_us)
    move_part = min(max(0.0, move_us - multiply_us), exposed_us - multiply_part)
    return Priced(task, exposed_us, product, work, moved, bound, multiply_part, move_part)


def _bound(task: Task, product: bool, multiply_us: float, move_us: float, on_device: bool) -> str:
    if task.communication:
        return "unknown"
    work_us = max(multiply_us, move_us)
    if work_us < NOTHING_US or (work_us == math.inf and task.busy_us < SHORT_US[on_device]):
        return "launch"
    if product:
        return "compute" if multiply_us >= move_us else "memory"
    if move_us == math.inf:
        return "unknown"
    return "memory" if move_us >= task.busy_us / 2 else "compute"


def waterfall(
    trace: Trace, tasks: Sequence[Priced], limits: Limits, flops_needed: float, step_s: float
) -> Waterfall:
    """Losses of a step that took `step_s` without the profiler and needed `flops_needed` operations."""
    traced = time_by_cause(trace, tasks)
    parts = without_profiler(traced, step_s * 1e6)
    # Products at the peak, scaled as their time was when the profiler's cost was taken off.
    scale = parts["products"] / traced["products"] if traced["products"] else 0.0
    at_peak = scale * sum(p.multiply_us for p in tasks if _cause(p) == "products") / len(trace.steps)
    needed = min(flops_needed / limits.flops * 1e6, parts["products"])
    extra = min(max(0.0, at_peak - needed), parts["products"] - needed)
    times = {
        **parts,
        "extra_products": extra,
        "matmul_inefficiency": parts["products"] - needed - extra,
    }
    losses = tuple(Loss(name, max(0.0, times[name]) / (step_s * 1e6)) for name in LOSSES)
    return Waterfall(losses, 1 - sum(loss.share for loss in losses))


def time_by_cause(trace: Trace, tasks: Sequence[Priced]) -> dict[str, float]:
    """Microseconds of a step by cause, as traced; they sum to the window, divided by the steps."""
    steps = len(trace.steps)
    found = dict.fromkeys(CAUSES, 0.0)
    free = _free(trace)
    found["data_wait"] = length(overlap(free, trace.phases["data"]))
    at_work = minus(
        union(s for p in ("forward", "backward", "optimizer") for s in trace.phases[p]), trace.waits
    )
    at_work = minus(at_work, trace.phases["data"])
    found["launch_overhead"] = length(overlap(free, at_work))
    found["idle"] = length(free) - found["data_wait"] - found["launch_overhead"]
    found["exposed_communication"] = _exposed_communication_us(trace)
    for p in tasks:
        if p.task.phase == "data" and not trace.on_device:
            continue  # part of data_wait
        if (cause := _cause(p)) in ("products", "elementwise_inefficiency"):
            found["memory_bound"] += p.move_us
            found[cause] += p.exposed_us - p.move_us
        else:
            found[cause] += p.exposed_us
    return _summing_to(trace, {cause: us / steps for cause, us in found.items()})


def _free(trace: Trace) -> list[tuple[float, float]]:
    """When the device has nothing to do. On a CPU the data phase counts as such, less others' work in it."""
    if trace.on_device:
        return idle(trace)
    others = union((t.begin_us, t.end_us) for t in trace.tasks if t.phase != "data")
    return union([*idle(trace), *minus(overlap(trace.phases["data"], [trace.window]), others)])


def _cause(p: Priced) -> str:
    if p.task.communication:
        return "exposed_communication"
    if p.task.recomputed:
        return "recomputation"
    if p.bound == "launch":
        return "launch_overhead"
    return "products" if p.product else "elementwise_inefficiency"


def _exposed_communication_us(trace: Trace) -> float:
    talk = ((t.begin_us, t.end_us) for t in trace.tasks if t.communication)
    other = ((t.begin_us, t.end_us) for t in trace.tasks if not t.communication)
    return length(minus(talk, other))


def _summing_to(trace: Trace, found: dict[str, float]) -> dict[str, float]:
    """What a CPU's operation spends in its wrapped calls is in no task; it is the dispatcher's: overhead."""
    whole = (trace.window[1] - trace.window[0]) / len(trace.steps)
    found["launch_overhead"] += whole - sum(found.values())
    return found


def without_profiler(parts: dict[str, float], step_us: float) -> dict[str, float]:
    """The same causes, summing to `step_us`: the profiler's cost is taken off where it arises."""
    left = dict(parts)
    cost = sum(parts.values()) - step_us
    for cause in TAKEN_FIRST:
        if cost > 0:
            # Half at most: Python is slower under the profiler, but it does not vanish without it.
            taken = min(cost, left[cause] / 2)
            left[cause] -= taken
            cost -= taken
    scale = step_us / sum(left.values())
    return {cause: us * scale for cause, us in left.items()}


def phases(trace: Trace, tasks: Iterable[Priced], step_s: float) -> tuple[Phase, ...]:
    """How a step's time divides among its phases.

    On a CPU: when the host was in each. On a device, whose work comes later than the call for it: the time of
    the kernels that a phase launched, and the time without any while the host was in it.
    """
    spent = dict.fromkeys((*PHASES, "other"), 0.0)
    free = idle(trace) if trace.on_device else [trace.window]
    if trace.on_device:
        for p in tasks:
            spent[p.task.phase] += p.exposed_us
        spent["sync"] += _exposed_communication_us(trace)
    rest = free
    for name in PHASES:
        spent[name] += length(overlap(rest, trace.phases[name]))
        rest = minus(rest, trace.phases[name])
    spent["other"] += length(rest)
    whole = sum(spent.values())
    return tuple(Phase(name, us / whole * step_s) for name, us in spent.items())
