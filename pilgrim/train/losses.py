"""Losses as a sum and a count.

A batch's loss is the sum over its trained tokens divided *once* by their global number. A mean of
microbatch means would weigh tokens in sparse microbatches more; here any split of a batch into
microbatches (or over processes) gives the same gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.data.loader import IGNORED, Batch
from pilgrim.model.attention import packed_attention
from pilgrim.model.transformer import Transformer


def token_losses(model: Transformer, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Negative log-likelihood in nats of every target, fp32 [b, t]; 0 where no loss counts."""
    attend = packed_attention(batch.documents_bt, dtype)
    hidden = model(batch.inputs_bt, attend, dtype=dtype)
    logits = model.logits(hidden).float()
    losses = F.cross_entropy(
        logits.flatten(0, 1), batch.targets_bt.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(batch.targets_bt)


def loss_sum(model: Transformer, batch: Batch, dtype: torch.dtype) -> Tensor:
    """The batch's summed loss in nats, an fp32 scalar; divide it by `batch.trained_tokens`, globally."""
    return token_losses(model, batch, dtype).sum()
