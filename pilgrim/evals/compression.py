"""Bits per byte with an error bar, of all text and of each source.

    bits per byte = all documents' nats / ln 2 / all documents' bytes

It is a ratio of two sums. Had other documents been drawn, both would be others, so how sure it is follows
from how much documents differ: with r the ratio, nᵢ and bᵢ a document's nats and bytes, and k documents,

    standard error = √( k / (k - 1) · Σ (nᵢ - r bᵢ)² ) / Σ bᵢ

which is the usual error of a ratio of means (Cochran, Sampling Techniques, 3rd ed. 1977, chapter 6). Long
documents weigh more than short ones, as they do in the sum. A test compares it with drawing documents anew,
a thousand times (the bootstrap). One document alone has no error that could be known.

A source is what the data says of a document ("source" in its row, else its file's name). The sources' bytes
add up to the total's, and so do their nats, in another order of additions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Bits:
    """What some documents need."""

    bpb: float
    standard_error: float | None  # None for one document
    bytes: int
    documents: int

    @property
    def nats(self) -> float:
        """Of all documents: what adds up."""
        return self.bpb * math.log(2) * self.bytes


def bits(nats_d: NDArray[np.float64], bytes_d: NDArray[np.int64]) -> Bits | None:
    """Bits per byte of documents with these sums. Those without a counted byte have no say.

    None if no byte is counted at all.
    """
    nats_d, bytes_d = nats_d[bytes_d > 0], bytes_d[bytes_d > 0]
    documents, size = len(bytes_d), int(bytes_d.sum())
    if not documents:
        return None
    ratio = float(nats_d.sum()) / size
    error = None
    if documents > 1:
        spread = float(((nats_d - ratio * bytes_d) ** 2).sum()) * documents / (documents - 1)
        error = math.sqrt(spread) / size / math.log(2)
    return Bits(ratio / math.log(2), error, size, documents)


def by_source(
    names: Sequence[str],
    source_d: NDArray[np.int32],
    nats_d: NDArray[np.float64],
    bytes_d: NDArray[np.int64],
) -> dict[str, Bits]:
    """The same for each source; `source_d` has each document's place in `names`.

    Sources without a counted byte are left out.
    """
    found = {
        name: bits(nats_d[source_d == number], bytes_d[source_d == number])
        for number, name in enumerate(names)
    }
    return {name: value for name, value in found.items() if value is not None}


def as_json(sources: Mapping[str, Bits]) -> dict[str, Any]:
    """Plain JSON: {"stories": {"bpb", "standard_error", "bytes", "documents"}, …}."""
    return {name: asdict(value) for name, value in sources.items()}
