"""Every short form of who may look at whom says the same as the table of all pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pilgrim.model.attention_spans import (
    block_lists,
    cumulative_starts,
    different,
    document_mask,
    document_starts,
    first_keys,
    visible_blocks,
    window_of,
)

WINDOWS = st.one_of(st.none(), st.integers(1, 40))


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """Up to three rows of documents of any lengths, some with padding at the end."""
    t = draw(st.integers(1, 40))
    cuts = st.sets(st.integers(1, 40), max_size=6)
    packed = []
    for _ in range(draw(st.integers(1, 3))):
        border = draw(cuts)
        number = torch.tensor([sum(cut <= i for cut in border) for i in range(t)], dtype=torch.int32)
        if draw(st.booleans()):
            number[number == number.max()] = -1
        packed.append(number)
    return torch.stack(packed)


def table_from_first_keys(first_bt: Tensor) -> Tensor:
    key = torch.arange(first_bt.shape[1])
    return ((key <= key[:, None]) & (key >= first_bt[:, :, None]))[:, None]


def test_windows_by_hand() -> None:
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    assert first_keys(documents).tolist() == [[0, 0, 0, 0, 4, 4, 4]]
    assert first_keys(documents, 2).tolist() == [[0, 0, 1, 2, 4, 4, 5]]
    mask = document_mask(documents[:, :4], 2)[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


@settings(max_examples=150, deadline=None)
@given(documents=rows(), window=WINDOWS)
def test_first_keys_are_the_table(documents: Tensor, window: int | None) -> None:
    first_bt = first_keys(documents, window)
    assert first_bt.dtype == torch.int32
    assert torch.equal(table_from_first_keys(first_bt), document_mask(documents, window))
    assert (first_bt.diff(dim=1) >= 0).all()  # what `visible_blocks` relies on


@settings(max_examples=150, deadline=None)
@given(documents=rows(), window=WINDOWS, size=st.sampled_from([1, 3, 8, 128]))
def test_blocks_are_the_table_seen_from_afar(documents: Tensor, window: int | None, size: int) -> None:
    some, full = visible_blocks(first_keys(documents, window), size)
    table = document_mask(documents, window)[:, 0]
    for i in range(some.shape[1]):
        for j in range(some.shape[2]):
            pairs = table[:, i * size : (i + 1) * size, j * size : (j + 1) * size].flatten(1)
            if i == j:  # asked pair by pair even where a block of one pair needn't be
                assert some[:, i, j].all() and not full[:, i, j].any()
            else:
                assert torch.equal(some[:, i, j], pairs.any(1) & ~pairs.all(1))
                assert torch.equal(full[:, i, j], pairs.all(1))


@settings(max_examples=50, deadline=None)
@given(documents=rows(), window=WINDOWS)
def test_lists_hold_the_blocks_both_ways(documents: Tensor, window: int | None) -> None:
    blocks = block_lists(documents, window, size=4)
    partial, full = visible_blocks(blocks.first_bt, 4)
    kv = (blocks.kv_num_blocks, blocks.kv_indices), (blocks.full_kv_num_blocks, blocks.full_kv_indices)
    queries = (blocks.q_num_blocks, blocks.q_indices), (blocks.full_q_num_blocks, blocks.full_q_indices)
    for lists, dense in zip((*kv, *queries), (partial, full, partial.mT, full.mT), strict=True):
        counts, indices = lists
        assert counts.dtype == indices.dtype == torch.int32
        for b, i in torch.cartesian_prod(torch.arange(dense.shape[0]), torch.arange(dense.shape[1])):
            listed = indices[b, 0, i, : counts[b, 0, i]].sort().values
            assert listed.tolist() == dense[b, i].nonzero().flatten().tolist()


def test_flex_attention_reads_the_lists_as_they_are_meant() -> None:
    """torch's own conversion back to a table, and its own way from blocks of keys to blocks of queries."""
    from torch.nn.attention.flex_attention import BlockMask

    documents = torch.tensor([[0] * 300 + [1] * 90 + [2] * 150, [0] * 500 + [-1] * 40])
    for window in (None, 1, 100, 400):
        blocks = block_lists(documents, window)
        theirs = BlockMask.from_kv_blocks(*blocks[1:5])
        assert theirs.q_num_blocks is not None and theirs.full_q_num_blocks is not None
        assert torch.equal(theirs.q_num_blocks, blocks.q_num_blocks)
        assert torch.equal(theirs.full_q_num_blocks, blocks.full_q_num_blocks)
        partial, full = visible_blocks(blocks.first_bt)
        assert torch.equal(theirs.to_dense()[:, 0].bool(), partial | full)


@settings(max_examples=100, deadline=None)
@given(documents=rows())
def test_sequences_are_the_documents(documents: Tensor) -> None:
    """Behind each other, each document is one sequence; the others have no tokens."""
    b, t = documents.shape
    cumulative = cumulative_starts(document_starts(documents), t)
    assert cumulative.dtype == torch.int32
    assert cumulative[0] == 0 and cumulative[-1] == b * t
    lengths = cumulative.diff()
    assert (lengths >= 0).all() and lengths.max() <= t
    sequence_n = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    rows_n, number_n = torch.arange(b).repeat_interleave(t), documents.flatten()
    same = (rows_n == rows_n[:, None]) & (number_n == number_n[:, None])
    assert torch.equal(sequence_n == sequence_n[:, None], same)


def test_starts_are_never_one_wide() -> None:
    """A size of one would be compiled as a constant."""
    assert document_starts(torch.zeros(3, 9)).tolist() == [[0, 9]] * 3


@pytest.mark.parametrize(
    ("windows", "each", "once"),
    [(None, [None] * 3, [None]), (7, [7] * 3, [7]), ((7, None, 7), [7, None, 7], [7, None])],
)
def test_one_window_or_one_for_each_layer(
    windows: int | tuple[int | None, ...] | None, each: list[int | None], once: list[int | None]
) -> None:
    assert [window_of(windows, layer) for layer in range(3)] == each
    assert different(windows) == once
