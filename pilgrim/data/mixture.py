"""A mixture: rows of several token sets, in an order that the seed decides.

    [midtrain.mixture]                      [sft.mixture]
    text = { weight = 0.4 }                 smoltalk = { epochs = 1 }
    gsm8k = { weight = 0.1 }                gsm8k = { epochs = 4 }

By **weight**, each row is drawn from source i with probability `weights[i]`: shares hold on average, for a
mixture of any length. By **epochs**, each source is read so many times, exactly: its rows are counted, and
all sources' rows are dealt like one shuffled deck. That has an end, which tells a stage how many steps to
make; what goes on behind it begins with a new deck.

Which source row n is from is a function of the seed and n, so the position is just n and the position within
each source.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from pydantic import Field

from pilgrim.core.config import Settings
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch, PackedRows, Position, Rows

BLOCK = 1024  # draws made at once


class PartSettings(Settings):
    """One line of a `mixture` table: how much of a data set."""

    weight: float | None = Field(None, gt=0, description="share of rows, against the others' weights")
    epochs: float | None = Field(None, gt=0, le=1000, description="how many times all of it is read")


Parts = Mapping[str, PartSettings]


def contradiction(mixture: Parts, place: str) -> str | None:
    """What can't be true in a mixture's table, in one sentence that names it; None if nothing is wrong."""
    if not mixture:
        return f"{place} names no data set; write at least one, such as conversations = {{ weight = 1 }}"
    for name, part in mixture.items():
        if (part.weight is None) == (part.epochs is None):
            what = "neither weight nor epochs" if part.weight is None else "both weight and epochs"
            return f"{place}.{name} has {what}; write one of them, as in {name} = {{ weight = 0.5 }}"
    if len({part.weight is None for part in mixture.values()}) > 1:
        weighed = ", ".join(name for name, part in mixture.items() if part.weight is not None)
        return (
            f"{place} has weights ({weighed}) and epochs, which can't be added up; write epochs for all, "
            "or weights for all"
        )
    return None


def has_an_end(mixture: Parts) -> bool:
    """Whether it is by epochs, which end."""
    return all(part.epochs is not None for part in mixture.values())


class Order(Protocol):
    """Which source each row is from."""

    @property
    def size(self) -> int:
        """Rows of a block."""
        ...

    def block(self, number: int) -> list[int]:
        """The sources of a block's rows."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Each row from source i with probability `weights[i]`; they need not sum to one."""

    weights: tuple[float, ...]
    runtime: Runtime
    size: int = BLOCK

    def block(self, number: int) -> list[int]:
        shares = torch.tensor(self.weights, dtype=torch.float64)
        generator = self.runtime.generator("mixture", number)
        drawn: list[int] = torch.multinomial(shares, BLOCK, replacement=True, generator=generator).tolist()
        return drawn


@dataclass(frozen=True)
class Dealt:
    """`rows[i]` rows from source i, shuffled: a block is a deck."""

    rows: tuple[int, ...]
    runtime: Runtime

    @property
    def size(self) -> int:
        return sum(self.rows)

    def block(self, number: int) -> list[int]:
        deck = np.repeat(np.arange(len(self.rows)), self.rows)
        generator = self.runtime.generator("mixture deck", number)
        dealt: list[int] = deck[torch.randperm(self.size, generator=generator).numpy()].tolist()
        return dealt


class Mixture:
    """Rows from several sources, in an order."""

    def __init__(self, sources: Mapping[str, Rows], order: Order) -> None:
        self.sources, self.order = dict(sources), order

    def rows(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        """Yield (one row, the position after it), forever."""
        number: int = position["row"] if position else 0
        at: dict[str, Position | None] = {name: None for name in self.sources}
        if position:
            at.update(position["sources"])
        streams = {name: source.rows(at[name]) for name, source in self.sources.items()}
        names, size = list(self.sources), self.order.size
        while True:
            for i in self.order.block(number // size)[number % size :]:
                row, at[names[i]] = next(streams[names[i]])
                number += 1
                yield row, {"row": number, "sources": dict(at)}

    def at(self, context: int) -> "Mixture":
        """The same mixture in rows of `context` tokens."""
        return Mixture({name: source.at(context) for name, source in self.sources.items()}, self.order)


@dataclass(frozen=True)
class Tagged:
    """A source's rows that say where they are from, for a loss by source (train/by_source.py).

    `extra["source"]` is the source's number in the mixture, from 1, at each place that holds a token, and
    `extra["epoch"]` how many times all of it had been read before that row's window of documents.
    """

    source: PackedRows
    number: int

    def rows(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        for row, after in self.source.rows(position):
            filled_bt = row.documents_bt >= 0
            read = filled_bt * self.source.epochs(after)
            yield replace(row, extra={"source": filled_bt * self.number, "epoch": read.float()}), after

    def at(self, context: int) -> "Tagged":
        return Tagged(self.source.at(context), self.number)
