"""The loader hands out every token once an epoch, each with its target, from any position on."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pilgrim.core.errors import DataError
from pilgrim.core.processes import Processes
from pilgrim.core.runtime import Runtime
from pilgrim.data import loader
from pilgrim.data.loader import (
    IGNORED,
    Batch,
    PackedRows,
    Position,
    TooLong,
    batches,
    build_row,
    one_pass,
    stack,
    too_long,
)
from pilgrim.data.packing import Piece
from pilgrim.data.shards import Document, TokenSet, open_token_set, write_token_set

END = 0
CONTEXT = 16


def runtime(seed: int = 1) -> Runtime:
    return Runtime(torch.device("cpu"), torch.float32, compile=False, seed=seed)


def token_set(documents: list[list[int]], trained: list[list[bool]] | None = None) -> TokenSet:
    """In memory, without the way over the disk."""
    starts = np.cumsum([0, *map(len, documents)])
    masks = None if trained is None else np.concatenate([np.array(m, dtype=np.bool_) for m in trained])
    tokens = np.concatenate([np.array(d, dtype=np.uint16) for d in documents])
    return TokenSet("some", tokens, starts.astype(np.int64), masks, {"bytes": 0})


def numbered(lengths: list[int]) -> list[list[int]]:
    """Documents in which every token of the set has an id of its own, and which begin with END."""
    ids = iter(range(1, sum(lengths) + 1))
    return [[END, *(next(ids) for _ in range(length - 1))] for length in lengths]


def transitions(batch: Batch) -> Counter[tuple[int, int]]:
    """(token, target) of everything that is trained."""
    counts = batch.targets_bt != IGNORED
    return Counter(zip(batch.inputs_bt[counts].tolist(), batch.targets_bt[counts].tolist(), strict=True))


def expected(documents: list[list[int]]) -> Counter[tuple[int, int]]:
    """Every token of every document with what follows it, and END after the last."""
    return Counter(pair for d in documents for pair in zip(d, [*d[1:], END], strict=True))


def rows_of_epoch(source: PackedRows, epoch: int) -> list[Batch]:
    """All rows of one epoch, found by their positions."""
    found: list[Batch] = []
    for row, position in source.rows({"epoch": epoch, "window": 0, "taken": []}):
        if position["epoch"] != epoch:
            return found
        found.append(row)
    raise AssertionError("rows never end")


def check_padding(batch: Batch) -> None:
    padding = batch.documents_bt == -1
    assert (batch.targets_bt[padding] == IGNORED).all()
    assert (batch.inputs_bt[padding] == END).all()
    for row in padding:
        assert row.tolist() == sorted(row.tolist())  # only at the end


some_lengths = st.lists(st.integers(1, 50), min_size=1, max_size=40)


# Nothing lost, nothing twice ----------------------------------------------------------------------


@given(some_lengths, st.integers(1, 24), st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_an_epoch_has_every_token_and_every_target_once(
    lengths: list[int], context: int, window: int
) -> None:
    documents = numbered(lengths)
    source = PackedRows(token_set(documents), context, END, runtime())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "WINDOW", window)
        for epoch in (0, 3):
            batch = stack(rows_of_epoch(source, epoch))
            check_padding(batch)
            real = batch.documents_bt >= 0
            assert Counter(batch.inputs_bt[real].tolist()) == Counter(i for d in documents for i in d)
            assert transitions(batch) == expected(documents)
            assert batch.tokens == batch.trained_tokens == sum(lengths)


@given(some_lengths, st.integers(1, 24), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_one_pass_has_every_token_and_every_target_once(lengths: list[int], context: int, rows: int) -> None:
    documents = numbered(lengths)
    found = list(one_pass(token_set(documents), context, END, rows))
    assert all(batch.inputs_bt.shape == (rows, context) for batch in found[:-1])
    assert sum((transitions(batch) for batch in found), Counter()) == expected(documents)


def test_one_pass_counts_every_byte(tmp_path: Path) -> None:
    """The bytes of all targets are the bytes of the text, however the documents are cut."""
    bytes_of = [0, 1, 2, 3, 4, 5]
    dice = np.random.default_rng(1)
    documents = [[END, *dice.integers(1, 6, length).tolist()] for length in (3, 40, 7, 16, 15, 1, 100)]
    sizes = [sum(bytes_of[i] for i in ids) for ids in documents]
    made = (Document(ids, None, "x", size) for ids, size in zip(documents, sizes, strict=True))
    write_token_set(tmp_path, "val", made, 6, "hash")
    tokens = open_token_set(tmp_path, "val")
    counted = sum(
        bytes_of[target]
        for batch in one_pass(tokens, CONTEXT, END, 4)
        for target in batch.targets_bt.flatten().tolist()
        if target != IGNORED
    )
    assert counted == tokens.text_bytes == sum(sizes)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30), context=st.integers(2, 20))
def test_one_pass_numbers_documents_as_the_set_does(lengths: list[int], context: int) -> None:
    """Each token's document is known, and no row holds two pieces of one, which could look at each other."""
    seen = [0] * len(lengths)
    for batch in one_pass(token_set([[END] * length for length in lengths]), context, END, 3):
        for row in batch.documents_bt:
            runs, counts = torch.unique_consecutive(row[row >= 0], return_counts=True)
            assert len(set(runs.tolist())) == len(runs)
            for document, count in zip(runs.tolist(), counts.tolist(), strict=True):
                seen[document] += count
    assert seen == lengths


