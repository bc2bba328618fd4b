"""What a stage trains for, as functions that go together.

    head_loss   the last hidden states, the head and a batch -> a summed loss, and perhaps sums to be logged
    divisor     a whole batch -> what the sum is divided by: trained tokens, pairs, ...
    sums        a batch and its losses -> sums to be logged, where they can be had from those
    measures    the sums of a step -> what stands in its row of metrics.jsonl
    extra       names of what head_loss wants to know of each place besides, [b, t] in `Batch.extra`

Sums, because they can be added up: over the microbatches of a step, and over processes. So whatever the batch
is cut into, the row of a step is the same. What is to be a mean is logged by a sum and a count, of which
`measures` makes a quotient. Sums stay on the device until the loop looks at its losses.

The ordinary objective is the next token's cross-entropy. A batch can carry what another one needs to know of
each place in `Batch.extra`: which source a token is of, how likely a reference model found it, its advantage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pilgrim.data.loader import Batch
from pilgrim.model.transformer import Transformer
from pilgrim.train.losses import HeadLoss, Losses, next_token_losses
from pilgrim.train.step import Divisor, TokenLosses, trained_tokens


def nothing_more(sums: Sequence[float]) -> dict[str, Any]:
    """For who logs no sums."""
    return {}


@dataclass(frozen=True)
class Objective:
    """What is trained for; see above."""

    head_loss: HeadLoss
    divisor: Divisor = trained_tokens
    sums: Callable[[Batch, Losses], Tensor] | None = None  # fp32 [k]; nothing is propagated back through it
    measures: Callable[[Sequence[float]], dict[str, Any]] = nothing_more
    extra: tuple[str, ...] = ()  # what its batches carry: numbers [b, t] by these names


NEXT_TOKEN = Objective(next_token_losses)


def with_sums(losses: TokenLosses, objective: Objective) -> TokenLosses:
    """The losses, with the sums that `objective` wants. They are made outside of what is compiled."""
    if objective.sums is None:
        return losses
    sums = objective.sums

    def more(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
        found = losses(model, batch, dtype)
        with torch.no_grad():
            return found._replace(sums_k=sums(batch, found))

    return more
