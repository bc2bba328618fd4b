"""What to change, with the gain that it would bring: rules, each a function from what was measured to advice.

A rule looks for one kind of trouble. If it is there, it returns a Fix with what speaks for it, the setting
that cures it, and the predicted gain: which share of the step's time would be saved. The prediction is
arithmetic on the waterfall, never a guess from elsewhere, and each rule says which. Rules know nothing of
each other, so two may claim the same time; gains must not be added up. The three largest are told.

Whether a prediction was right is for `pilgrim profile --diff` to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pilgrim.lab.profile.findings import Compilation, Fix, Memory
from pilgrim.lab.profile.waterfall import Priced

MOST = 3
LEAST_GAIN = 0.005  # half a percent: less is noise
CHANGES = "It changes what is learned, so compare that too."
EFFICIENT = 0.75  # of the peak: what large products reach


@dataclass(frozen=True)
class Evidence:
    """What the rules look at. Shares are of the step's time."""

    stage: str
    rows: int  # of a step
    stage_steps: int  # of the whole stage; 0 for generation
    threads: int  # that torch computes with on a CPU
    cores: int
    losses: dict[str, float]  # the waterfall
    phases: dict[str, float]  # shares
    tasks: Sequence[Priced]
    steps: int
    memory: Memory
    compilation: Compilation
    can_compile: bool  # torch.compile works here, and the stage has something to compile
    late_compilations: int  # in profiled steps
    waits: float  # for the device in a step, outside "sync"
    on_device: bool
    faster_dtype: float | None  # how many times as fast products are in bf16, if it isn't used
    checkpointing: str | None  # the setting that switches recomputation off, if it is on

    @property
    def trains(self) -> bool:
        return self.stage != "generate"


def fixes(evidence: Evidence) -> tuple[Fix, ...]:
    """The best advice, largest gain first."""
    found = (rule(evidence) for rule in RULES)
    worth = [fix for fix in found if fix and fix.gain >= LEAST_GAIN]
    best: dict[str, Fix] = {}  # one for each setting: two reasons for the same thing are told once
    for fix in sorted(worth, key=lambda fix: -fix.gain):
        best.setdefault(fix.setting, fix)
    return tuple(best.values())[:MOST]


# Rules ----------------------------------------------------------------------------------------------


def loader_stalls(e: Evidence) -> Fix | None:
    """The device waits for batches. Made ahead, in the background, they would cost nothing: all of it is
    gained."""
    share = e.losses["data_wait"]
    return Fix(
        "Make batches ahead of time",
        f"The step waits {share:.1%} of its time for the next batch. Making them needs a processor core.",
        f"runtime.threads={e.cores - 1}"
        if e.threads >= e.cores > 1
        else "a processor with a core to spare, or a faster disk for the run's folder",
        share,
        "docs/speed.md#batches",
    )


def graph_breaks(e: Evidence) -> Fix | None:
    """Torch.compile gave up in the middle. What stands between graphs runs as in eager mode, so the gain is
    that of compiling it: see `compiled_gain`, over what is outside of compiled graphs in forward and
    backward."""
    if not e.compilation.breaks:
        return None
    outside = [p for p in e.tasks if p.task.op is None or p.task.op.graph is None]
    between = [p for p in outside if p.task.phase in ("forward", "backward")]
    both = e.phases["forward"] + e.phases["backward"]
    gain = compiled_gain(e, between) + e.losses["launch_overhead"] * both / max(sum(e.phases.values()), 1e-9)
    return Fix(
        f"Mend {_count(len(e.compilation.breaks), 'graph break')}",
        f"torch.compile stopped at {e.compilation.breaks[0]}; nothing is fused across it.",
        "take that line out of the compiled function, or write it in tensor operations",
        gain,
        "docs/speed.md#breaks",
    )


def recompiles(e: Evidence) -> Fix | None:
    """Compilations in the middle of steps that were warmed up. All that launch overhead that they cause
    goes."""
    if not e.late_compilations:
        return None
    why = next(
        (r for r in reversed(e.compilation.recompilations)), "something that changes from step to step"
    )
    return Fix(
        "Let every step look the same to the compiler",
        f"{_count(e.late_compilations, 'compilation')} fell into profiled steps: {why}.",
        "rows per step that the rows of a microbatch divide, and warm up longer (--warmup)",
        e.losses["launch_overhead"],
        "docs/speed.md#recompilations",
    )


