"""What a profile found, as plain values: written by the analysis, read by the page, the console and the diff.

The file `profile.json` holds exactly this. Times are seconds for one step (the mean over the profiled
steps), unless a name says otherwise. What could not be measured on a machine is None, and the page says so.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pilgrim.core.errors import DataError
from pilgrim.core.files import read_json, write_json_atomic

# The parts of the waterfall in the order in which it is drawn, from the machine's peak down to what was
# achieved. What each one means: pilgrim/lab/profile/terms.py.
LOSSES = (
    "data_wait",
    "idle",
    "launch_overhead",
    "exposed_communication",
    "memory_bound",
    "elementwise_inefficiency",
    "recomputation",
    "extra_products",
    "matmul_inefficiency",
)


@dataclass(frozen=True)
class Loss:
    """One stair of the waterfall: a share of the step in which the machine did not multiply at its peak."""

    name: str  # one of LOSSES
    share: float  # of the step's time, 0 to 1; all losses and the achieved share sum to 1


@dataclass(frozen=True)
class Phase:
    name: str  # "data", "forward", "backward", "optimizer", "sync", "other"; a step's phases sum to its time
    seconds: float


@dataclass(frozen=True)
class Layer:
    name: str  # "model.layers.0.self_attn"; what a compiled graph hides is told as one layer
    forward_s: float
    backward_s: float | None


@dataclass(frozen=True)
class Kernel:
    """A kind of kernel (an operation on a CPU), over all its launches in a step."""

    name: str
    seconds: float
    launches: float  # in a step
    flops: float | None  # in a step; floating-point operations of the products it does
    bytes: float | None  # in a step; what it must at least read and write
    bound: str  # "compute", "memory", "launch" or "unknown"
    source: str | None  # "pilgrim/model/layers.py:28 in forward", the line that launched it
    meaning: str  # what it does, in plain words


@dataclass(frozen=True)
class Memory:
    """Bytes at the step's peak by kind, and the curve over a step."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    other: int
    fragmentation: int | None  # reserved but not used by any tensor; None on a CPU
    capacity: int  # bytes that the device has
    curve: tuple[tuple[float, int], ...]  # (seconds since the step began, bytes held), at most a few hundred
    micro_rows: int  # of this profile
    micro_rows_that_fit: int  # the most rows of a microbatch that memory would hold


@dataclass(frozen=True)
class Compilation:
    enabled: bool
    graphs: int  # compiled graphs that ran
    breaks: tuple[str, ...]  # causes, with place
    recompilations: tuple[str, ...]  # causes, with place
    seconds: float  # spent compiling, before the profiled steps


@dataclass(frozen=True)
class Fix:
    """An advice. `gain` is the share of the step's time that it is predicted to save."""

    title: str
    why: str  # what in this profile speaks for it, with its number
    setting: str  # what to write, as in `runtime.compile=on`
    gain: float
    docs: str  # a page of docs/, with an anchor


@dataclass(frozen=True)
class Findings:
    recipe: str
    stage: str  # "pretrain", "midtrain", "sft" or "generate"
    machine: str
    dtype: str
    steps: int  # profiled
    step_s: float  # median
    step_s_each: tuple[float, ...]  # for the noise in a comparison
    tokens: int  # in a step
    flops: float  # that a step needs, by pilgrim/model/count.py
    peak_flops: float  # per second, measured here
    copy_bytes_per_s: float  # measured here
    spec_flops: float | None  # per second, what the maker promises
    mfu: float  # flops / step_s / peak_flops
    mfu_spec: float | None
    losses: tuple[Loss, ...]
    phases: tuple[Phase, ...]
    layers: tuple[Layer, ...]
    kernels: tuple[Kernel, ...]  # by time, largest first
    memory: Memory
    compilation: Compilation
    fixes: tuple[Fix, ...]  # best first
    files: dict[str, str]  # what lies beside: {"trace": "trace.json.gz", …}
    notes: tuple[str, ...] = ()  # sentences on how it was measured, such as what the profiler itself cost
    traced_step_s: float | None = None  # a step's time under the profiler, which kernels' times belong to

    def share_of(self, kernel: Kernel) -> float:
        """A kernel's share of a step: of one under the profiler, as that is where its time was taken."""
        step_s = self.traced_step_s or self.step_s
        return kernel.seconds / step_s if step_s > 0 else 0.0

    def save(self, file: Path) -> None:
        write_json_atomic(file, asdict(self))

    @classmethod
    def load(cls, file: Path) -> "Findings":
        """Read `profile.json`. Raises DataError if it is not one."""
        found: Any = read_json(file)
        try:
            return TypeAdapter(cls).validate_python(found)
        except ValueError as error:
            first = str(error).splitlines()[1]
            raise DataError(
                f"{file} is not a profile of this version ({first}); make it again with pilgrim profile"
            ) from error
