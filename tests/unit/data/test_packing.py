"""Packing loses nothing, repeats nothing, cuts only what is too long, and wastes little."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilgrim.data.packing import Piece, cut, pack, plan

lengths_and_context = st.tuples(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 30))


def planned(lengths: list[int], context: int) -> list[list[Piece]]:
    return plan(np.array(lengths, dtype=np.int64), np.arange(len(lengths)), context)


@given(lengths_and_context)
@settings(deadline=None)
def test_every_token_of_every_document_is_in_exactly_one_place(case: tuple[list[int], int]) -> None:
    lengths, context = case
    rows = planned(lengths, context)
    tokens = Counter(
        (p.document, at) for row in rows for p in row for at in range(p.start, p.start + p.length)
    )
    assert tokens == Counter((d, at) for d, length in enumerate(lengths) for at in range(length))


@given(lengths_and_context)
@settings(deadline=None)
def test_no_row_is_too_long_or_empty_and_no_piece_either(case: tuple[list[int], int]) -> None:
    lengths, context = case
    for row in planned(lengths, context):
        assert 0 < sum(p.length for p in row) <= context
        assert all(p.length > 0 for p in row)


@given(lengths_and_context)
@settings(deadline=None)
def test_a_document_that_fits_stays_whole_and_a_longer_one_has_one_rest(case: tuple[list[int], int]) -> None:
    lengths, context = case
    pieces = Counter(p.document for row in planned(lengths, context) for p in row)
    for document, length in enumerate(lengths):
        assert pieces[document] == -(-length // context)


@given(lengths_and_context)
@settings(deadline=None)
def test_no_two_rows_would_fit_into_one(case: tuple[list[int], int]) -> None:
    """Best fit opens a row only for a piece that fits no other: at most one row is half empty."""
    lengths, context = case
    filled = [sum(p.length for p in row) for row in planned(lengths, context)]
    assert sum(2 * used <= context for used in filled) <= 1


@given(lengths_and_context, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_it_is_best_fit_decreasing(case: tuple[list[int], int], dice: object) -> None:
    """Against the slow twin that looks at every row for every piece."""
    lengths, context = case
    pieces = [piece for d, length in enumerate(lengths) for piece in cut(d, length, context)]
    rows: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda p: -p.length):
        room = [(context - sum(p.length for p in row), i) for i, row in enumerate(rows)]
        fitting = [(left, i) for left, i in room if left >= piece.length]
        if fitting:
            rows[min(fitting)[1]].append(piece)
        else:
            rows.append([piece])
    assert pack(pieces, context) == rows


def test_a_document_larger_than_all_rows_is_cut_in_order() -> None:
    assert cut(7, 25, 10) == [Piece(7, 0, 10), Piece(7, 10, 10), Piece(7, 20, 5)]
    assert cut(7, 20, 10) == [Piece(7, 0, 10), Piece(7, 10, 10)]
    assert cut(7, 3, 10) == [Piece(7, 0, 3)]
    rows = planned([1000], 16)
    assert len(rows) == 63
    assert sorted((p.start, p.length) for row in rows for p in row)[-1] == (992, 8)


def test_the_order_decides_only_among_equals() -> None:
    lengths = np.array([5, 3, 5, 2], dtype=np.int64)
    forward = plan(lengths, np.array([0, 1, 2, 3]), 10)
    backward = plan(lengths, np.array([3, 2, 1, 0]), 10)
    assert [[p.document for p in row] for row in forward] == [[0, 2], [1, 3]]
    assert [[p.document for p in row] for row in backward] == [[2, 0], [1, 3]]


def test_only_the_named_documents_are_packed() -> None:
    rows = plan(np.array([5, 5, 5, 5], dtype=np.int64), np.array([2, 0]), 10)
    assert [[p.document for p in row] for row in rows] == [[2, 0]]
    assert planned([], 10) == []


def test_a_piece_longer_than_a_row_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="a piece of 11 tokens does not fit a row of 10"):
        pack([Piece(0, 0, 11)], 10)


# Percentiles 0, 1, 5, 10, 25, 50, 75, 90, 99 and 100 of the bundled stories' lengths, in tokens.
PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 99, 100)
STORY_TOKENS = (20, 87, 123, 138, 162, 195, 275, 594, 1580, 2500)


@pytest.mark.parametrize(("context", "least"), [(512, 0.97), (768, 0.98), (1024, 0.985), (2048, 0.99)])
def test_stories_fill_nearly_all_places(context: int, least: float) -> None:
    places = np.random.default_rng(1).uniform(0, 100, 4000)
    lengths = np.interp(places, PERCENTILES, STORY_TOKENS).astype(np.int64)
    rows = plan(lengths, np.arange(len(lengths)), context)
    assert lengths.sum() / (len(rows) * context) > least


def test_lengths_that_vary_more_fill_even_better() -> None:
    lengths = np.random.default_rng(1).lognormal(5.3, 0.9, 4000).astype(np.int64) + 2
    rows = plan(lengths, np.arange(len(lengths)), 512)
    assert lengths.sum() / (len(rows) * 512) > 0.995
