"""One training step: forward and backward over microbatches, then one update of the optimizers.

The compiled part is the loss of a microbatch, forward and backward; the optimizers compile theirs.
Gradient accumulation changes nothing but memory: every microbatch's summed loss is divided by the
trained tokens of the *whole* batch, which are counted before anything is computed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from pilgrim.core.compiling import compiled
from pilgrim.core.runtime import Runtime
from pilgrim.core.slices import whole
from pilgrim.data.loader import Batch
from pilgrim.model.attention_choice import untimed
from pilgrim.model.attention_kernels import Backend, prepare
from pilgrim.model.transformer import Transformer
from pilgrim.train.losses import HeadLoss, Losses, next_token_losses, token_losses

Quietly = Callable[[], AbstractContextManager[Any]]
TokenLosses = Callable[[Transformer, Batch, torch.dtype], Losses]
Divisor = Callable[[Batch], int]


def trained_tokens(batch: Batch) -> int:
    """What the summed loss is divided by, unless an objective says otherwise."""
    return batch.trained_tokens


def compiled_token_losses(
    runtime: Runtime, backend: Backend | None = None, head_loss: HeadLoss = next_token_losses
) -> TokenLosses:
    """`token_losses`, compiled if the runtime says so. Training and validation share the compiled code.

    `backend` is the attention that was chosen; without, it is `untimed`. What it needs to know of a batch is
    made before, outside of the compiled part (model/attention_kernels.py), so that this is one graph for
    every batch.
    """
    whole = compiled(token_losses) if runtime.compile else token_losses

    def losses(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
        taken = backend or untimed(runtime, model.config)
        layout = prepare(batch.documents_bt, batch.starts_bd, model.windows, taken)
        return whole(model, batch, dtype, taken, layout, head_loss)

    return losses


def losses_by_block(
    model: Transformer,
    runtime: Runtime,
    backend: Backend | None = None,
    head_loss: HeadLoss = next_token_losses,
) -> TokenLosses:
    """The same for several processes: each block of `model` compiled for itself, and the loss.

    Then backward hands out a block's gradients as soon as it is done with it (train/parallel.py).
    """
    if not runtime.compile:
        return compiled_token_losses(runtime, backend, head_loss)
    torch._dynamo.config.optimize_ddp = (
        False  # its own way of cutting a graph, which flex attention can't bear
    )
    for block in model.model.layers:
        if "forward" not in vars(block):  # else it was compiled before, for another head's loss
            block.forward = compiled(block.forward)
    compiled_head = compiled(head_loss)

    def losses(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
        taken = backend or untimed(runtime, model.config)
        layout = prepare(batch.documents_bt, batch.starts_bd, model.windows, taken)
        return token_losses(model, batch, dtype, taken, layout, compiled_head)

    return losses


@dataclass(frozen=True)
class StepResult:
    """Still on the device, so that nobody waits for it: nats per trained token (or whatever else the
    objective divides by), and the gradient's norm.

    All are the whole batch's, and the same in all processes.
    """

    loss: Tensor
    gradient_norm: Tensor
    sums_k: Tensor | None = None  # fp32 [k]: what the objective wants logged


def accumulate(
    model: Transformer,
    batch: Batch,
    micro_rows: int,
    losses: TokenLosses,
    runtime: Runtime,
    quietly: Quietly = nullcontext,
    divisor: Divisor = trained_tokens,
) -> StepResult:
    """Add the gradient of the batch's mean loss to the parameters' `.grad`.

    Of several processes each has its share of the batch, and what they add is the average of what they have
    computed: so what is divided by is a share, too. `quietly` is a context for all microbatches but the last.
    """
    share = max(1, divisor(batch)) / runtime.processes.count
    total, sums_k = torch.zeros((), device=runtime.device), None
    micros = [micro.filled(micro_rows) for micro in batch.micro(micro_rows)]
    for number, micro in enumerate(micros, start=1):
        with nullcontext() if number == len(micros) else quietly():
            with record_function("pilgrim.forward"):  # a name for a profiler to find
                found = losses(model, micro.to(runtime.device), runtime.dtype)
                loss = found.total / share
            with record_function("pilgrim.backward"):
                loss.backward()
        total += loss.detach()
        if found.sums_k is not None:
            sums_k = found.sums_k if sums_k is None else sums_k + found.sums_k
    # One number, sent in every step: so all processes can judge a step on the device (train/health.py).
    total = runtime.processes.summed(total) / runtime.processes.count
    if sums_k is not None:
        sums_k = runtime.processes.summed(sums_k)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return StepResult(total, whole(norm), sums_k)
