"""What is measured on held-out pairs: does the network prefer what people prefer, and how sure is that?

Of each pair the two log-ratios against the reference, and from them the loss, whether the chosen reply has
the higher reward, and by how much (train/preference.py). Before the first step all log-ratios are 0: then
nothing is preferred, and the accuracy is 0. Means come with their standard errors over pairs, s / sqrt(n).

Beside them stands what needs no reference: how many nats a token of the chosen and of the rejected replies
costs. DPO may well raise both, since only their difference matters to it.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pilgrim.data.shards import TokenSet
from pilgrim.train.preference import Preference, Replies, pair_losses, rewards


def replies_of(tokens: TokenSet, logprob_n: NDArray[np.float32], reference_n: NDArray[np.float32]) -> Replies:
    """Log-ratios and lengths, fp64 [pairs, 2], of a set whose documents 2k and 2k + 1 are a pair."""
    assert tokens.trained is not None
    return Replies(
        _by_pair(tokens, logprob_n.astype(np.float64) - reference_n),
        _by_pair(tokens, tokens.trained.astype(np.float64)),
    )


def measured_pairs(
    tokens: TokenSet,
    logprob_n: NDArray[np.float32],
    reference_n: NDArray[np.float32],
    preference: Preference,
) -> dict[str, Any]:
    """Measures of all pairs of a set, each with its standard error, and how many pairs they are."""
    replies = replies_of(tokens, logprob_n, reference_n)
    reward = rewards(replies, preference)
    margin = reward[:, 0] - reward[:, 1]
    nats = -_by_pair(tokens, logprob_n.astype(np.float64)) / replies.tokens
    means = {
        "pair_loss": pair_losses(reward, preference),
        "pair_accuracy": (margin > 0).double(),
        "pair_margin": margin,
        "pair_reward_chosen": reward[:, 0],
        "pair_reward_rejected": reward[:, 1],
    }
    found: dict[str, Any] = {"pairs": len(margin)}
    for name, value in means.items():
        found |= {name: float(value.mean()), f"{name}_error": standard_error(value)}
    return found | {
        "pair_nats_chosen": float(nats[:, 0].mean()),
        "pair_nats_rejected": float(nats[:, 1].mean()),
    }


def standard_error(values: Tensor) -> float | None:
    """Of the mean of independent values; None where there is only one."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None


def _by_pair(tokens: TokenSet, values_n: NDArray[np.float64]) -> Tensor:
    """Sums over documents, fp64 [pairs, 2]."""
    return torch.from_numpy(np.add.reduceat(values_n, tokens.starts[:-1])).view(-1, 2)
