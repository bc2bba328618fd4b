"""The next token's loss, told for each source of a mixture.

A mixture's mean loss hides what happens in its parts: conversations get easier while text is forgotten. So
the row of a step says of each source how many of the step's tokens were its, which share that is, the mean
loss of those that are trained, and how many times all of it has been read:

    "sources": {"text": {"loss": 1.93, "tokens": 812, "share": 0.4, "epoch": 1.0}, …}

A source that no row of a step came from is not in its row. All of that are sums over places of one source,
which add up over microbatches and processes (train/objective.py). What is trained for stays the same.

Shapes: b rows, t tokens; s sources.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pilgrim.data.loader import IGNORED, Batch
from pilgrim.train.losses import Losses, next_token_losses
from pilgrim.train.objective import Objective

SUMS = 4  # of each source: nats, trained tokens, tokens, epochs read x tokens


def by_source(names: Sequence[str]) -> Objective:
    """The objective for batches that say of each place which source it is from (data/mixture.py: `Tagged`).

    `names` are those of the sources 1, 2, …
    """

    def sums(batch: Batch, losses: Losses) -> Tensor:
        return source_sums(batch, losses.each_bt, len(names))

    def measures(found: Sequence[float]) -> dict[str, Any]:
        return {"sources": told(names, found)}

    return Objective(next_token_losses, sums=sums, measures=measures)


def source_sums(batch: Batch, each_bt: Tensor, sources: int) -> Tensor:
    """The sums of each source, flat: fp32 [SUMS x s]. A blank batch, as memory is tried with, has none."""
    if "source" not in batch.extra:
        return each_bt.new_zeros(SUMS * sources)
    source_bt, epoch_bt = batch.extra["source"], batch.extra["epoch"]
    numbers_s = torch.arange(1, sources + 1, device=source_bt.device)
    of_source_sbt = (source_bt[None] == numbers_s[:, None, None]).float()
    trained_bt = (batch.targets_bt != IGNORED).float()
    values = (each_bt, trained_bt, torch.ones_like(each_bt), epoch_bt)
    # Products and sums, no matrix product: a GPU may round the factors of those (TF32).
    return torch.cat([(value_bt * of_source_sbt).sum((1, 2)) for value_bt in values])


def told(names: Sequence[str], found: Sequence[float]) -> dict[str, dict[str, float | int]]:
    """The sums of a step as numbers for people, by source."""
    n = len(names)
    nats, trained, tokens, epochs = (found[i * n : (i + 1) * n] for i in range(SUMS))
    rows: dict[str, dict[str, float | int]] = {}
    for i, name in enumerate(names):
        if not tokens[i]:
            continue
        loss = {"loss": nats[i] / trained[i]} if trained[i] else {}
        share = tokens[i] / sum(tokens)
        rows[name] = {**loss, "tokens": int(tokens[i]), "share": share, "epoch": epochs[i] / tokens[i]}
    return rows
