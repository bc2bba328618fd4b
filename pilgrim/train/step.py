"""One training step: forward and backward over microbatches, then one update of the optimizers.

The compiled part is the loss of a microbatch, forward and backward; the optimizers compile theirs.
Gradient accumulation changes nothing but memory: every microbatch's summed loss is divided by the
trained tokens of the *whole* batch, which are counted before anything is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from pilgrim.core.compiling import compiled
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch
from pilgrim.model.attention_kernels import Backend, prepare
from pilgrim.model.transformer import Transformer
from pilgrim.train.losses import Losses, token_losses

TokenLosses = Callable[[Transformer, Batch, torch.dtype], Losses]


def compiled_token_losses(runtime: Runtime, backend: Backend | None = None) -> TokenLosses:
    """`token_losses`, compiled if the runtime says so. Training and validation share the compiled code.

    `backend` is the attention that was chosen. What it needs to know of a batch is made before, outside of
    the compiled part (model/attention_kernels.py), so that this is one graph for every batch.
    """
    whole = compiled(token_losses) if runtime.compile else token_losses

    def losses(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
        layout = prepare(batch.documents_bt, batch.starts_bd, model.windows, backend)
        return whole(model, batch, dtype, backend, layout)

    return losses


@dataclass(frozen=True)
class StepResult:
    """Still on the device, so that nobody waits for it: nats per trained token, and the gradient's norm."""

    loss: Tensor
    gradient_norm: Tensor


def accumulate(
    model: Transformer, batch: Batch, micro_rows: int, losses: TokenLosses, runtime: Runtime
) -> StepResult:
    """Add the gradient of the batch's mean loss to the parameters' `.grad`."""
    count = max(1, batch.trained_tokens)
    total = torch.zeros((), device=runtime.device)
    for micro in batch.micro(micro_rows):
        with record_function("pilgrim.forward"):  # a name for a profiler to find
            loss = losses(model, micro.to(runtime.device), runtime.dtype).total / count
        with record_function("pilgrim.backward"):
            loss.backward()
        total += loss.detach()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return StepResult(total, torch.nn.utils.get_total_norm(gradients))
