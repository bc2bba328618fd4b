"""How many rows go through the network at once: as many as memory holds.

A step's batch may be too large for the memory, so it goes through in microbatches (train/step.py). Fewer and
larger ones are faster. What a microbatch needs is, to a good approximation, a line:

    bytes(n rows) = fixed (weights, gradients, the loss's chunk) + n · (activations of a row)

So two measurements, of one row and of two, give the line, and where it meets the free memory less a margin
is the answer. That is how it is found on a GPU. On a CPU, where memory is shared with everything else and
large microbatches gain nothing, the rule is a number of tokens. `micro_rows` in a recipe overrides both.

A prediction may fail: another program takes memory, or memory is in pieces. Then the loop halves the
microbatch and does the same batch again; the batch and its gradient stay what they were.

What was found is counted in tokens, since rows may grow (train/grow.py), and is kept in checkpoints: the
order of additions depends on it, and a resumed run is to have the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pilgrim.core.errors import PilgrimError
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch
from pilgrim.model.transformer import Transformer
from pilgrim.train.step import TokenLosses, accumulate

MICRO_TOKENS = 16_384  # the rule where nothing is measured
MARGIN = 0.08  # share of the GPU's memory left alone: the allocator's rounding and gaps, other small users
GB = 1e9

CURE = (
    "write runtime.checkpoint_activations = true, or take a smaller model.context or model.depth, "
    'or optim.state = "8bit"'
)


class OutOfMemory(PilgrimError):
    """Not even a microbatch of one row fits."""


@dataclass
class MicroBatch:
    """How much goes through the network at once. One object for a stage: the loop and validation share it."""

    given: int | None = None  # rows, if the recipe says so
    tokens: int | None = None  # what was measured, or is left after halving; None: `given`, or the rule

    def rows(self, rows: int, context: int) -> int:
        """Rows of a microbatch for a batch of `rows` rows of `context` tokens; they divide it."""
        tokens = self.tokens or (rows * context if self.given else MICRO_TOKENS)
        most = min(self.given or rows, rows, max(1, tokens // context))
        return max(n for n in range(1, most + 1) if rows % n == 0)

    def halve(self, rows: int, context: int) -> bool:
        """Make it at most half as large; False if it is one row already."""
        now = self.rows(rows, context)
        if now > 1:
            self.tokens = now // 2 * context
        return now > 1


@dataclass(frozen=True)
class Fit:
    """What was measured, in bytes, and how many rows follow from it."""

    fixed: float
    row: float
    budget: float
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.fixed / GB:.2f} GB and {self.row / GB:.2f} GB a row were measured, "
            f"{self.budget / GB:.1f} GB may be used: {self.rows} rows at once"
        )


def fit(peak_1: float, peak_2: float, budget: float, rows: int) -> Fit:
    """The most rows up to `rows` that need `budget` bytes, from the peaks of one row and of two.

    Raises OutOfMemory if one row is too many.
    """
    row = max(1.0, peak_2 - peak_1)
    if peak_1 > budget:
        raise too_little(f"one row needs {peak_1 / GB:.1f} GB, and {budget / GB:.1f} GB may be used")
    return Fit(peak_1 - row, row, budget, min(rows, 1 + int((budget - peak_1) / row)))


def too_little(what: str, first: str = "") -> OutOfMemory:
    """The sentence of which `what` is the beginning; `first` is what to try before anything else."""
    return OutOfMemory(f"Memory does not suffice: {what}; {first}{CURE}")


def measure(
    model: Transformer,
    losses: TokenLosses,
    runtime: Runtime,
    later_bytes: int,
    rows: int,
    context: int,
    extra: Sequence[str] = (),
) -> Fit:
    """The fit of `rows` rows of `context` tokens on this GPU. Leaves the weights alone, and no gradients.

    `later_bytes` are what training will allocate and keep besides: state that an optimizer does not have yet.
    `extra` is as in `blank`.
    Where weights are sliced, processes compute together, and none can fail and go on by itself.
    """
    if runtime.parallel == "fsdp":
        return _measure_together(model, losses, runtime, later_bytes, rows, context, extra)
    try:
        peak_1 = _peak_bytes(model, losses, runtime, 1, context, extra)
    except torch.OutOfMemoryError:
        peak_1 = float("inf")  # told below, outside: the error holds on to what it was computing
    try:
        peak_2 = _peak_bytes(model, losses, runtime, 2, context, extra) if rows > 1 else 2 * peak_1
    except torch.OutOfMemoryError:
        peak_2 = float("inf")
    budget = _budget(model, runtime, later_bytes)
    if peak_1 == float("inf"):
        raise too_little(
            f"one row of {context} tokens needs more than the {budget / GB:.1f} GB that are free"
        )
    return fit(peak_1, peak_2, budget, rows)


def _measure_together(
    model: Transformer,
    losses: TokenLosses,
    runtime: Runtime,
    later_bytes: int,
    rows: int,
    context: int,
    extra: Sequence[str],
) -> Fit:
    try:
        peaks = (_peak_bytes(model, losses, runtime, n, context, extra) for n in (1, min(2, rows)))
        peak_1, peak_2 = peaks
    except torch.OutOfMemoryError:
        peak_1 = float("inf")  # told below, outside: the error holds on to what it was computing
    if peak_1 == float("inf"):
        raise too_little(
            f"two rows of {context} tokens at once are too many",
            "write micro_rows = 1, or if one row is too much as well, ",
        )
    return fit(peak_1, peak_2 if rows > 1 else 2 * peak_1, _budget(model, runtime, later_bytes), rows)


def _budget(model: Transformer, runtime: Runtime, later_bytes: int) -> float:
    """Bytes that training may use, gradients given back."""
    model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(runtime.device)
    return free + torch.cuda.memory_reserved(runtime.device) - MARGIN * total - later_bytes


def _peak_bytes(
    model: Transformer,
    losses: TokenLosses,
    runtime: Runtime,
    rows: int,
    context: int,
    extra: Sequence[str],
) -> float:
    """The most that is allocated at any time in forward and backward, weights and gradients included."""
    batch = blank(rows, context, extra)
    accumulate(model, batch, rows, losses, runtime)  # compiles, and makes the gradients
    torch.cuda.reset_peak_memory_stats(runtime.device)
    accumulate(model, batch, rows, losses, runtime)  # adds to them, as all microbatches but the first do
    return float(torch.cuda.max_memory_allocated(runtime.device))


def blank(rows: int, context: int, extra: Sequence[str] = ()) -> Batch:
    """A batch of one long document a row, for trying out what a step needs.

    `extra` names what an objective wants to know of each place (train/objective.py).
    """
    ids = torch.zeros(rows, context, dtype=torch.int64)
    return Batch(ids, ids, ids.to(torch.int32), extra={name: ids.float() for name in extra})
