"""How much memory training a network of a given shape takes, estimated before anything is made.

Exact arithmetic where there is any: weights, gradients and optimizer state are counted. What forward keeps
for backward depends on how the network is compiled, and is an estimate with this in it, per token and layer:

- the residual stream before attention and before the MLP, and both once more, normalized: 4 widths
- queries before and after their norm and rotation, what they found, and that laid out for the projection:
  4 times heads · head size; keys and values, twice each: 4 times key heads · head size
- gate, up, and their product: 3 MLP widths

all in the run's number format. The compiled network was measured to keep 40 to 41 bytes per width, token and
layer in bf16, where this says 42 (tests/unit/model/test_memory.py). Without torch.compile, norms keep what
they computed in fp32 besides, and it is half as much again. Attention on a GPU keeps no scores. On a CPU,
compiled, it does (model/attention.py), and so needs more than is said here.

With `recompute` (Transformer.recompute) only each layer's input is kept, and in backward one layer at a time
keeps all of that.

The loss (train/losses.py) makes its scores for a chunk of tokens, and holds the head's gradient once more.

Of several processes (train/parallel.py), each has its own microbatch. With "zero" the optimizers' state is
divided among them; with "fsdp" weights and gradients are, too, and gathered are only two blocks at a time, in
the run's number format, and embedding and head in fp32.
"""

from dataclasses import dataclass

import torch

from pilgrim.core.runtime import Parallel
from pilgrim.model.config import ModelConfig
from pilgrim.model.count import FP32_BYTES, optimizer_bytes, parameters, weight_bytes

UNCOMPILED = 1.5  # measured: what is kept without torch.compile, as a multiple of what is kept with it
LOSS_CHUNK = 1024  # tokens whose scores are held at a time; scores, likelihoods and gradient: 8 bytes each
SCORE_BYTES = 8


@dataclass(frozen=True)
class TrainingBytes:
    """Bytes that training needs at its peak, by kind."""

    weights: int  # fp32, and the matrices once more in the run's number format
    gradients: int
    optimizer: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss

    @property
    def fixed(self) -> int:
        """What doesn't depend on how many rows go through the network at a time."""
        return self.total - self.activations


def training_bytes(
    config: ModelConfig,
    rows: int,
    dtype: torch.dtype,
    compiled: bool = True,
    recompute: bool = False,
    state_bytes: float = FP32_BYTES,
    parallel: Parallel = "alone",
    processes: int = 1,
) -> TrainingBytes:
    """An estimate, for one of `processes`, for microbatches of `rows` rows of the network's full context.

    `recompute`: blocks keep only their input, and one at a time is run again (checkpointed activations).
    `state_bytes`: what a number of the optimizers' state takes (optim/state.py).
    """
    weights, gradients = _divided(config, dtype, processes) if parallel == "fsdp" else _whole(config, dtype)
    sharers = processes if parallel in ("zero", "fsdp") else 1
    head = config.vocab_size * config.width
    return TrainingBytes(
        weights=weights,
        gradients=gradients,
        optimizer=round(optimizer_bytes(config) * state_bytes / FP32_BYTES / sharers),
        activations=rows * config.context * _kept_bytes(config, dtype, compiled, recompute),
        loss=FP32_BYTES * head + LOSS_CHUNK * config.vocab_size * SCORE_BYTES,
    )


def _whole(config: ModelConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Weights and gradients of a process that has all of them."""
    count = parameters(config)
    multiplied = count.matrices + config.vocab_size * config.width
    copies = 0 if dtype == torch.float32 else multiplied * dtype.itemsize
    return weight_bytes(config, torch.float32) + copies, FP32_BYTES * count.total


def _divided(config: ModelConfig, dtype: torch.dtype, processes: int) -> tuple[int, int]:
    """Weights and gradients of one of several that have slices, with what is whole for a time.

    While a block computes, the next one is gathered; and while a block's gradients are added up over the
    processes, in fp32, those of another are made.
    """
    count = parameters(config)
    block, ends = count.matrices // config.depth, count.total - count.matrices
    slices = -(-FP32_BYTES * count.total // processes)
    gathered = dtype.itemsize * 2 * block + FP32_BYTES * ends
    made = dtype.itemsize * block + FP32_BYTES * (block + ends)
    return slices + gathered, slices + made


def rows_that_fit(config: ModelConfig, memory_bytes: float, dtype: torch.dtype, compiled: bool = True) -> int:
    """The most rows of a microbatch for which `memory_bytes` suffice, by the same estimate; 0 if none do."""
    one = training_bytes(config, 1, dtype, compiled)
    return max(0, int((memory_bytes - one.fixed) // one.activations))


def _kept_bytes(config: ModelConfig, dtype: torch.dtype, compiled: bool, recompute: bool) -> int:
    """Per token, all layers: what forward keeps for backward."""
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    layer = 4 * config.width + 4 * queries + 4 * keys + 3 * config.mlp_width
    ends = 3 * config.width  # the last hidden states, normalized, and their gradient
    layers = config.depth * config.width + layer if recompute else config.depth * layer
    kept = (layers + ends) * dtype.itemsize
    return kept if compiled else round(UNCOMPILED * kept)