# Rows ---------------------------------------------------------------------------------------------


def test_a_row_in_full() -> None:
    tokens = token_set([[END, 1, 2], [END, 3], [END, 4, 5, 6, 7, 8]])
    row = build_row(tokens, [Piece(2, 0, 4), Piece(0, 0, 3), Piece(2, 4, 2)], 11, END)
    assert row.inputs_bt.tolist() == [[END, 4, 5, 6, END, 1, 2, 7, 8, END, END]]
    assert row.targets_bt.tolist() == [[4, 5, 6, 7, 1, 2, END, 8, END, IGNORED, IGNORED]]
    assert row.documents_bt.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 2, -1, -1]]
    assert (row.inputs_bt.dtype, row.targets_bt.dtype, row.documents_bt.dtype) == (
        torch.int64,
        torch.int64,
        torch.int32,
    )


def test_a_cut_document_goes_on_where_it_was_cut() -> None:
    """The last token before the cut is to predict the first one after it."""
    document = [END, *range(1, 3 * CONTEXT + 5)]
    pieces = sorted(
        (row.inputs_bt[row.documents_bt == 0].tolist(), row.targets_bt[row.documents_bt == 0].tolist())
        for row in rows_of_epoch(PackedRows(token_set([document]), CONTEXT, END, runtime()), 0)
    )
    assert [i for inputs, _ in pieces for i in inputs] == document
    assert [i for _, targets in pieces for i in targets] == [*document[1:], END]


def test_only_what_the_assistant_says_is_a_target() -> None:
    conversation = [END, 1, 2, 3, 4, 5, 6, 7]
    trained = [False, False, False, True, True, False, False, True]
    row = build_row(token_set([conversation], [trained]), [Piece(0, 0, 8)], 10, END)
    assert row.inputs_bt.tolist() == [[*conversation, END, END]]
    targets = [IGNORED, IGNORED, 3, 4, IGNORED, IGNORED, 7, IGNORED, IGNORED, IGNORED]
    assert row.targets_bt.tolist() == [targets]  # nor is the end of the conversation one


