"""Validation in bits per byte, over every document and every byte of a token set.

    bpb = summed loss of all text tokens in nats / ln 2 / UTF-8 bytes of the text

Bits per byte can be compared between tokenizers: a larger vocabulary has fewer, harder tokens but the
same bytes. The end of a document is predicted too, but it stands for no byte and is not counted, which
is nanochat's convention.

Who wants to know more than the mean gives a `ByDocument`, in which every document's share of the two sums is
added up. From it follow bits per byte by source, and how sure they are (evals/compression.py).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from pilgrim.core.processes import Processes
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import IGNORED, Batch
from pilgrim.model.transformer import Transformer
from pilgrim.train.step import TokenLosses


@dataclass(frozen=True)
class Validation:
    """What a pass over held-out rows found."""

    bpb: float  # bits per UTF-8 byte of the counted text tokens
    loss: float  # nats per target, ends of documents and turns included
    bytes: int
    targets: int


class OfDocuments(NamedTuple):
    """What a batch adds to the sums of the documents in it."""

    document_k: Tensor  # int64, each once
    nats_k: Tensor  # fp64, of text tokens
    bytes_k: Tensor  # int64


class Sums(NamedTuple):
    """Of one batch."""

    text_nats: float
    all_nats: float  # of all targets
    bytes: int
    targets: int
    documents: OfDocuments | None


class ByDocument:
    """The sums by document of a token set, of batches in which documents have its numbers (`one_pass`)."""

    def __init__(self, documents: int) -> None:
        self.nats_d = torch.zeros(documents, dtype=torch.float64)  # of text tokens
        self.bytes_d = torch.zeros(documents, dtype=torch.int64)

    def add(self, part: OfDocuments) -> None:
        """Count what a batch adds."""
        self.nats_d.index_add_(0, part.document_k, part.nats_k)
        self.bytes_d.index_add_(0, part.document_k, part.bytes_k)


def of_documents(documents_bt: Tensor, nats_bt: Tensor, bytes_bt: Tensor) -> OfDocuments:
    """The sums over tokens that stand for bytes; on the CPU, where sums are made in a fixed order."""
    text = bytes_bt > 0
    document_k, place_n = documents_bt[text].long().cpu().unique(return_inverse=True)
    nats_k = torch.zeros(len(document_k), dtype=torch.float64).index_add_(0, place_n, nats_bt[text].cpu())
    bytes_k = torch.zeros(len(document_k), dtype=torch.int64).index_add_(0, place_n, bytes_bt[text].cpu())
    return OfDocuments(document_k, nats_k, bytes_k)


def validate(
    model: Transformer,
    rows: Iterable[Batch],
    token_bytes: list[int],
    losses: TokenLosses,
    runtime: Runtime,
    each: ByDocument | None = None,
) -> Validation:
    """Score batches of equal shape; the last may have fewer rows and is filled up with padding.

    What every document adds is added to `each` too, if it is given.
    Gradients stay on while the compiled function runs, so that the one that was compiled for training
    serves here too; nothing is propagated back. What trains in fp8 is evaluated in the runtime's dtype.

    Several processes score the batches in turn, each as many as the others, and add the batches' sums in the
    batches' order. So the result is the same to the bit, however many they are.
    """
    training = model.training
    model.eval()
    bytes_of = torch.tensor(token_bytes, device=runtime.device)
    mine = [
        _sums(model, batch, bytes_of, losses, runtime, each is not None)
        for batch in turns(rows, runtime.processes)
    ]
    model.train(training)
    text_nats = all_nats = 0.0
    text_bytes = targets = 0
    for sums in runtime.processes.collected(mine):
        text_nats, all_nats = text_nats + sums.text_nats, all_nats + sums.all_nats
        text_bytes, targets = text_bytes + sums.bytes, targets + sums.targets
        if each is not None and sums.documents is not None:
            each.add(sums.documents)
    bpb = text_nats / math.log(2) / max(1, text_bytes)
    return Validation(bpb, all_nats / max(1, targets), text_bytes, targets)


def turns(batches: Iterable[Batch], processes: Processes) -> Iterator[Batch]:
    """This process's batches, all of the first one's shape; nothing but padding where its turn is empty."""
    rows = 0
    for turn in _groups(batches, processes.count):
        rows = rows or turn[0].inputs_bt.shape[0]
        some = turn[processes.rank] if processes.rank < len(turn) else turn[0].nothing()
        yield some.filled(rows)


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    stream = iter(batches)
    while group := list(islice(stream, size)):
        yield group


def _sums(
    model: Transformer,
    batch: Batch,
    bytes_of: Tensor,
    losses: TokenLosses,
    runtime: Runtime,
    by_document: bool,
) -> Sums:
    batch = batch.to(runtime.device)
    nats = losses(model, batch, runtime.dtype).each_bt.double()
    counted = batch.targets_bt != IGNORED
    sizes = bytes_of[batch.targets_bt.clamp(min=0)] * counted
    return Sums(
        float(nats[sizes > 0].sum()),
        float(nats[counted].sum()),
        int(sizes.sum()),
        int(counted.sum()),
        of_documents(batch.documents_bt, nats, sizes) if by_document else None,
    )
