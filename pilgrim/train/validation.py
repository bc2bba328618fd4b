"""Validation in bits per byte, over every document and every byte of a token set.

    bpb = summed loss of all text tokens in nats / ln 2 / UTF-8 bytes of the text

Bits per byte can be compared between tokenizers: a larger vocabulary has fewer, harder tokens but the
same bytes. The end of a document is predicted too, but it stands for no byte and is not counted, which
is nanochat's convention.

Who wants to know more than the mean gives a `ByDocument`, in which every document's share of the two sums is
added up. From it follow bits per byte by source, and how sure they are (evals/compression.py).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

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


class ByDocument:
    """The sums by document of a token set, of batches in which documents have its numbers (`one_pass`)."""

    def __init__(self, documents: int) -> None:
        self.nats_d = torch.zeros(documents, dtype=torch.float64)  # of text tokens
        self.bytes_d = torch.zeros(documents, dtype=torch.int64)

    def add(self, documents_bt: Tensor, nats_bt: Tensor, bytes_bt: Tensor) -> None:
        """Count the tokens that stand for bytes; on the CPU, where sums are made in a fixed order."""
        text = bytes_bt > 0
        document_n = documents_bt[text].long().cpu()
        self.nats_d.index_add_(0, document_n, nats_bt[text].cpu())
        self.bytes_d.index_add_(0, document_n, bytes_bt[text].cpu())


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
    """
    training = model.training
    model.eval()
    bytes_of = torch.tensor(token_bytes, device=runtime.device)
    text_nats = all_nats = 0.0
    text_bytes = targets = full = 0
    for batch in rows:
        full = max(full, batch.inputs_bt.shape[0])
        batch = filled(batch, full).to(runtime.device)
        nats = losses(model, batch, runtime.dtype).each_bt.double()
        counted = batch.targets_bt != IGNORED
        sizes = bytes_of[batch.targets_bt.clamp(min=0)] * counted
        text_nats += float(nats[sizes > 0].sum())
        all_nats += float(nats[counted].sum())
        text_bytes += int(sizes.sum())
        targets += int(counted.sum())
        if each is not None:
            each.add(batch.documents_bt, nats, sizes)
    model.train(training)
    return Validation(
        text_nats / math.log(2) / max(1, text_bytes), all_nats / max(1, targets), text_bytes, targets
    )


def filled(batch: Batch, rows: int) -> Batch:
    """The batch with rows of padding added up to `rows`, so that compiled code sees one shape only."""
    missing = rows - batch.inputs_bt.shape[0]
    if missing == 0:
        return batch

    def more(x: torch.Tensor, value: int) -> torch.Tensor:
        return torch.cat([x, x.new_full((missing, x.shape[1]), value)])

    return Batch(more(batch.inputs_bt, 0), more(batch.targets_bt, IGNORED), more(batch.documents_bt, -1))
