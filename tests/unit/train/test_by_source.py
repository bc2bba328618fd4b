"""Losses by source: sums over the right places, the same however the batch is cut."""

import torch

from pilgrim.data.loader import IGNORED, Batch
from pilgrim.train.by_source import by_source, source_sums, told
from pilgrim.train.losses import Losses

SOURCES = torch.tensor([[1, 1, 2, 0], [2, 2, 2, 2]])
EPOCHS = torch.tensor([[0.5, 0.5, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
TARGETS = torch.tensor([[4, IGNORED, 5, IGNORED], [6, 7, IGNORED, IGNORED]])
NATS = torch.tensor([[1.5, 0.0, 2.0, 0.0], [3.0, 0.25, 0.0, 0.0]])
BATCH = Batch(TARGETS.clamp(min=0), TARGETS, SOURCES.int() - 1, extra={"source": SOURCES, "epoch": EPOCHS})


def test_sums_by_hand() -> None:
    found = source_sums(BATCH, NATS, 3).tolist()
    assert found == [1.5, 5.25, 0, 1, 3, 0, 2, 5, 0, 1.0, 11.0, 0]
    assert told(["text", "chat", "math"], found) == {
        "text": {"loss": 1.5, "tokens": 2, "share": 2 / 7, "epoch": 0.5},
        "chat": {"loss": 1.75, "tokens": 5, "share": 5 / 7, "epoch": 2.2},
    }


def test_a_source_of_which_nothing_is_trained_has_no_loss() -> None:
    assert told(["a"], [0.0, 0.0, 3.0, 3.0]) == {"a": {"tokens": 3, "share": 1.0, "epoch": 1.0}}


def test_the_sums_add_up_over_microbatches_and_padding() -> None:
    parts = [source_sums(micro, NATS[i : i + 1], 2) for i, micro in enumerate(BATCH.micro(1))]
    assert torch.equal(torch.stack(parts).sum(0), source_sums(BATCH, NATS, 2))
    padded = BATCH.filled(4)
    nats = torch.cat([NATS, torch.zeros(2, 4)])
    assert torch.equal(source_sums(padded, nats, 2), source_sums(BATCH, NATS, 2))


def test_a_blank_batch_has_no_sources() -> None:
    blank = Batch(BATCH.inputs_bt, BATCH.targets_bt, BATCH.documents_bt)
    assert source_sums(blank, NATS, 2).tolist() == [0.0] * 8
    objective = by_source(["a", "b"])
    assert objective.sums is not None
    assert objective.sums(BATCH, Losses(NATS.sum(), NATS)).tolist() == source_sums(BATCH, NATS, 2).tolist()