@given(some_lengths, st.integers(1, 24), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_every_trained_token_of_a_conversation_is_a_target_once(
    lengths: list[int], context: int, dice: object
) -> None:
    documents = numbered(lengths)
    generator = np.random.default_rng(sum(lengths))
    masks = [[False, *(generator.random(len(d) - 1) < 0.4).tolist()] for d in documents]
    assume(any(map(any, masks)))
    rows = rows_of_epoch(PackedRows(token_set(documents, masks), context, END, runtime()), 0)
    assert all(row.trained_tokens > 0 for row in rows)
    wanted = [i for d, mask in zip(documents, masks, strict=True) for i, m in zip(d, mask, strict=True) if m]
    found = sum((transitions(row) for row in rows), Counter())
    assert Counter(target for _, target in found.elements()) == Counter(wanted)
    assert all(target == token + 1 or token == END for token, target in found)


def test_pieces_that_teach_nothing_are_left_out_and_counted() -> None:
    """A short answer to an endless question, an answer that goes on beyond a row, and a short talk."""
    question = ([END, *range(1, 60)], [False] * 55 + [True] * 5)
    answer = ([END, *range(100, 140)], [False] * 10 + [True] * 31)
    short = ([END, *range(200, 208)], [False] * 5 + [True] * 4)
    documents, masks = map(list, zip(question, answer, short, strict=True))
    tokens = token_set(documents, masks)
    assert too_long(tokens, 16) == TooLong(conversations=2, pieces=4 + 3, left_out=3)
    rows = rows_of_epoch(PackedRows(tokens, 16, END, runtime()), 0)
    assert all(row.trained_tokens > 0 for row in rows)
    assert sum(row.trained_tokens for row in rows) == sum(map(sum, masks))
    read = {i for row in rows for i in row.inputs_bt[row.documents_bt >= 0].tolist()}
    assert not read & set(range(1, 48)) and set(range(48, 60)) <= read
    assert too_long(tokens, 64) == TooLong(0, 0, 0)


def test_pieces_that_teach_nothing_are_left_out_when_rows_get_longer_too() -> None:
    generator = np.random.default_rng(3)
    documents = numbered([int(n) for n in generator.integers(2, 120, 60)])
    masks = [[False, *(generator.random(len(d) - 1) < 0.03).tolist()] for d in documents]
    short = PackedRows(token_set(documents, masks), 8, END, runtime())
    seen, position = [], None
    for context in (8, 24, 16):
        stream = short.at(context).rows(position)
        for _ in range(12):
            row, position = next(stream)
            seen.append(row)
    assert all(row.trained_tokens > 0 for row in seen)
    targets = [i for row in seen for _, i in transitions(row).elements()]
    assert len(targets) == len(set(targets))


def test_a_set_in_which_nothing_is_learned_is_refused() -> None:
    source = PackedRows(token_set(numbered([5, 30]), [[False] * 5, [False] * 30]), CONTEXT, END, runtime())
    with pytest.raises(DataError, match=r"^some: none of its tokens is to be learned"):
        next(source.rows(None))


def test_documents_keep_their_neighbours_out() -> None:
    """Numbers within a row are 0, 1, 2 …, one for each piece, in one stretch."""
    source = PackedRows(token_set(numbered([3, 5, 2, 9, 4, 30, 1])), CONTEXT, END, runtime())
    for row in rows_of_epoch(source, 0):
        numbers = [n for n in row.documents_bt[0].tolist() if n >= 0]
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(max(numbers) + 1))


# The position is a value --------------------------------------------------------------------------


