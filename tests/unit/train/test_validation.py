"""Bits per byte: the same as counted by hand, document by document, and however the rows are batched."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import IGNORED, Batch, one_pass
from pilgrim.data.shards import TokenSet
from pilgrim.model.attention import causal_attention
from pilgrim.model.transformer import Transformer
from pilgrim.train.losses import token_losses
from pilgrim.train.validation import ByDocument, Validation, validate

CONTEXT, END = 16, 0
TOKEN_BYTES = [0, 0, *(1 + i % 3 for i in range(29))]  # 0 and 1 are special: they stand for no text

NewModel = Callable[..., Transformer]


@pytest.fixture(scope="module")
def documents(random_documents: Callable[[list[int], int], list[list[int]]]) -> list[list[int]]:
    """Shorter and longer than a row, full rows, and one that is nothing but its beginning."""
    return random_documents([7, 1, 16, 17, 40, 2, 33, 15, 5, 5], 5)


@torch.no_grad()
def by_hand(
    model: Transformer, documents: list[list[int]], masks: list[list[bool]] | None = None
) -> Validation:
    """Every piece of every document alone through the network, and logarithms in double precision."""
    text_nats = all_nats = 0.0
    text_bytes = targets = 0
    for number, document in enumerate(documents):
        mask = masks[number] if masks else [True] * len(document)
        following = [*zip(document[1:], mask[1:], strict=True), (END, masks is None)]
        for begin, end in pairwise([*range(0, len(document), CONTEXT), len(document)]):
            ids = torch.tensor([document[begin:end]])
            scores = model.logits(model(ids, causal_attention))[0].double().log_softmax(dim=-1)
            for place, (target, counts) in enumerate(following[begin:end]):
                if counts:
                    nats = -float(scores[place, target])
                    all_nats, targets = all_nats + nats, targets + 1
                    if TOKEN_BYTES[target]:
                        text_nats, text_bytes = text_nats + nats, text_bytes + TOKEN_BYTES[target]
    return Validation(text_nats / math.log(2) / text_bytes, all_nats / targets, text_bytes, targets)


def agree(found: Validation, expected: Validation) -> None:
    assert (found.bytes, found.targets) == (expected.bytes, expected.targets)
    assert found.bpb == pytest.approx(expected.bpb, rel=1e-6)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 100])
def test_it_is_what_one_counts_by_hand(
    new_model: NewModel,
    token_set: Callable[..., TokenSet],
    documents: list[list[int]],
    runtime: Runtime,
    rows: int,
) -> None:
    model, tokens = new_model(), token_set(documents)
    found = validate(model, one_pass(tokens, CONTEXT, END, rows), TOKEN_BYTES, token_losses, runtime)
    agree(found, by_hand(model, documents))
    assert found.bytes == sum(TOKEN_BYTES[i] for document in documents for i in document)


def test_of_conversations_only_the_trained_tokens_count(
    new_model: NewModel, token_set: Callable[..., TokenSet], documents: list[list[int]], runtime: Runtime
) -> None:
    masks = [[i % 3 == 2 for i in range(len(document))] for document in documents]
    model, tokens = new_model(), token_set(documents, masks)
    found = validate(model, one_pass(tokens, CONTEXT, END, 3), TOKEN_BYTES, token_losses, runtime)
    agree(found, by_hand(model, documents, masks))
    assert found.targets == sum(map(sum, masks))


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_each_document_is_what_one_counts_by_hand(
    new_model: NewModel,
    token_set: Callable[..., TokenSet],
    documents: list[list[int]],
    runtime: Runtime,
    rows: int,
) -> None:
    model, tokens, each = new_model(), token_set(documents), ByDocument(len(documents))
    batches = one_pass(tokens, CONTEXT, END, rows)
    found = validate(model, batches, TOKEN_BYTES, token_losses, runtime, each)
    for number, document in enumerate(documents):
        size = sum(TOKEN_BYTES[i] for i in document)
        assert each.bytes_d[number] == size
        if size:
            alone = by_hand(model, [document])
            assert float(each.nats_d[number]) == pytest.approx(alone.bpb * math.log(2) * size, rel=1e-6)
    assert int(each.bytes_d.sum()) == found.bytes
    assert float(each.nats_d.sum()) == pytest.approx(found.bpb * math.log(2) * found.bytes, rel=1e-12)
    again = validate(model, one_pass(tokens, CONTEXT, END, rows), TOKEN_BYTES, token_losses, runtime)
    assert again == found  # to the bit, whether or not documents are told apart


def test_it_leaves_no_gradient(
    new_model: NewModel, token_set: Callable[..., TokenSet], documents: list[list[int]], runtime: Runtime
) -> None:
    model = new_model()
    validate(model, one_pass(token_set(documents), CONTEXT, END, 2), TOKEN_BYTES, token_losses, runtime)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_to_count_is_no_nan(
    new_model: NewModel, token_set: Callable[..., TokenSet], documents: list[list[int]], runtime: Runtime
) -> None:
    tokens = token_set(documents, [[False] * len(document) for document in documents])
    rows = one_pass(tokens, CONTEXT, END, 4)
    assert validate(new_model(), rows, TOKEN_BYTES, token_losses, runtime) == Validation(0.0, 0.0, 0, 0)


def test_a_batch_is_filled_up_with_padding() -> None:
    batch = Batch(torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, 3))
    assert batch.filled(1) is batch
    full = batch.filled(3)
    assert full.inputs_bt.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert full.targets_bt[1:].eq(IGNORED).all()
    assert full.documents_bt[1:].eq(-1).all()
    assert (full.trained_tokens, full.tokens) == (3, 3)
