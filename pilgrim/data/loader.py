"""From token sets to batches, with the position as a value.

    token set --shuffle--> windows of documents --pack--> rows --take n--> batch

Everything is a pure function of the seed and the position: epoch e, window w of the shuffled documents,
r rows taken from that window's packing. The loader hands out (batch, position), and started again from that
position it gives the same next batch, to the bit. Nothing else has to be remembered.

Rows may get longer in the middle of a window (a curriculum, train/grow.py). Then the documents that are left
in it are packed anew, at the new length, so that none is lost and none comes twice. What is left follows
from how many rows of which length were taken, so that is what the position says: `"taken": [[256, 40]]` is
40 rows of 256 tokens, `[[256, 40], [512, 3]]` those, and then three of 512.

Shapes: b rows, t tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pilgrim.core.errors import DataError
from pilgrim.core.processes import Processes
from pilgrim.core.runtime import Runtime
from pilgrim.data.packing import Piece, cut, plan, repack
from pilgrim.data.shards import TokenSet
from pilgrim.model.attention_spans import document_starts

IGNORED = -100  # a target that no loss counts: padding, and what the model is not to say
WINDOW = 4096  # documents shuffled and packed together: bounds memory, and fills rows well

Position = dict[str, Any]  # plain JSON: it is saved in checkpoints


@dataclass(frozen=True)
class Batch:
    """Packed rows. Token i is to predict `targets_bt[i]`; `documents_bt` says who may attend to whom."""

    inputs_bt: Tensor  # int64
    targets_bt: Tensor  # int64, IGNORED where no loss counts
    documents_bt: Tensor  # int32, the number of the document within its row (or set); -1 is padding
    # Where documents begin, for attention kernels that want to know: only of batches on a GPU, made while
    # the numbers are still on the CPU, because asking a GPU how many there are would wait for it.
    starts_bd: Tensor | None = None
    # The batch of which this is one process's share; None: this is all of it.
    whole: "Batch | None" = field(default=None, kw_only=True)
    # Further numbers of every place, by name, [b, t] or [b, t, k]: what an objective (train/objective.py)
    # wants to know besides. 0 in padding.
    extra: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    # Of the batch as a whole, plain numbers that belong into the row of its step.
    told: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def trained_tokens(self) -> int:
        """How many targets count, of the whole batch: the divisor of the loss."""
        return int(((self.whole or self).targets_bt != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """How many places of the whole batch hold a token, and no padding."""
        return int(((self.whole or self).documents_bt >= 0).sum())

    def share(self, processes: Processes) -> "Batch":
        """The rows of this process; all processes' rows are as many, with padding added to the last ones."""
        if processes.count == 1:
            return self
        n = processes.share(self.inputs_bt.shape[0])
        mine = slice(processes.rank * n, (processes.rank + 1) * n)
        some = Batch(
            self.inputs_bt[mine],
            self.targets_bt[mine],
            self.documents_bt[mine],
            extra=self._extra(lambda x: x[mine]),
        )
        return replace(some.filled(n), whole=self, told=self.told)

    def nothing(self) -> "Batch":
        """Padding in the shape of this batch."""
        none = Batch(
            self.inputs_bt[:0], self.targets_bt[:0], self.documents_bt[:0], extra=self._extra(lambda x: x[:0])
        )
        return none.filled(self.inputs_bt.shape[0])

    def filled(self, rows: int) -> "Batch":
        """The batch with rows of padding added up to `rows`, so that compiled code sees one shape only."""
        missing = rows - self.inputs_bt.shape[0]
        if missing == 0:
            return self

        def more(x: Tensor, value: int = 0) -> Tensor:
            return torch.cat([x, x.new_full((missing, *x.shape[1:]), value)])

        return Batch(
            more(self.inputs_bt),
            more(self.targets_bt, IGNORED),
            more(self.documents_bt, -1),
            extra=self._extra(more),
        )

    def micro(self, rows: int) -> Iterator["Batch"]:
        """The batch in parts of at most `rows` rows, for gradient accumulation."""
        for first in range(0, self.inputs_bt.shape[0], rows):
            part = slice(first, first + rows)
            yield Batch(
                self.inputs_bt[part],
                self.targets_bt[part],
                self.documents_bt[part],
                None if self.starts_bd is None else self.starts_bd[part],
                extra={name: x[part] for name, x in self.extra.items()},
            )

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; nobody waits for the copy if this one is pinned (data/prefetch.py)."""
        if device.type == "cpu":
            return self
        starts_bd = document_starts(self.documents_bt) if self.starts_bd is None else self.starts_bd
        parts = (self.inputs_bt, self.targets_bt, self.documents_bt, starts_bd)

        def there(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        return Batch(*map(there, parts), extra=self._extra(there))

    def pinned(self) -> "Batch":
        """The same batch in memory that a GPU reads by itself. Needs CUDA."""
        parts = (self.inputs_bt, self.targets_bt, self.documents_bt, document_starts(self.documents_bt))
        pinned = Batch(*(x.pin_memory() for x in parts), whole=self.whole)
        return replace(pinned, extra=self._extra(lambda x: x.pin_memory()), told=self.told)

    def _extra(self, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {name: change(x) for name, x in self.extra.items()}


class Rows(Protocol):
    """An endless stream of packed rows that can be entered at any position."""

    def rows(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        """Yield (one row as a batch of b = 1, the position after it)."""
        ...

    def at(self, context: int) -> "Rows":
        """The same stream in rows of `context` tokens; it goes on from positions at any other length."""
        ...


@runtime_checkable
class WholeBatches(Protocol):
    """Rows that come as whole batches, as many in one as belong together (train/rollouts.py)."""

    def batches(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        """Yield (a batch of any number of rows, the position after it)."""
        ...


def build_row(
    tokens: TokenSet, pieces: Sequence[Piece], context: int, end_id: int, of_set: bool = False
) -> Batch:
    """One row from its pieces. The target of a document's last token is `end_id`: here it ends.

    In a conversation only the marked tokens are targets, and its end is not: <|im_end|> has said it.
    Documents are numbered within the row, or as in the set if `of_set`, which is only sound if no row holds
    two pieces of one document.
    """
    inputs = np.full(context, end_id, dtype=np.int64)
    targets = np.full(context, IGNORED, dtype=np.int64)
    documents = np.full(context, -1, dtype=np.int32)
    at = 0
    for number, piece in enumerate(pieces):
        begin, end = tokens.starts[piece.document], tokens.starts[piece.document + 1]
        first = begin + piece.start
        last = first + piece.length
        here = slice(at, at + piece.length)
        inputs[here] = tokens.tokens[first:last]
        following = tokens.tokens[first + 1 : min(last + 1, end)]
        targets[at : at + len(following)] = following
        if tokens.trained is not None:
            targets[at : at + len(following)][~tokens.trained[first + 1 : min(last + 1, end)]] = IGNORED
        elif last == end:
            targets[at + piece.length - 1] = end_id
        documents[here] = piece.document if of_set else number
        at += piece.length
    row = (torch.from_numpy(x)[None] for x in (inputs, targets, documents))
    return Batch(*row)


def teaches(tokens: TokenSet, piece: Piece) -> bool:
    """Whether a token of this piece has a target that counts. Of text, every token has."""
    if tokens.trained is None:
        return True
    first, end = tokens.starts[piece.document] + piece.start, tokens.starts[piece.document + 1]
    return bool(tokens.trained[first + 1 : min(first + piece.length + 1, end)].any())


class TooLong(NamedTuple):
    """What becomes of conversations that are longer than a row."""

    conversations: int
    pieces: int  # into which they are cut
    left_out: int  # of the pieces: nothing is learned in them


def too_long(tokens: TokenSet, context: int) -> TooLong:
    """How many conversations of a token set are cut, and what of them is not used."""
    long = np.flatnonzero(tokens.lengths > context)
    pieces = [piece for d in long for piece in cut(int(d), int(tokens.lengths[d]), context)]
    return TooLong(len(long), len(pieces), sum(not teaches(tokens, piece) for piece in pieces))


class PackedRows:
    """The rows of one token set, forever: every epoch in a new order, packed anew.

    Every row has a token to learn: of a conversation that is cut, pieces without one are left out.
    """

    def __init__(self, tokens: TokenSet, context: int, end_id: int, runtime: Runtime) -> None:
        self.tokens, self.context, self.end_id, self.runtime = tokens, context, end_id, runtime

    def at(self, context: int) -> "PackedRows":
        return (
            self if context == self.context else PackedRows(self.tokens, context, self.end_id, self.runtime)
        )

    def rows(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        epoch, window, taken = (
            (position["epoch"], position["window"], position["taken"]) if position else (0, 0, [])
        )
        windows = -(-self.tokens.documents // WINDOW)
        empty = 0  # windows one after another in which there was nothing to learn
        while True:
            done, before = 0, taken  # rows of our length, and what was taken at other lengths before
            if taken and taken[-1][0] == self.context:
                done, before = taken[-1][1], taken[:-1]
            left = self._packed(epoch, window, before)[done:]
            empty = 0 if left else empty + 1
            if empty > windows:
                raise DataError(f"{self.tokens.name}: none of its tokens is to be learned; use other data")
            for pieces in left:
                done += 1
                yield (
                    self.row(pieces),
                    {"epoch": epoch, "window": window, "taken": [*before, [self.context, done]]},
                )
            taken, window = [], window + 1
            if window == windows:
                epoch, window = epoch + 1, 0

    def row(self, pieces: Sequence[Piece]) -> Batch:
        """One row of what was packed together."""
        return build_row(self.tokens, pieces, self.context, self.end_id)

    def epochs(self, position: Position) -> float:
        """How many times the set was read when the window of documents of a position was begun."""
        epoch, window = int(position["epoch"]), int(position["window"])
        return epoch + window / -(-self.tokens.documents // WINDOW)

    def count(self, epochs: float) -> int:
        """The rows of so many epochs. Each is packed anew, so they need not be equally many in each."""
        windows = range(-(-self.tokens.documents // WINDOW))

        def of(epoch: int) -> int:
            return sum(len(self._packed(epoch, window, [])) for window in windows)

        whole = int(epochs)
        rest = round((epochs - whole) * of(whole)) if epochs > whole else 0
        return max(1, sum(map(of, range(whole))) + rest)

    def _packed(self, epoch: int, window: int, before: list[list[int]]) -> list[list[Piece]]:
        """The rows that a window holds after those `before`, shuffled.

        Packing sorts by length, and a batch should see all lengths.
        """
        order = self._permutation("documents", self.tokens.documents, epoch)
        order = order[window * WINDOW : (window + 1) * WINDOW]
        lengths = [context for context, _ in before] + [self.context]
        wanted = partial(teaches, self.tokens) if self.tokens.trained is not None else None
        rows = self._shuffled(plan(self.tokens.lengths, order, lengths[0], wanted), epoch, window)
        for i, (_, done) in enumerate(before, start=1):
            so_far = (n for pair in before[:i] for n in pair)
            rows = self._shuffled(repack(rows[done:], lengths[i], wanted), epoch, window, *so_far)
        return rows

    def _shuffled(self, rows: list[list[Piece]], *parts: int) -> list[list[Piece]]:
        return [rows[i] for i in self._permutation("rows", len(rows), *parts)]

    def _permutation(self, what: str, n: int, *parts: int) -> NDArray[np.int64]:
        generator = self.runtime.generator(f"shuffle {what} {self.tokens.name}", *parts)
        order: NDArray[np.int64] = torch.randperm(n, generator=generator).numpy()
        return order


def one_pass(tokens: TokenSet, context: int, end_id: int, rows: int) -> Iterator[Batch]:
    """Every document once, in batches of at most `rows` rows, in a fixed order: for validation.

    Their numbers are those of the set, so that what is measured can be told by document and source. No row
    holds two pieces of one document: of a long one, all pieces but the last fill a row each.
    """
    packed = plan(tokens.lengths, np.arange(tokens.documents), context)
    for at in range(0, len(packed), rows):
        some = packed[at : at + rows]
        yield stack([build_row(tokens, pieces, context, end_id, of_set=True) for pieces in some])


def stack(rows: Sequence[Batch]) -> Batch:
    """Rows of b = 1 as one batch; all of them have the same `extra` numbers."""
    return Batch(
        torch.cat([row.inputs_bt for row in rows]),
        torch.cat([row.targets_bt for row in rows]),
        torch.cat([row.documents_bt for row in rows]),
        extra={name: torch.cat([row.extra[name] for row in rows]) for name in rows[0].extra},
    )


def batches(source: Rows, rows: int, position: Position | None) -> Iterator[tuple[Batch, Position]]:
    """(batch of `rows` rows, position after it), forever, beginning at `position`."""
    if isinstance(source, WholeBatches):
        yield from source.batches(position)
        return
    stream = source.rows(position)
    while True:
        taken = list(islice(stream, rows))
        yield stack([row for row, _ in taken]), taken[-1][1]
