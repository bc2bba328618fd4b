"""Validation in bits per byte, over every document and every byte of a token set.

    bpb = summed loss of all text tokens in nats / ln 2 / UTF-8 bytes of the text

Bits per byte can be compared between tokenizers: a larger vocabulary has fewer, harder tokens but the
same bytes. The end of a document is predicted too, but it stands for no byte and is not counted, which
is nanochat's convention.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

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


# Of one batch: nats of text tokens, nats of all targets, bytes of text, targets.
Sums = tuple[float, float, float, float]


def validate(
    model: Transformer, rows: Iterable[Batch], token_bytes: list[int], losses: TokenLosses, runtime: Runtime
) -> Validation:
    """Score batches of equal shape; the last may have fewer rows and is filled up with padding.

    Gradients stay on while the compiled function runs, so that the one that was compiled for training
    serves here too; nothing is propagated back. What trains in fp8 is evaluated in the runtime's dtype.

    Several processes score the batches in turn, each as many as the others, and add the batches' sums in the
    batches' order. So the result is the same to the bit, however many they are.
    """
    training = model.training
    model.eval()
    bytes_of = torch.tensor(token_bytes, device=runtime.device)
    mine = [_sums(model, batch, bytes_of, losses, runtime) for batch in _turns(rows, runtime.processes)]
    model.train(training)
    text_nats = all_nats = text_bytes = targets = 0.0
    for sums in runtime.processes.collected(mine):
        text_nats, all_nats = text_nats + sums[0], all_nats + sums[1]
        text_bytes, targets = text_bytes + sums[2], targets + sums[3]
    bpb = text_nats / math.log(2) / max(1, text_bytes)
    return Validation(bpb, all_nats / max(1, targets), int(text_bytes), int(targets))


def _turns(batches: Iterable[Batch], processes: Processes) -> Iterator[Batch]:
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


def _sums(model: Transformer, batch: Batch, bytes_of: Tensor, losses: TokenLosses, runtime: Runtime) -> Sums:
    batch = batch.to(runtime.device)
    nats = losses(model, batch, runtime.dtype).each_bt.double()
    counted = batch.targets_bt != IGNORED
    sizes = bytes_of[batch.targets_bt.clamp(min=0)] * counted
    return float(nats[sizes > 0].sum()), float(nats[counted].sum()), float(sizes.sum()), float(counted.sum())
