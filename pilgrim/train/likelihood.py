"""How likely a network finds each token of a token set.

That is asked of the network that a stage begins with, once, before it changes: what becomes of its opinion is
what preferences are learned by (train/preference.py). And it is asked of the network as it is, to measure on
held-out pairs. It is asked by the very function that is trained with, compiled code and roundings included:
what the two say of the same weights must not differ. Several processes share the work as in validation.

Shapes: b rows, t tokens; n tokens of the set, k of them in a batch.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import IGNORED, Batch
from pilgrim.data.shards import TokenSet
from pilgrim.model.transformer import Transformer
from pilgrim.train.step import TokenLosses
from pilgrim.train.validation import turns


def token_logprobs(
    model: Transformer, tokens: TokenSet, batches: Iterable[Batch], losses: TokenLosses, runtime: Runtime
) -> NDArray[np.float32]:
    """The log-probability of each token given what stands before it in its document, [n]; 0 if not trained.

    `batches` are those of `one_pass` over the set, with each document whole in its row; `losses` gives the
    negative log-probability of each target. All processes call this, and all get the same.
    """
    training = model.training
    model.eval()
    mine = [_of_batch(model, batch, tokens, losses, runtime) for batch in turns(batches, runtime.processes)]
    model.train(training)
    logprobs_n = np.zeros(len(tokens.tokens), np.float32)
    for place_k, logprob_k in runtime.processes.collected(mine):
        logprobs_n[place_k] = logprob_k
    return logprobs_n


def _of_batch(
    model: Transformer, batch: Batch, tokens: TokenSet, losses: TokenLosses, runtime: Runtime
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(places in the set, log-probabilities) of a batch's targets."""
    # Gradients stay on, so that what was compiled for training serves; nothing is propagated back.
    found_bt = losses(model, batch.to(runtime.device), runtime.dtype).each_bt.detach()
    counted = (batch.targets_bt != IGNORED).numpy()
    place_bt = target_places(batch.documents_bt.numpy(), tokens.starts)
    return place_bt[counted], -found_bt.to("cpu", torch.float32).numpy()[counted]


def target_places(documents_bt: NDArray[np.int32], starts_d: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each place of rows that hold whole documents, by number, the place of its target in the set."""
    column_t = np.arange(documents_bt.shape[1])
    begins = np.ones_like(documents_bt, np.bool_)
    begins[:, 1:] = documents_bt[:, 1:] != documents_bt[:, :-1]
    begin_bt = np.maximum.accumulate(np.where(begins, column_t, 0), axis=1)
    places: NDArray[np.int64] = starts_d[documents_bt] + (column_t - begin_bt) + 1
    return places
