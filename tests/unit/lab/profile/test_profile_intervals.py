"""Arithmetic with spans, against the slow way: looking at every single microsecond."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pilgrim.lab.profile.intervals import Span, length, minus, overlap, union

spans = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda s: (float(s[0]), float(s[0] + s[1]))),
    max_size=8,
)


def ticks(found: list[Span]) -> set[int]:
    return {tick for begin, end in found for tick in range(int(begin), int(end))}


@settings(deadline=None)
@given(spans, spans)
def test_every_microsecond_is_where_it_belongs(a: list[Span], b: list[Span]) -> None:
    assert ticks(union(a)) == ticks(a)
    assert ticks(overlap(a, b)) == ticks(a) & ticks(b)
    assert ticks(minus(a, b)) == ticks(a) - ticks(b)
    assert length(a) == len(ticks(a))


@settings(deadline=None)
@given(spans, spans)
def test_results_are_sorted_and_apart(a: list[Span], b: list[Span]) -> None:
    for found in (union(a), overlap(a, b), minus(a, b)):
        assert all(begin < end for begin, end in found)
        assert all(x[1] <= y[0] for x, y in pairwise(found))
