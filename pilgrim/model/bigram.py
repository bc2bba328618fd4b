"""Beginning as a bigram model: what counting knows, before the first step.

A network that begins at random spends its first hundred steps on what a table of counts says at once:
which token follows which. Embedding and head can hold that table from the start. Blocks begin as the
identity, so at step 0 the scores of what follows token c are the product of two vectors,

    score(w | c) = e_c · h_w        and should be        log P(w | c),

with P from counted pairs, smoothed. The matrix of pointwise mutual informations log P(w|c) - log P(w)
is factored into `width - 2` dimensions by a singular value decomposition that weighs rows and columns by
their frequency (as Levy & Goldberg 2014 showed that word2vec does in secret). Two dimensions remain: a
constant one, through which the head adds log P(w), and one that fills every row up to the length that
RMSNorm gives it anyway, so that the norm changes nothing. A random rotation then spreads all of it over
the coordinates, because a network should find no coordinate special.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.model.transformer import Transformer

DISCOUNT = 0.75  # taken off every count for pairs that were not seen (Ney, Essen & Kneser 1994)
CONSTANT_SHARE = 0.5  # of a row's length: room for the constant coordinate
LARGEST_VOCABULARY = 16_384  # the table of pairs is dense: 1 GiB in fp32


@torch.no_grad()
def begin_as_bigram(model: Transformer, counts_vv: Tensor, generator: torch.Generator) -> None:
    """Set embedding and head so that the model predicts as the counts do, up to the rank it has.

    `counts_vv[c, w]` says how often w followed c. Raises ValueError for a tied model, which has one table
    for both sides, or counts of another vocabulary.
    """
    config = model.config
    if config.tied or counts_vv.shape != (config.vocab_size, config.vocab_size):
        raise ValueError(
            f"a bigram beginning needs an untied model and counts for {config.vocab_size} tokens"
        )
    log_unigram_v, information_vv, frequency_v = _statistics(counts_vv.float().cpu())
    row_weight, column_weight = frequency_v.sqrt()[:, None], log_unigram_v.exp().sqrt()[None]
    left, sizes, right = _factors(row_weight * information_vv * column_weight, config.width - 2, generator)
    contexts = left * sizes.sqrt() / row_weight
    words = right * sizes.sqrt() / column_weight.T

    length = config.width**0.5  # of a row behind RMSNorm
    constant = CONSTANT_SHARE * length
    room = (length**2 - constant**2) ** 0.5
    scale = room / contexts.norm(dim=1).quantile(0.999)
    contexts, words = contexts * scale, words / scale
    contexts = contexts * (room / contexts.norm(dim=1, keepdim=True)).clamp(max=1)
    missing = config.width - 2 - contexts.shape[1]  # where the vocabulary is smaller than the width
    contexts, words = F.pad(contexts, (0, missing)), F.pad(words, (0, missing))
    fill = (room**2 - contexts.square().sum(1)).clamp(min=0).sqrt()

    ones = torch.ones_like(fill)
    embedding = torch.cat([contexts, (constant * ones)[:, None], fill[:, None]], dim=1)
    # The mean of log P(w) shifts all scores alike, which a softmax does not see: leave it out.
    unigram = (log_unigram_v - log_unigram_v.mean()) / constant
    head = torch.cat([words, unigram[:, None], torch.zeros_like(fill)[:, None]], dim=1)
    rotation = torch.linalg.qr(torch.randn(config.width, config.width, generator=generator)).Q
    model.model.embed_tokens.weight.copy_(embedding @ rotation)
    model.lm_head.weight.copy_(head @ rotation)


def _statistics(counts_vv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log P(w) [v]; log P(w|c) - log P(w) [v, v], by absolute discounting; how frequent c is [v]."""
    vocabulary, total = len(counts_vv), counts_vv.sum()
    unigram = (counts_vv.sum(0) + 1) / (total + vocabulary)
    seen = counts_vv.sum(1, keepdim=True)
    kept = (counts_vv - DISCOUNT).clamp(min=0)
    given_away = DISCOUNT * (counts_vv > 0).sum(1, keepdim=True)
    conditional = torch.where(seen > 0, (kept + given_away * unigram) / seen.clamp(min=1), unigram)
    frequency = (seen[:, 0] + 1) / (total + vocabulary)
    return unigram.log(), conditional.log() - unigram.log(), frequency


def _factors(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V of the `rank` largest singular values, by randomized subspace iteration (Halko et al. 2011)."""
    basis = torch.randn(matrix.shape[1], rank + 16, generator=generator)
    for _ in range(4):
        basis = torch.linalg.qr(matrix @ basis).Q
        basis = torch.linalg.qr(matrix.T @ basis).Q
    u, s, vt = torch.linalg.svd(matrix @ basis, full_matrices=False)
    return u[:, :rank], s[:rank], (basis @ vt.T)[:, :rank]
