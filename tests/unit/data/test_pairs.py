"""Rows of pairs: whole pairs, chosen before rejected, each token with what the reference thinks of it."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import IGNORED, Batch, batches, stack
from pilgrim.data.pairs import REFERENCE, SHORTEST, PairRows, pair_documents
from pilgrim.data.preferences import Pair
from pilgrim.data.shards import Document, TokenSet, in_memory
from pilgrim.data.sources import read_documents
from pilgrim.text.chat import Message, render_prompt
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

CONTEXT = 64
RUNTIME = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)


def pair(prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair(
        (Message("user", prompt),), (Message("assistant", chosen),), (Message("assistant", rejected),), "test"
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [document.text for document in islice(read_documents(["assets:text/val.jsonl.zst"]), 40)]
    return train_tokenizer(texts, 400)


def test_only_the_reply_is_trained(tokenizer: Tokenizer) -> None:
    earlier = (Message("user", "Hi!"), Message("assistant", "Hello!"), Message("user", "Who are you?"))
    one = Pair(earlier, (Message("assistant", "I am Pip."),), (Message("assistant", "A dog."),), "test")
    documents, too_long = pair_documents([one], tokenizer, 200)
    assert too_long == 0 and len(documents) == 2
    for document, reply in zip(documents, ("I am Pip.<|im_end|>", "A dog.<|im_end|>"), strict=True):
        assert document.trained is not None
        said = [i for i, trained in zip(document.ids, document.trained, strict=True) if trained]
        assert "".join(tokenizer.decode([i]) for i in said) == reply
        prompt = render_prompt(earlier, tokenizer)
        assert document.ids[: len(prompt)] == prompt


def test_pairs_that_fit_no_row_are_counted(tokenizer: Tokenizer) -> None:
    some = [pair("Hi", "a", "b"), pair("Hi", "a" * 300, "b"), pair("Ho", "c", "d")]
    documents, too_long = pair_documents(some, tokenizer, 120)
    assert (len(documents), too_long) == (4, 1)


def test_the_shortest_conversation_is_not_shorter(tokenizer: Tokenizer) -> None:
    """By which it is known how many can stand in a row; "\n" and such are never part of another piece."""
    documents, _ = pair_documents([pair("", "a", "b")], tokenizer, 100)
    assert all(len(document.ids) >= SHORTEST for document in documents)


def numbered(lengths: list[tuple[int, int]]) -> TokenSet:
    """Pairs of documents in which each token has an id of its own; the second half of each is trained."""
    ids = iter(range(1, 60_000))
    documents = [
        Document([next(ids) for _ in range(n)], [i >= n // 2 for i in range(n)], "some", n)
        for both in lengths
        for n in both
    ]
    return in_memory("pairs", documents, 60_000)


def rows(lengths: list[tuple[int, int]]) -> PairRows:
    tokens = numbered(lengths)
    return PairRows(tokens, -tokens.tokens.astype(np.float32), CONTEXT, 0, RUNTIME)


LENGTHS = [(5 + i % 7, 4 + i % 11) for i in range(50)]


def test_rows_hold_whole_pairs() -> None:
    found = rows(LENGTHS)
    starts = found.both.starts
    seen: list[int] = []
    for row, position in found.rows(None):
        if position["epoch"] > 0:
            break
        documents = row.documents_bt[0]
        assert int(documents.max()) % 2 == 1
        for number in range(int(documents.max()) + 1):
            ids = row.inputs_bt[0][documents == number].tolist()
            document = int(np.searchsorted(starts, ids[0] - 1))
            assert document % 2 == number % 2  # the chosen reply first
            assert ids == found.both.tokens[starts[document] : starts[document + 1]].tolist()
            seen.append(document)
            if number % 2:
                assert seen[-2] == document - 1
    assert sorted(seen) == list(range(2 * len(LENGTHS)))


def test_each_place_has_the_likelihood_of_its_target() -> None:
    for row, _ in islice(rows(LENGTHS).rows(None), 5):
        counted = row.targets_bt != IGNORED
        assert counted.any()
        assert torch.equal(row.extra[REFERENCE][counted], -row.targets_bt[counted].float())


def test_from_a_position_the_same_rows_follow() -> None:
    source = rows(LENGTHS)
    straight = list(islice(batches(source, 2, None), 9))
    again = list(islice(batches(rows(LENGTHS), 2, straight[3][1]), 5))
    for (a, at), (b, also) in zip(straight[4:], again, strict=True):
        assert at == also
        assert all(torch.equal(x, y) for x, y in zip(_parts(a), _parts(b), strict=True))


def _parts(batch: Batch) -> tuple[Any, ...]:
    return batch.inputs_bt, batch.targets_bt, batch.documents_bt, batch.extra[REFERENCE]


def test_microbatches_hold_whole_pairs() -> None:
    batch = stack([row for row, _ in islice(rows(LENGTHS).rows(None), 4)])
    for micro in batch.micro(1):
        assert int(micro.documents_bt.max()) % 2 == 1
        assert micro.extra[REFERENCE].shape == micro.inputs_bt.shape


def test_another_length_of_rows_is_refused() -> None:
    source = rows(LENGTHS)
    assert source.at(CONTEXT) is source
    with pytest.raises(ValueError, match="would cut pairs"):
        source.at(CONTEXT // 2)
