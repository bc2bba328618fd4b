"""What a network of a given shape costs: parameters, floating-point operations, bytes.

Everything is exact arithmetic on the shape; nothing is measured and no network is made. Only matrix
products are counted as operations, a multiplication and its addition as two, which is what "FLOPs"
means in papers and in torch's own counter; norms, softmax and rotations are a percent or so beside
them. A matrix with n entries costs 2n operations a token forward. Backward costs twice as much: one
product for the gradient of the input, one for that of the weights.

Attention's share depends on how many keys a query meets, and there are two honest answers:

- *needed*: a token looks at itself and what came before it in its document, (n + 1) / 2 tokens on
  average over a document of n. This is the useful work: divide it by the time for a share of the peak.
  A layer with a sliding window needs min(n, window) of them at most.
- *conventional*: what published MFU divides by. Every query meets every key of the row (Chowdhery et al.
  2022, appendix B), or as many as its layer's window has (nanochat), and backward costs twice forward.

What a machine really multiplies depends on the attention backend. A kernel with a mask multiplies every query
with every key and throws the forbidden scores away; fused, it computes them a second time in backward, five
products instead of four (Dao et al. 2022).
"""

from dataclasses import dataclass

import torch

from pilgrim.model.config import ModelConfig

FP32_BYTES = 4


@dataclass(frozen=True)
class Parameters:
    """Numbers to learn, by kind. A table that is both embedding and head is counted once, as embedding."""

    embedding: int
    head: int
    attention: int
    mlp: int
    norms: int

    @property
    def matrices(self) -> int:
        """What Muon updates, and what scaling rules call the size: the maps inside the layers."""
        return self.attention + self.mlp

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.head + self.attention + self.mlp + self.norms


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per token: forward alone, and forward with backward."""

    forward: int
    training: int


def parameters(config: ModelConfig) -> Parameters:
    """The number of parameters of each kind."""
    table = config.vocab_size * config.width
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    return Parameters(
        embedding=table,
        head=0 if config.tied else table,
        attention=config.depth * config.width * (2 * queries + 2 * keys),  # q and o; k and v
        mlp=config.depth * config.width * 3 * config.mlp_width,
        norms=config.depth * (2 * config.width + 2 * config.head_size) + config.width,
    )


def flops_needed(config: ModelConfig, document: int, adapters: int = 0) -> Flops:
    """Operations per token that training on documents of `document` tokens can't do without.

    `adapters`: how many numbers the adapters have, if only they are trained (lora.py). Then no other matrix
    needs the product that makes its gradient. (Nor does the first layer need that of its input. It is not
    taken off: one would have to look which matrices are adapted.)
    """
    pairs = sum(_pairs(document, window) for window in config.windows)
    scores = _scores_flops(config, pairs) // document
    matrices = _matrix_flops(config)
    if adapters:
        beside = 2 * adapters
        return Flops(matrices + beside + scores, 2 * matrices + 3 * (beside + scores))
    return Flops(matrices + scores, 3 * (matrices + scores))


def flops_conventional(config: ModelConfig, row: int) -> Flops:
    """Operations per token as papers count them for rows of `row` tokens: the divisor of published MFU."""
    scores = _scores_flops(config, sum(min(row, window or row) for window in config.windows))
    matrices = _matrix_flops(config)
    return Flops(matrices + scores, 3 * (matrices + scores))


def _pairs(document: int, window: int | None) -> int:
    """Pairs of a query and a key that a layer computes for a document: query i meets min(i, window) keys."""
    rising = min(document, window or document)
    return rising * (rising + 1) // 2 + (document - rising) * rising


def _matrix_flops(config: ModelConfig) -> int:
    """Forward, per token. The head is multiplied whether it is a table of its own or the embedding."""
    return 2 * (parameters(config).matrices + config.vocab_size * config.width)


def _scores_flops(config: ModelConfig, keys: int) -> int:
    """Forward, for `keys` meetings of a query and a key: the score, then its share of the mixed values.

    Grouped queries save memory, not operations: every query head meets the keys of its group.
    """
    return 2 * (2 * config.heads * config.head_size * keys)


def weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of all weights in `dtype`. Training keeps them in fp32."""
    return parameters(config).total * dtype.itemsize


def optimizer_bytes(config: ModelConfig) -> int:
    """Bytes of the optimizers' state, which is fp32: Muon for the layers' matrices, AdamW for the rest.

    Muon keeps a momentum for every entry and a second moment for every row; AdamW keeps two numbers
    for every entry; both a step count for every tensor.
    """
    count = parameters(config)
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    # The rows of q, k and v, of o and down, and of gate and up.
    rows = config.depth * (queries + 2 * keys + 2 * config.width + 2 * config.mlp_width)
    # Four norms and seven matrices a layer, the last norm, and one or two tables.
    tensors = (4 + 7) * config.depth + 1 + (1 if config.tied else 2)
    muon = count.matrices + rows
    adamw = 2 * (count.embedding + count.head + count.norms) + tensors
    return FP32_BYTES * (muon + adamw)


def kv_cache_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that generation keeps for each token: a key and a value in every layer, windows or not."""
    return 2 * config.depth * config.kv_heads * config.head_size * dtype.itemsize
