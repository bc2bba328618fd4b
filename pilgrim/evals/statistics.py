"""How sure is an accuracy, and how sure is a difference between two?

An accuracy over n items is a measurement with an error. Two numbers tell of it: the standard error
sqrt(p (1 - p) / n), which is handy for adding up, and Wilson's 95% interval (Wilson 1927), which stays sound
near 0 and 1.

Two models that answered the same items are compared item by item. Where both are right or both are wrong
nothing is learned, so only the items count on which they disagree, and luck shared by both (easy items)
falls out. That is why a paired difference is surer than the two accuracies look. McNemar's exact test
(McNemar 1947) asks how often a fair coin would split those items at least as unevenly.

Of several tasks the mean is taken. Tasks that ask the same items (HellaSwag with and without examples) do not
err independently, so the error of a mean is worked out from what each item adds to it, over all its tasks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z95 = 1.959964  # of a normal distribution, 95% lie within this many standard deviations


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `n`: the true shares that it does not contradict."""
    spread = Z95**2 / n
    center = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return max(0.0, center - reach), min(1.0, center + reach)


def clustered_error(hits: Sequence[int], counts: Sequence[int]) -> float:
    """The standard error of sum(hits) / sum(counts), where each question has several parts.

    The parts of one question are not independent, the questions are. So the error is that of a ratio of two
    sums over questions (Cochran 1977, section 2.11): each adds how far its hits are from what the share says.
    """
    total = sum(counts)
    share = sum(hits) / total
    return math.sqrt(math.fsum((h - share * c) ** 2 for h, c in zip(hits, counts, strict=True))) / total


@dataclass(frozen=True)
class Paired:
    """Of two models on the same n items: what the second has more than the first, in shares of n."""

    n: int
    only_first: int  # right by the first model alone
    only_second: int

    @property
    def difference(self) -> float:
        return (self.only_second - self.only_first) / self.n

    @property
    def standard_error(self) -> float:
        """Of the difference: the spread of the items' +1, 0 and -1, over sqrt(n)."""
        disagreed = (self.only_first + self.only_second) / self.n
        return math.sqrt(max(0.0, disagreed - self.difference**2) / self.n)

    @property
    def interval(self) -> tuple[float, float]:
        """A 95% interval of the difference that stays sound where next to nothing was disagreed on.

        Half an item more is thought into each of the four cells (both, neither, one, other), which pulls the
        interval a little towards 0 and keeps it from being a point (Agresti & Min 2005, Statistics in
        Medicine 24: 729).
        """
        n, gained, lost = self.n + 2, self.only_second + 0.5, self.only_first + 0.5
        center = (gained - lost) / n
        reach = Z95 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
        return max(-1.0, center - reach), min(1.0, center + reach)

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: 1 where nothing speaks for a difference."""
        disagreed = self.only_first + self.only_second
        fewer = min(self.only_first, self.only_second)
        tail = sum(math.comb(disagreed, k) for k in range(fewer + 1))
        return min(1.0, float(2 * tail / 2**disagreed))


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare two models by which of the same items each had right. Raises ValueError if there are none."""
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} items: there must be as many, and at least one")
    pairs = list(zip(first, second, strict=True))
    return Paired(len(pairs), pairs.count((True, False)), pairs.count((False, True)))


def error_of_mean(tasks: Mapping[str, Mapping[int, float]], asked: Mapping[str, str]) -> float:
    """The standard error of the mean over tasks of each task's mean.

    `tasks` has, by task, a value for each item's number; `asked` names the file that a task's items are of.
    What one item adds to the mean is added up over the tasks of its file; items are independent.
    """
    variance = 0.0
    for file in set(asked.values()):
        added: dict[int, float] = {}
        for name, values in tasks.items():
            if asked[name] == file:
                mean = math.fsum(values.values()) / len(values)
                for item, value in values.items():
                    added[item] = added.get(item, 0.0) + (value - mean) / len(values) / len(tasks)
        variance += math.fsum(part**2 for part in added.values())
    return math.sqrt(variance)
