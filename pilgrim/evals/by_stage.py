"""What did each stage change? Every measure of every stage's model, and its difference to the stage before.

Two models that were asked the same differ by less luck than either is off the truth by: the same hard
documents are hard for both. So differences are not taken between two numbers with their errors, but item by
item, and the interval is that of the items' differences:

    bits per byte      of each document, what the second model needs more; a ratio of sums (compression.py)
    shares             of each prompt, whether only the one or only the other did it (statistics.py)
    accuracies         the same, and for a mean over tasks what each item adds to it (compare.py)

All intervals are of 95%. They tell of the items: had others been drawn, what might have come out? They do not
tell of training: had the seed been another one, would the stage have done the same? Only several runs do.

Where a stage's rows are longer than those of the stage before, its model can read prompts that the other one
can't. Then shares, tasks in which a prompt was cut, and their mean have no difference, as they were asked
other things.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pilgrim.core.errors import DataError
from pilgrim.evals.behaviour import Share
from pilgrim.evals.compare import compare
from pilgrim.evals.compression import bits
from pilgrim.evals.statistics import Z95, paired

Kind = Literal["bits", "share", "score"]  # bits per byte; a share of items; a mean of centered accuracies
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Value:
    """What one stage's model reached, over `n` documents or items."""

    value: float
    standard_error: float | None  # None for one document, whose error can't be known
    n: int


@dataclass(frozen=True)
class Change:
    """What a stage's model has more than that of the stage `since`, with its 95% interval."""

    since: str
    difference: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return not self.low <= 0 <= self.high


@dataclass
class Measure:
    """One measure, by stage, in the order of the journey."""

    name: str
    suite: str  # "bits", "behaviour", "chat" or "core"
    kind: Kind
    better: Better
    main: bool = True  # one of the few to look at first: no single source, no single task
    chance: float | None = None
    values: dict[str, Value] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)  # by the later stage

    def verdict(self, stage: str) -> str:
        """What became of it in a stage: "better", "worse", or "not told apart" where 0 may be the truth."""
        change = self.changes[stage]
        if not change.sure:
            return "not told apart"
        return "better" if (change.difference > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True)
class Read:
    """How many nats a stage's model needed for each document of a set, and how many bytes these have."""

    nats_d: NDArray[np.float64]
    bytes_d: NDArray[np.int64]


def bits_measures(
    name: str, read: Mapping[str, Read], sources: Sequence[str], source_d: NDArray[np.int32]
) -> list[Measure]:
    """Bits per byte of a set, by stage: of all of it, and of each source if there are several."""
    measures = [_bits_measure(name, read, main=True)]
    if len(sources) > 1:
        for number, source in enumerate(sources):
            of_source = {
                stage: Read(one.nats_d[source_d == number], one.bytes_d[source_d == number])
                for stage, one in read.items()
            }
            measures.append(_bits_measure(f"{name}: {source}", of_source, main=False))
    return [measure for measure in measures if measure.values]


def _bits_measure(name: str, read: Mapping[str, Read], main: bool) -> Measure:
    measure = Measure(name, "bits", "bits", "lower", main)
    for stage, one in read.items():
        if (found := bits(one.nats_d, one.bytes_d)) is not None:
            measure.values[stage] = Value(found.bpb, found.standard_error, found.documents)
    for since, stage in pairwise(measure.values):
        more = bits(read[stage].nats_d - read[since].nats_d, read[stage].bytes_d)
        assert more is not None
        if more.standard_error is not None:
            reach = Z95 * more.standard_error
            measure.changes[stage] = Change(since, more.bpb, more.bpb - reach, more.bpb + reach)
    return measure


def share_measure(name: str, better: Better, hits: Mapping[str, Sequence[bool]]) -> Measure:
    """Of the same prompts, in the same order, which were hits, by stage."""
    measure = Measure(name, "behaviour", "share", better)
    for stage, hit in hits.items():
        share = Share(sum(hit), len(hit))
        measure.values[stage] = Value(share.share, share.standard_error, share.n)
    for since, stage in pairwise(hits):
        if len(hits[since]) == len(hits[stage]):  # else one of them could not read some
            found = paired(hits[since], hits[stage])
            measure.changes[stage] = Change(since, found.difference, *found.interval)
    return measure


def suite_measures(suite: Literal["chat", "core"], results: Mapping[str, Mapping[str, Any]]) -> list[Measure]:
    """The mean and the tasks of results of `chat.evaluate` or `core.evaluate`, asked the same, by stage."""
    first = next(iter(results.values()))
    mean = Measure(first["name"], suite, "score", "higher")
    tasks = {
        name: Measure(f"{suite}: {name}", suite, "share", "higher", False, task["chance"])
        for name, task in first["tasks"].items()
    }
    for stage, result in results.items():
        if "score" in result:
            asked = sum(result["tasks"][name]["n"] for name in result.get("members", result["tasks"]))
            mean.values[stage] = Value(result["score"], result["standard_error"], asked)
        for name, task in result["tasks"].items():
            tasks[name].values[stage] = Value(task["accuracy"], task["standard_error"], task["n"])
    for since, stage in pairwise(results):
        try:
            found = compare(results[since], results[stage])
        except DataError:  # the two contexts cut some prompt of every task
            continue
        reach = Z95 * found.standard_error
        low, high = found.difference - reach, found.difference + reach
        if not found.left_out:
            mean.changes[stage] = Change(since, found.difference, low, high)
        for name, pair in found.tasks.items():
            tasks[name].changes[stage] = Change(since, pair.difference, *pair.interval)
    return [*([mean] if mean.values else []), *tasks.values()]
