"""Arithmetic with stretches of time: what is covered, what is left, what two have in common.

Most questions to a trace are of this kind. "When had the device nothing to do?" is the step, less the union
of all kernels. "Which communication was not hidden?" is the union of its kernels, less the union of the
others.

A span is (begin, end) in microseconds, as traces have them. Functions return spans sorted and disjoint.
"""

from collections.abc import Iterable

Span = tuple[float, float]


def union(spans: Iterable[Span]) -> list[Span]:
    """The same time, with overlaps joined and empty spans left out."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if end <= begin:
            continue
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def overlap(a: Iterable[Span], b: Iterable[Span]) -> list[Span]:
    """What is in `a` and in `b`."""
    first, second = union(a), union(b)
    found: list[Span] = []
    i = j = 0
    while i < len(first) and j < len(second):
        begin, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if begin < end:
            found.append((begin, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return found


def minus(a: Iterable[Span], b: Iterable[Span]) -> list[Span]:
    """What is in `a` and not in `b`."""
    left: list[Span] = []
    holes = union(b)
    j = 0
    for begin, end in union(a):
        while j < len(holes) and holes[j][1] <= begin:
            j += 1
        k = j
        while k < len(holes) and holes[k][0] < end:
            if begin < holes[k][0]:
                left.append((begin, holes[k][0]))
            begin = max(begin, holes[k][1])
            k += 1
        if begin < end:
            left.append((begin, end))
    return left


def length(spans: Iterable[Span]) -> float:
    """Microseconds covered."""
    return sum(end - begin for begin, end in union(spans))
