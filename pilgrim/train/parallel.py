"""Several processes, one step: each computes a share of the batch, and all end with the same weights.

    ddp     Every process has all weights, gradients and optimizer state, and learns from its share of the
            rows. Gradients are averaged while backward still goes on: those of the last blocks, which are
            done first, travel while the first blocks are computed (Li et al. 2020, arXiv 2006.15704).
    zero    The same, but each process keeps the optimizers' state of some parameters only, updates those, and
            hands them to the others (optim/groups.py; Rajbhandari et al. 2020, arXiv 1910.02054, stage 1).
    fsdp    Each process keeps a slice of every weight, gradient and state. A block's weights are gathered
            when the block is computed, in the run's number format, and forgotten after; its gradients are
            added up, in fp32, and sliced at once (the same paper, stage 3).

All of that is torch.distributed's: DistributedDataParallel, ZeroRedundancyOptimizer, fully_shard. They wrap a
module whose forward pass is "microbatch -> summed loss" (`SummedLoss`), because they must see where a
pass begins and ends, and the loss uses the head's weights.

They *average* over processes, where we want one division by the trained tokens of the whole batch. So a loss
is divided by those tokens / the number of processes (train/step.py).

To overlap, backward must come in pieces. Compiled whole, as for one process, it is one piece which hands out
all gradients at its end. So with several processes each block is compiled for itself.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from pilgrim.core.runtime import Runtime
from pilgrim.core.slices import whole
from pilgrim.data.loader import Batch
from pilgrim.model.attention_kernels import Backend
from pilgrim.model.transformer import Transformer
from pilgrim.train.losses import HeadLoss, Losses, next_token_losses
from pilgrim.train.step import Quietly, TokenLosses, compiled_token_losses, losses_by_block


@dataclass(frozen=True)
class Parallel:
    """A network's loss, as the processes of a run compute it together."""

    losses: TokenLosses  # to train on: its backward gives every process the average of all gradients
    measured: TokenLosses  # to look at: nothing is propagated back
    unlearned: TokenLosses  # `losses`, where nothing is propagated back either
    # Within, backward keeps the gradients to itself, and adds them up for the first that is without.
    quietly: Quietly = nullcontext


class SummedLoss(nn.Module):
    """Microbatch -> its losses: what is wrapped."""

    def __init__(self, model: Transformer, losses: TokenLosses, measured: TokenLosses) -> None:
        super().__init__()
        self.model, self.losses, self.measured = model, losses, measured

    def forward(self, batch: Batch, dtype: torch.dtype, measure: bool = False) -> Losses:
        return (self.measured if measure else self.losses)(self.model, batch, dtype)


def losses_of(
    model: Transformer, runtime: Runtime, backend: Backend | None, head_loss: HeadLoss = next_token_losses
) -> tuple[TokenLosses, TokenLosses]:
    """What `in_parallel` wants, compiled whole for one process, by blocks for several: to train on, and to
    measure by. Held-out text is measured by its cross-entropy, whatever is trained for.
    """

    def of(head_loss: HeadLoss) -> TokenLosses:
        if runtime.parallel == "alone":
            return compiled_token_losses(runtime, backend, head_loss)
        return losses_by_block(model, runtime, backend, head_loss)

    losses = of(head_loss)
    return losses, losses if head_loss is next_token_losses else of(next_token_losses)


def in_parallel(
    model: Transformer, losses: TokenLosses, runtime: Runtime, measured: TokenLosses | None = None
) -> Parallel:
    """The loss of `model`, in the way that the runtime says; called before optimizers are made.

    `losses` to train on, `measured` to look at held-out text with, where that is another one.

    The weights must be in place, the same in all processes. For fsdp they may still be on the CPU: slices of
    them become the model's parameters, on the runtime's device.
    """
    if runtime.parallel == "alone":
        return Parallel(losses, measured or losses, losses)
    summed = SummedLoss(model, losses, measured or losses)
    if runtime.parallel == "fsdp":
        return _sharded(summed, runtime)
    # Tables that no step changes. Else they were sent in each; the argument for that has changed its name.
    buffers = [name for name, _ in summed.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(summed, buffers)
    module = DistributedDataParallel(summed, gradient_as_bucket_view=True)
    return Parallel(_through(module), measured or losses, losses, module.no_sync)


def _sharded(module: SummedLoss, runtime: Runtime) -> Parallel:
    """Blocks are gathered one at a time; embedding, last norm and head stay from forward to backward."""
    mesh = init_device_mesh(runtime.device.type, (runtime.processes.count,))
    whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)  # the network casts
    # Blocks cast their weights before anything else, so they may come cast. Not so the embedding, whose
    # gradient adds up over all places of a word, in the format of its weights.
    cast = whole if runtime.dtype == torch.float32 else replace(whole, param_dtype=runtime.dtype)
    for block in module.model.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=cast)
    root = fully_shard(module, mesh=mesh, mp_policy=whole)
    module.model.to(runtime.device)  # buffers

    def without_backward(measure: bool) -> TokenLosses:
        def look(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
            found: Losses = module(batch, dtype, measure=measure)
            root.reshard()  # no backward pass will do it
            return found._replace(total=found.total.detach())

        return look

    return Parallel(_through(module), without_backward(True), without_backward(False))


def _through(module: nn.Module) -> TokenLosses:
    """Calls the wrapped module, which knows its model."""

    def losses(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
        found: Losses = module(batch, dtype)
        return found

    return losses


def plain_copy(model: Transformer, runtime: Runtime) -> Transformer:
    """The network for other purposes than training: uncompiled, unwrapped, with all its weights.

    One process trains it as it is, so there it is the very model. All processes must call this.
    """
    if runtime.parallel == "alone":
        return model
    copy = Transformer(model.config).to(device=runtime.device, dtype=runtime.dtype)
    copy.load_weights({name: whole(weight) for name, weight in model.weights().items()})
    return copy.eval()