def tiny_kernels(e: Evidence) -> Fix | None:
    """Eager mode: many small kernels, each called by Python, each reading and writing memory. The gain is
    that of making one kernel of each stretch between products: see `compiled_gain`."""
    if e.compilation.enabled or not e.can_compile:
        return None
    launches = len(e.tasks) / e.steps
    overhead, moved = e.losses["launch_overhead"], e.losses["memory_bound"]
    storm = overhead > moved
    why = (
        f"{launches:,.0f} kernels a step, and {overhead:.0%} of the time goes into calling them."
        if storm
        else f"{moved:.0%} of the time goes into moving bytes, much of it to memory and back between kernels."
    )
    return Fix(
        "Fuse small kernels" if storm else "Fuse what is bound by memory",
        why,
        "runtime.compile=on",
        compiled_gain(e, e.tasks) + e.losses["launch_overhead"] * (1 - _kernels_left(e.tasks)),
        "docs/speed.md#small-kernels",
    )


def small_microbatches(e: Evidence) -> Fix | None:
    """Each microbatch calls every kernel once more. In fewer, larger ones, launch overhead falls with their
    number, and products get as efficient as the largest ones of this profile are already."""
    larger = _larger_divisor(e)
    if larger is None:
        return None
    fewer = 1 - e.memory.micro_rows / larger
    gain = e.losses["launch_overhead"] * fewer + e.losses["matmul_inefficiency"] * _small_products(e)
    return Fix(
        "Take more rows at once",
        f"A step of {e.rows} rows goes through in microbatches of {e.memory.micro_rows}; {larger} would fit.",
        f"{e.stage}.micro_rows={larger}",
        gain,
        "docs/speed.md#microbatches",
    )


def small_products(e: Evidence) -> Fix | None:
    """Products too small to be efficient, and the whole step is one microbatch already. With twice the rows,
    those below the efficiency of the largest ones get half of the way there."""
    if not e.trains or e.memory.micro_rows < e.rows or 2 * e.rows > e.memory.micro_rows_that_fit:
        return None
    return Fix(
        "Give the products more rows",
        f"{e.losses['matmul_inefficiency']:.1%} of the time, products run below the peak. {CHANGES}",
        _twice_the_rows(e),
        e.losses["matmul_inefficiency"] * _small_products(e) / 2,
        "docs/speed.md#batch",
    )


def idle_cores(e: Evidence) -> Fix | None:
    """A CPU with more cores than threads. Kernels divide their work among threads, so their time falls with
    them; what the host does besides doesn't."""
    if e.on_device or e.threads >= e.cores:
        return None
    kernels = 1 - e.losses["data_wait"] - e.losses["idle"] - e.losses["launch_overhead"]
    return Fix(
        "Use all cores",
        f"torch computes with {_count(e.threads, 'thread')} on {e.cores} cores.",
        f"runtime.threads={e.cores}",
        kernels * (1 - e.threads / e.cores),
        "docs/speed.md#threads",
    )


def slow_format(e: Evidence) -> Fix | None:
    """Products in fp32 where bf16 is faster. The gain is products' time times the measured ratio of
    speeds."""
    if e.faster_dtype is None or e.faster_dtype <= 1:
        return None
    products = 1 - sum(e.losses.values()) + e.losses["matmul_inefficiency"] + e.losses["extra_products"]
    return Fix(
        "Compute in bf16",
        f"Products are {e.faster_dtype:.1f} times as fast in bf16 on this machine, and take {products:.0%}.",
        "runtime.dtype=bf16",
        products * (1 - 1 / e.faster_dtype),
        "docs/speed.md#number-format",
    )


def exposed_communication(e: Evidence) -> Fix | None:
    """Processes wait for each other's gradients. With twice the rows per step, half as often per token."""
    if not e.trains:
        return None
    share = e.losses["exposed_communication"]
    return Fix(
        "Talk less often",
        f"{share:.1%} of the time, processes exchange numbers and compute nothing. {CHANGES}",
        _twice_the_rows(e),
        share / 2,
        "docs/speed.md#batch",
    )


def large_optimizer(e: Evidence) -> Fix | None:
    """The optimizer's work is the same for a small batch as for a large one. With twice the rows per step, it
    is done half as often for the same tokens."""
    share = e.phases["optimizer"]
    if not e.trains or share < 0.1:
        return None
    return Fix(
        "Learn from more tokens at each step",
        f"The optimizer takes {share:.0%} of a step, however many rows it has. {CHANGES}",
        _twice_the_rows(e),
        share / 2,
        "docs/speed.md#batch",
    )


