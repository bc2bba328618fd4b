"""Are the questions in the text that was trained on? Then the answers were read, not found.

The rule is that of GPT-3 (Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 4 and appendix C): an
item *overlaps* the training text if any 13 words in a row of it stand in one document, or, where it is
shorter, all of it, down to 8 words; of fewer, a match says nothing, and such an item is *too short* to tell.
It is there *whole* if its context with its right answer is, word for word. Words are what white space
separates, lower-cased and without punctuation, so case, quotation marks and line breaks make no difference.
Paraphrases, translations and languages without spaces are not seen. GPT-3's authors let runs of words pass
that are common in the training text; here every run counts, so that some overlaps are mere phrases.

All items must fit into memory, the training text need not: it is read once.

    number     every word of an item gets a number; a word of the text that no item has gets 0
    hash       of each 13 numbers in a row without a 0 among them, all at once (numpy)
    look up    few hashes are an item's: a table of bits rules out nearly all, binary search the rest
    compare    what is left word by word, so that the answer is exact and depends on no hash
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pilgrim.evals.items import Item

RUN = 13  # words in a row
SHORTEST = 8  # a whole item of so many words is told from a phrase
RULE = f"{RUN} words in a row, or a whole item of at least {SHORTEST}"

WORDS_AT_ONCE = 1 << 20  # of the training text, hashed together
KNOWN_SPELLINGS = 1 << 20  # remembered: "Said," and "said" are one word, which is worked out once
TABLE_BITS = 22
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits well mixed: 2^64 / the golden ratio

Numbers = NDArray[np.int32]

_NO_WORD = re.compile(r"[\W_]+")


def words(text: str) -> list[str]:
    """Lower-cased, without punctuation."""
    return [word for spelling in text.split() if (word := _word(spelling))]


def _word(spelling: str) -> str:
    return _NO_WORD.sub("", spelling.lower())


@dataclass
class Overlap:
    """Of the items of one file, by their lines: which are in the training text."""

    whole: set[int] = field(default_factory=set)  # with the right answer; they overlap, too
    overlapping: set[int] = field(default_factory=set)
    too_short: set[int] = field(default_factory=set)  # neither can be told


def overlaps(
    files: Mapping[str, Sequence[Item]],
    documents: Iterable[str],
    done: Callable[[int], None] = lambda documents: None,
) -> dict[str, Overlap]:
    """Look for the items of each file in the documents. `done(n)` counts documents that were read."""
    search = _Search(files)
    for numbers, count in _blocks(documents, search.vocabulary):
        search.look_at(numbers)
        done(count)
    return search.found


class _Spellings(dict[str, int]):
    """From a word as it is written to its number: 0 if no item has it, -1 if it is only punctuation."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def __missing__(self, spelling: str) -> int:
        word = _word(spelling)
        number = self.vocabulary.get(word, 0) if word else -1
        if len(self) < KNOWN_SPELLINGS:
            self[spelling] = number
        return number


def _blocks(documents: Iterable[str], vocabulary: Mapping[str, int]) -> Iterator[tuple[Numbers, int]]:
    """Many documents' words as numbers, with a 0 behind each document; and how many documents."""
    number_of = _Spellings(vocabulary).__getitem__
    parts: list[Numbers] = []
    size = 0
    for text in documents:
        numbers = np.fromiter(map(number_of, text.split()), np.int32)
        parts += [numbers[numbers >= 0], np.zeros(1, np.int32)]
        size += len(numbers)
        if size >= WORDS_AT_ONCE:
            yield np.concatenate(parts), len(parts) // 2
            parts, size = [], 0
    if parts:
        yield np.concatenate(parts), len(parts) // 2


def _zeros(numbers: Numbers) -> NDArray[np.int64]:
    """How many zeros stand before each place, the end included."""
    return np.concatenate([[0], np.cumsum(numbers == 0)])


