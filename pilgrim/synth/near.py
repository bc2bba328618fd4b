"""Is a text a copy of one that is kept, or nearly one? MinHash with bands (Broder 1997; Leskovec, Rajaraman
and Ullman, "Mining of Massive Datasets", chapter 3).

A text is the set of its word triples. How much of each other two texts are is the share of triples that they
have in common, of all that either has (the Jaccard index). To compare a new text with all kept ones would
take ever longer. So each set gets a signature: 128 numbers, of which each is the least value of a random
function over the set. Two sets agree in one number with a probability that is exactly their Jaccard index.
The signature is cut into 32 bands of 4 numbers, and only texts that agree in a whole band are compared: at an
index of 0.7 that happens with a probability of 1 - (1 - 0.7⁴)³² = 99.98%, at 0.2 with 5%. What is compared is
compared exactly, on the sets themselves.
"""

import re
from collections import defaultdict
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

WORDS = 3
BANDS, NUMBERS = 32, 4

Hashes = NDArray[np.uint64]


class Kept:
    """The texts that were kept, to be asked whether another is a copy."""

    def __init__(self, near: float) -> None:
        """`near`: from this Jaccard index on, a text is a copy."""
        self._near = near
        self._sets: list[tuple[str, Hashes]] = []
        self._bands: dict[bytes, list[int]] = defaultdict(list)
        # Odd multipliers permute the 64-bit numbers; the high bits of the products are well mixed.
        self._factors = (
            np.random.default_rng(0).integers(2**63, size=BANDS * NUMBERS, dtype=np.uint64) * 2 + 1
        )

    def copy_of(self, text: str) -> tuple[str, float] | None:
        """The kept text that this is most alike, by name, and their index; None if it is no copy."""
        triples = triples_of(text)
        others = {number for band in self._bands_of(triples) for number in self._bands.get(band, ())}
        alike = [(jaccard(triples, self._sets[number][1]), number) for number in sorted(others)]
        index, number = max(alike, key=lambda pair: (pair[0], -pair[1]), default=(0.0, -1))
        return (self._sets[number][0], index) if index >= self._near and number >= 0 else None

    def add(self, name: str, text: str) -> None:
        """This one is kept."""
        triples = triples_of(text)
        for band in self._bands_of(triples):
            self._bands[band].append(len(self._sets))
        self._sets.append((name, triples))

    def _bands_of(self, triples: Hashes) -> list[bytes]:
        least = (triples[:, None] * self._factors).min(0).reshape(BANDS, NUMBERS)
        return [bytes([band]) + least[band].tobytes() for band in range(BANDS)]


def triples_of(text: str) -> Hashes:
    """A sorted set of 64-bit hashes, of words in small letters; a text of fewer words is one element."""
    words = re.findall(r"\w+|[^\w\s]", text.casefold())
    parts = [" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))]
    digests = b"".join(blake2b(part.encode("utf-8", "replace"), digest_size=8).digest() for part in parts)
    return np.unique(np.frombuffer(digests, dtype=np.uint64))


def jaccard(a: Hashes, b: Hashes) -> float:
    """The share of common elements, of all."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