def recomputation(e: Evidence) -> Fix | None:
    """Activations are computed twice to save memory that is there. All of the second time is gained."""
    share = e.losses["recomputation"]
    if e.checkpointing is None:
        return None
    return Fix(
        "Keep the activations",
        f"{share:.1%} of the time goes into computing them a second time.",
        e.checkpointing,
        share,
        "docs/speed.md#recomputation",
    )


def waits_in_steps(e: Evidence) -> Fix | None:
    """The host waits for the device in the middle of a step, and then has nothing handed out when it is done.
    The device's idle time is gained."""
    if not e.on_device or e.waits < 1:
        return None
    return Fix(
        "Don't wait for the device in the step",
        f"The host waits for the device {e.waits:.0f} times a step (.item(), .cpu(), print of a tensor).",
        "keep results on the device until they are logged, as train/loop.py does every ten steps",
        e.losses["idle"] + e.losses["launch_overhead"] / 2,
        "docs/speed.md#waiting",
    )


def few_replies(e: Evidence) -> Fix | None:
    """Writing reads all weights for every token. More replies at once share that: twice the rows in the same
    time for the bytes, and for the launches, so half of both is gained per token."""
    if e.trains or 2 * e.rows > e.memory.micro_rows_that_fit:
        return None
    share = e.losses["memory_bound"] + e.losses["launch_overhead"]
    return Fix(
        "Write more replies at once",
        f"{share:.0%} of the time goes into calling kernels and reading weights, for any number of rows.",
        f"Engine(model, runtime, rows={2 * e.rows})",
        share / 2,
        "docs/speed.md#replies",
    )


RULES = (
    loader_stalls,
    graph_breaks,
    recompiles,
    tiny_kernels,
    small_microbatches,
    small_products,
    idle_cores,
    slow_format,
    exposed_communication,
    large_optimizer,
    recomputation,
    waits_in_steps,
    few_replies,
)


# Arithmetic -----------------------------------------------------------------------------------------


def compiled_gain(e: Evidence, tasks: Sequence[Priced]) -> float:
    """The share of the step that fusing would save of these tasks' own time.

    A compiler makes one kernel of each stretch of operations between two products. It reads what the first
    one read and writes what the last one wrote, so of n operations' traffic about 1/n remains.
    """
    others = [p for p in tasks if not p.product]
    if not others:
        return 0.0
    whole = sum(p.exposed_us for p in e.tasks) or 1.0
    share = sum(p.move_us + (p.exposed_us if p.bound == "launch" else 0.0) for p in others) / whole
    at_work = 1 - e.losses["data_wait"] - e.losses["idle"] - e.losses["launch_overhead"]
    return share * at_work * (1 - _stretches(tasks) / len(others))


def _stretches(tasks: Sequence[Priced]) -> int:
    """How many runs of operations without a product between them."""
    if not tasks:
        return 0
    return sum(a.product and not b.product for a, b in pairwise(tasks)) + (not tasks[0].product)


def _kernels_left(tasks: Sequence[Priced]) -> float:
    """The share of the launches that would be left after fusing."""
    products = sum(p.product for p in tasks)
    return (products + _stretches(tasks)) / max(1, len(tasks))


def _small_products(e: Evidence) -> float:
    """Of the time that products lose, the share that is lost to their being small.

    Efficiency as a function of size is read off the profile itself: what the largest products reach is what
    the others could, up to a limit that says that even large ones are not perfect.
    """
    known = [p for p in e.tasks if p.product and p.flops and p.exposed_us > 0]
    if not known:
        return 0.0
    large = sorted(known, key=lambda p: -(p.flops or 0))[: max(1, len(known) // 10)]
    reached = min(EFFICIENT, sum(p.multiply_us for p in large) / sum(p.exposed_us for p in large))
    lost = sum(p.slow_us for p in known)
    left = sum(min(p.slow_us, max(0.0, p.multiply_us / max(reached, 1e-9) - p.multiply_us)) for p in known)
    return 0.0 if lost <= 0 else (lost - left) / lost


def _larger_divisor(e: Evidence) -> int | None:
    """The largest number of rows that divides the step's and fits; None if that is what there is."""
    fitting = [n for n in range(1, e.rows + 1) if e.rows % n == 0 and n <= e.memory.micro_rows_that_fit]
    best = max(fitting, default=0)
    return best if e.trains and best > e.memory.micro_rows else None


def _twice_the_rows(e: Evidence) -> str:
    return f"{e.stage}.rows={2 * e.rows} {e.stage}.steps={max(1, e.stage_steps // 2)}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