def same(a: Batch, b: Batch) -> bool:
    pairs: list[tuple[Tensor, Tensor]] = [
        (a.inputs_bt, b.inputs_bt),
        (a.targets_bt, b.targets_bt),
        (a.documents_bt, b.documents_bt),
    ]
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("window", [4, 4096])
@pytest.mark.parametrize("rows", [1, 3])
def test_from_every_position_the_same_batches_follow(
    window: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over two epochs, and with the position taken through JSON as checkpoints do."""
    monkeypatch.setattr(loader, "WINDOW", window)
    lengths = np.random.default_rng(1).integers(1, 40, 18).tolist()
    tokens = token_set(numbered(lengths))
    straight = list(islice(batches(PackedRows(tokens, CONTEXT, END, runtime()), rows, None), 60 // rows))
    assert straight[-1][1]["epoch"] >= 1
    for i, (_, position) in enumerate(straight[:-3]):
        saved: Position = json.loads(json.dumps(position))
        resumed = islice(batches(PackedRows(tokens, CONTEXT, END, runtime()), rows, saved), 3)
        for (batch, at), (ours, here) in zip(straight[i + 1 : i + 4], resumed, strict=True):
            assert same(batch, ours)
            assert at == here


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    tokens = token_set(numbered([5] * 40))

    def order(seed: int, epoch: int) -> list[int]:
        rows = rows_of_epoch(PackedRows(tokens, CONTEXT, END, runtime(seed)), epoch)
        return stack(rows).inputs_bt.flatten().tolist()

    orders = [order(1, 0), order(1, 1), order(2, 0)]
    assert order(1, 0) == orders[0]
    assert len({tuple(o) for o in orders}) == 3


def test_the_rows_of_epochs_are_counted_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilgrim.data.loader.WINDOW", 16)  # several windows an epoch
    source = PackedRows(token_set(numbered([5, 9, 14, 3, 3, 20, 7] * 9)), 16, 0, runtime())
    of_epochs = [len(rows_of_epoch(source, epoch)) for epoch in range(3)]
    assert source.count(1) == of_epochs[0]
    assert source.count(3) == sum(of_epochs)
    assert source.count(1.5) == of_epochs[0] + round(of_epochs[1] / 2)
    assert source.count(0.001) == 1
    read = [source.epochs(position) for _, position in islice(source.rows(None), sum(of_epochs))]
    assert read == sorted(read) and read[0] == 0 and read[-1] == 2.75 and read[of_epochs[0]] == 1


def test_a_batch_sees_all_lengths() -> None:
    """Packing sorts by length; the rows are shuffled again, or short documents would come last."""
    tokens = token_set(numbered([15] * 60 + [3] * 60))
    pieces = [
        int(row.documents_bt.max()) + 1
        for row in rows_of_epoch(PackedRows(tokens, CONTEXT, END, runtime()), 0)
    ]
    half = len(pieces) // 2
    assert pieces != sorted(pieces)
    assert min(max(pieces[:half]), max(pieces[half:])) > 1


# Rows that grow -----------------------------------------------------------------------------------


def grown(source: PackedRows, plan: list[tuple[int, int]], position: Position | None) -> Position | None:
    """The position after `plan`: (context, rows taken at it) one after the other."""
    for context, n in plan:
        for _, after in islice(source.at(context).rows(position), n):
            position = after
    return position


@given(some_lengths, st.lists(st.tuples(st.integers(1, 24), st.integers(0, 12)), max_size=4))
@settings(deadline=None, max_examples=60)
def test_when_the_context_changes_no_token_is_lost_and_none_comes_twice(
    lengths: list[int], plan: list[tuple[int, int]]
) -> None:
    """Rows of several lengths, until the epoch ends at the last of them."""
    documents = numbered(lengths)
    source: PackedRows = PackedRows(token_set(documents), CONTEXT, END, runtime())
    epochs: dict[int, list[Batch]] = {}
    position: Position | None = None
    for context, n in [*plan, (CONTEXT, 10**9)]:
        for row, after in islice(source.at(context).rows(position), n):
            position = after
            epochs.setdefault(after["epoch"], []).append(row)
            if after["epoch"] > 20:
                break
    assert position is not None
    del epochs[position["epoch"]]  # it has only begun
    for rows in epochs.values():
        assert sum((transitions(row) for row in rows), Counter()) == expected(documents)


def test_pieces_are_joined_again_when_rows_get_longer() -> None:
    """A document of 64 tokens, of which a row of 16 was taken, leaves 48: in rows of 32, two rows."""
    source = PackedRows(token_set([[END, *range(1, 64)]]), CONTEXT, END, runtime())
    position = grown(source, [(CONTEXT, 1)], None)
    (first, _), (second, after) = islice(source.at(32).rows(position), 2)
    lengths = sorted(int((row.documents_bt >= 0).sum()) for row in (first, second))
    assert sum(lengths) == 48
    assert after == {"epoch": 0, "window": 0, "taken": [[16, 1], [32, 2]]}


@pytest.mark.parametrize("window", [4, 4096])
def test_from_every_position_after_a_switch_the_same_rows_follow(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "WINDOW", window)
    lengths = np.random.default_rng(1).integers(1, 40, 18).tolist()
    source = PackedRows(token_set(numbered(lengths)), CONTEXT, END, runtime())
    position = grown(source, [(8, 5), (12, 2)], None)
    straight = list(islice(source.rows(position), 40))
    for i, (_, here) in enumerate(straight[:-3]):
        saved: Position = json.loads(json.dumps(here))
        again = PackedRows(token_set(numbered(lengths)), CONTEXT, END, runtime()).rows(saved)
        for (row, at), (ours, there) in zip(straight[i + 1 : i + 4], islice(again, 3), strict=True):
            assert same(row, ours)
            assert at == there


# Batches ------------------------------------------------------------------------------------------


def test_a_batch_has_its_rows_in_order() -> None:
    source = PackedRows(token_set(numbered([9] * 30)), CONTEXT, END, runtime())
    single = [row for row, _ in islice(source.rows(None), 6)]
    (first, _), (second, position) = islice(batches(source, 3, None), 2)
    assert same(first, stack(single[:3]))
    assert same(second, stack(single[3:]))
    assert position == {"epoch": 0, "window": 0, "taken": [[CONTEXT, 6]]}


def test_microbatches_are_the_batch_in_parts() -> None:
    batch = stack(
        [
            row
            for row, _ in islice(
                PackedRows(token_set(numbered([7] * 30)), CONTEXT, END, runtime()).rows(None), 5
            )
        ]
    )
    parts = list(batch.micro(2))
    assert [part.inputs_bt.shape[0] for part in parts] == [2, 2, 1]
    assert same(stack(parts), batch)
    assert sum(part.trained_tokens for part in parts) == batch.trained_tokens


def test_one_token_documents() -> None:
    """A text of no tokens still has an end to predict."""
    batch = next(one_pass(token_set([[END], [END]]), 4, END, 1))
    assert batch.targets_bt.tolist() == [[END, END, IGNORED, IGNORED]]
    assert batch.documents_bt.tolist() == [[0, 1, -1, -1]]


def test_where_documents_begin_travels_with_the_rows_of_a_gpu() -> None:
    """On torch's device without memory: what counts is that it is made before the batch leaves the CPU."""
    documents = torch.tensor([[0, 0, 1, 1, -1, -1], [0, 1, 2, 3, 3, 3], [0] * 6], dtype=torch.int32)
    batch = Batch(torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long), documents)
    assert batch.to(torch.device("cpu")).starts_bd is None
    moved = batch.to(torch.device("meta"))
    assert moved.starts_bd is not None and moved.starts_bd.shape == (3, 4)
    parts = [micro.starts_bd for micro in moved.micro(2)]
    assert [part is not None and part.shape for part in parts] == [(2, 4), (1, 4)]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_are_equal_in_shape_and_together_the_batch(count: int) -> None:
    ids = torch.arange(4 * 8).view(4, 8)
    batch = Batch(ids, ids.where(ids % 3 > 0, torch.tensor(IGNORED)), torch.zeros(4, 8, dtype=torch.int32))
    shares = [batch.share(Processes(rank, count)) for rank in range(count)]
    assert len({share.inputs_bt.shape for share in shares}) == 1
    for name in ("inputs_bt", "targets_bt", "documents_bt"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares])[:4], getattr(batch, name))
    rest = torch.cat([share.targets_bt for share in shares])[4:]
    assert (rest == IGNORED).all()
    # Each knows the whole batch's counts, for the divisor of the loss.
    assert {(s.tokens, s.trained_tokens) for s in shares} == {(batch.tokens, batch.trained_tokens)}
