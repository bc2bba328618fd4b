"""A mixture: rows of several token sets in fixed proportion.

Each row is drawn from source i with probability `weights[i]`; the draw for row n is a pure function of
the seed and n, so the position is just n and the position within each source.
"""

from collections.abc import Iterator, Mapping

import torch

from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch, Position, Rows

BLOCK = 1024  # draws made at once


class Mixture:
    """Rows from several sources; `weights` are shares of rows and need not sum to one."""

    def __init__(self, sources: Mapping[str, Rows], weights: Mapping[str, float], runtime: Runtime) -> None:
        if sources.keys() != weights.keys() or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ValueError(
                f"a mixture needs one weight >= 0 for each of {list(sources)}, not {dict(weights)}"
            )
        self.sources, self.weights, self.runtime = dict(sources), dict(weights), runtime

    def rows(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        """Yield (one row, the position after it), forever."""
        number: int = position["row"] if position else 0
        at: dict[str, Position | None] = {name: None for name in self.sources}
        if position:
            at.update(position["sources"])
        streams = {name: source.rows(at[name]) for name, source in self.sources.items()}
        names = list(self.sources)
        while True:
            draws = self._draws(number // BLOCK)
            for i in draws[number % BLOCK :]:
                row, at[names[i]] = next(streams[names[i]])
                number += 1
                yield row, {"row": number, "sources": dict(at)}

    def at(self, context: int) -> "Mixture":
        """The same mixture in rows of `context` tokens."""
        sources = {name: source.at(context) for name, source in self.sources.items()}
        return Mixture(sources, self.weights, self.runtime)

    def _draws(self, block: int) -> list[int]:
        shares = torch.tensor(list(self.weights.values()), dtype=torch.float64)
        generator = self.runtime.generator("mixture", block)
        drawn: list[int] = torch.multinomial(shares, BLOCK, replacement=True, generator=generator).tolist()
        return drawn
