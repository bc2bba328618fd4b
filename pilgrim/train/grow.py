"""Growing: shorter rows, smaller batches and narrower windows in the beginning of a run, larger ones later.

Early gradients agree with each other, so a small batch shows the way as well as a large one, and what a
network learns first (which words there are, which follow which) needs no long context. Both save time.
A recipe says it as lists of (share of the run, value):

    [pretrain.grow]
    context = [[0.0, 256], [0.3, 512]]      # rows of 256 tokens, from 30% of the steps on of 512
    rows = [[0.0, 8], [0.5, 16]]
    window = [[0.0, 64], [0.5, 128]]        # what the layers with a window see of it

That is resolved into phases, each with its steps, its rows, their length and the window. A phase is a
function of the step, so that resuming needs no state. The last values are those of the run as a whole:
`model.context`, `pretrain.rows` and `model.window`. Validation and samples are always those of the network
as it will be.

A larger batch averages more noise away, so that a larger step is safe: with AdamW the learning rate that
keeps the noise of the walk the same goes with the root of the batch (Malladi et al. 2022, arXiv 2205.10287;
modded-nanogpt's record runs use it with Muon too). The recipe's rates are those of the full batch. A phase
whose batch has a quarter of its tokens runs at half of them, and `grow.batch_lr` is that exponent.

Each shape is compiled for itself, so a phase begins with a pause.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise

from pydantic import Field

from pilgrim.core.config import Settings
from pilgrim.data.loader import Batch, Position, Rows, batches
from pilgrim.model.transformer import Transformer

Schedule = tuple[tuple[float, int], ...]


class GrowSettings(Settings):
    """`[pretrain.grow]`, and the same below the other stages. A list that is left out: constant."""

    context: Schedule | None = Field(None, description="[[share of the run, tokens in a row], …]")
    rows: Schedule | None = Field(None, description="[[share of the run, rows per step], …]")
    window: Schedule | None = Field(None, description="[[share of the run, tokens in a window], …]")
    batch_lr: float = Field(
        0.5,
        ge=0,
        le=1,
        description="learning rates follow the tokens of a batch to this power; 0: they don't",
    )

    def contradiction(self, place: str) -> str | None:
        """What is wrong with the lists, in one sentence that begins with the place; None if nothing is."""
        for name, pairs in (("context", self.context), ("rows", self.rows), ("window", self.window)):
            if pairs is None:
                continue
            shares = [share for share, _ in pairs]
            if not pairs or shares[0] != 0 or shares[-1] >= 1 or any(a >= b for a, b in pairwise(shares)):
                return (
                    f"{place}.{name}: the shares {shares} must begin with 0, rise, and stay below 1; "
                    "try [[0.0, …], [0.5, …]]"
                )
            if bad := next((value for _, value in pairs if value < (8 if name == "context" else 1)), None):
                least = 8 if name == "context" else 1
                return f"{place}.{name} has {bad} in it; {least} is the least that makes sense, write that"
        return None


@dataclass(frozen=True)
class Phase:
    """Steps `first` … `end` - 1 have batches of `rows` rows of `context` tokens."""

    first: int
    end: int
    rows: int
    context: int
    lr: float  # a factor on the learning rates
    window: int | None = None  # of the layers that have one; None: as the network says


def phases(grow: GrowSettings | None, steps: int, rows: int, context: int) -> list[Phase]:
    """The phases of a run whose full batch has `rows` rows of `context` tokens, from its first step on."""
    found = []
    for share, end, phase_rows, phase_context in _stretches(grow, rows, context):
        first, last = round(share * steps), round(end * steps)
        if first < last:
            lr = (phase_rows * phase_context / (rows * context)) ** (grow.batch_lr if grow else 0)
            window = _value(grow.window, share) if grow and grow.window else None
            found.append(Phase(first, last, phase_rows, phase_context, lr, window))
    return found


def mean_tokens(grow: GrowSettings | None, rows: int, context: int) -> float:
    """Tokens of a step, padding included, on average over the run."""
    return sum((end - share) * r * c for share, end, r, c in _stretches(grow, rows, context))


def _stretches(grow: GrowSettings | None, rows: int, context: int) -> Iterator[tuple[float, float, int, int]]:
    """(share at which it begins, share at which it ends, rows, context)."""
    rows_at = (grow and grow.rows) or ((0.0, rows),)
    context_at = (grow and grow.context) or ((0.0, context),)
    window_at = (grow and grow.window) or ()
    shares = sorted({share for share, _ in (*rows_at, *context_at, *window_at)})
    for share, end in pairwise([*shares, 1.0]):
        yield share, end, _value(rows_at, share), _value(context_at, share)


def _value(pairs: Schedule, share: float) -> int:
    return [value for begin, value in pairs if begin <= share][-1]


def phase_at(found: Sequence[Phase], step: int) -> Phase:
    """The phase that `step` is in; the last one for the step after the end."""
    return next((phase for phase in found if step < phase.end), found[-1])


@contextmanager
def grown_windows(model: Transformer, phase: Phase) -> Iterator[None]:
    """While inside, the layers with a window see what the phase lets them see."""
    of_the_network = model.windows
    if phase.window is not None:
        model.windows = tuple(window and phase.window for window in of_the_network)
    try:
        yield
    finally:
        model.windows = of_the_network


def grown_batches(
    source: Rows, found: Sequence[Phase], step: int, position: Position | None
) -> Iterator[tuple[Batch, Position]]:
    """The batches of the steps from `step` to the end, each with the position after it."""
    for phase in found:
        left = max(0, phase.end - max(step, phase.first))
        stream = batches(source.at(phase.context), phase.rows, position)
        for batch, after in islice(stream, left):
            position = after
            yield batch, position