def _runs(
    numbers: Numbers, zeros: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Where `length` numbers in a row hold no 0, and their hash: a polynomial in FACTOR, modulo 2^64."""
    count = max(0, len(numbers) - length + 1)
    at = np.flatnonzero(zeros[length : length + count] == zeros[:count])
    hashes = np.zeros(len(at), np.uint64)
    for place in range(length):
        hashes = hashes * FACTOR + numbers[at + place].astype(np.uint64)
    return at, hashes ^ (hashes >> np.uint64(32))


@dataclass
class _Runs:
    """All runs of one length that items have, by hash: run i of `hashes` begins at the places
    `at[first[i] : first[i + 1]]` of the items' numbers."""

    length: int
    hashes: NDArray[np.uint64]  # sorted, each once
    first: NDArray[np.int64]
    at: NDArray[np.int64]
    open: NDArray[np.bool_]  # there is still something to be learned from meeting it
    table: NDArray[np.bool_]  # by a hash's first bits: may it be among `hashes`?

    @classmethod
    def of(cls, length: int, at: NDArray[np.int64], hashes: NDArray[np.uint64]) -> "_Runs":
        order = np.argsort(hashes, kind="stable")
        unique, first = np.unique(hashes[order], return_index=True)
        table = np.zeros(1 << TABLE_BITS, np.bool_)
        table[unique >> np.uint64(64 - TABLE_BITS)] = True
        bounds = np.append(first, len(order)).astype(np.int64)
        return cls(length, unique, bounds, at[order], np.ones(len(unique), np.bool_), table)

    def met(self, numbers: Numbers, zeros: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """(place in `numbers`, run) wherever the hashes agree and there is something to be learned."""
        at, hashes = _runs(numbers, zeros, self.length)
        likely = self.table[hashes >> np.uint64(64 - TABLE_BITS)]
        at, hashes = at[likely], hashes[likely]
        run = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        same = (self.hashes[run] == hashes) & self.open[run]
        for place, number in zip(at[same].tolist(), run[same].tolist(), strict=True):
            if self.open[number]:  # it may have been closed since
                yield place, number


class _Search:
    """The items, ready to be met, and what was found of them."""

    def __init__(self, files: Mapping[str, Sequence[Item]]) -> None:
        self.vocabulary: dict[str, int] = {}
        self.found = {name: Overlap() for name in files}
        self.items = [(name, item) for name, items in files.items() for item in items]
        parts: list[Numbers] = []
        item_of, right, starts = list[int](), list[bool](), [0]
        for number, (_, item) in enumerate(self.items):
            for option, (context, continuation) in enumerate(item.options):
                ids = [self._number(word) for word in words(f"{context} {continuation}")]
                parts.append(np.array([*ids, 0], np.int32))
                starts.append(starts[-1] + len(ids) + 1)
                item_of.append(number)
                right.append(option == item.gold)
        self.numbers = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        self.starts = np.array(starts)  # of each option's text; it ends with a 0
        self.item_of, self.right = np.array(item_of, np.int64), np.array(right, np.bool_)
        self.runs = list(self._all_runs())

    def _number(self, word: str) -> int:
        return self.vocabulary.setdefault(word, len(self.vocabulary) + 1)

    def _all_runs(self) -> Iterator[_Runs]:
        """The runs of 13, each once for an item; then the short items, whole, by their length."""
        zeros = _zeros(self.numbers)
        at, hashes = _runs(self.numbers, zeros, RUN)
        keys = (self._ends_of_right(at + RUN), self._items_at(at), hashes)
        order = np.lexsort(keys)  # by hash, then item; options repeat what their context has
        differs = [np.diff(key[order], prepend=key[order[:1]] + np.uint8(1)) != 0 for key in keys]
        once = order[np.any(differs, axis=0)]
        judged = set(self._items_at(at).tolist())
        if len(once):
            yield _Runs.of(RUN, at[once], hashes[once])
        lengths = np.diff(self.starts) - 1
        for length in range(SHORTEST, RUN):
            texts = np.flatnonzero((lengths == length) & self.right)
            if len(texts):
                at, hashes = _runs(self.numbers, zeros, length)
                mine = np.isin(at, self.starts[texts])
                judged |= set(self.item_of[texts].tolist())
                yield _Runs.of(length, at[mine], hashes[mine])
        for number, (name, item) in enumerate(self.items):
            if number not in judged:
                self.found[name].too_short.add(item.line)

    def _text_at(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.starts, at, side="right") - 1

    def _items_at(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.item_of[self._text_at(at)]

    def _ends_of_right(self, end: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a run that ends there is the end of an item with its right answer."""
        text = self._text_at(end - 1)
        ends: NDArray[np.bool_] = self.right[text] & (self.starts[text + 1] - 1 == end)
        return ends

    def look_at(self, numbers: Numbers) -> None:
        """Find the items' runs in a part of the training text."""
        zeros = _zeros(numbers)
        for runs in self.runs:
            for place, run in runs.met(numbers, zeros):
                entries = runs.at[runs.first[run] : runs.first[run + 1]]
                still = [self._meet(numbers, place, int(at), runs.length) for at in entries]
                runs.open[run] = any(still)

    def _meet(self, numbers: Numbers, place: int, at: int, length: int) -> bool:
        """Compare the text at `place` with the items' at `at`; True if meeting that again may tell more.

        A whole item is looked for from its end, as many questions begin alike.
        """
        if not np.array_equal(numbers[place : place + length], self.numbers[at : at + length]):
            return True  # only the hashes were equal
        text = int(self._text_at(np.array([at]))[0])
        name, item = self.items[self.item_of[text]]
        found = self.found[name]
        found.overlapping.add(item.line)
        begin, end = int(self.starts[text]), int(self.starts[text + 1]) - 1
        if not self.right[text] or at + length != end or item.line in found.whole:
            return False
        before = at - begin
        if place >= before and np.array_equal(numbers[place - before : place], self.numbers[begin:at]):
            found.whole.add(item.line)
            return False
        return True
