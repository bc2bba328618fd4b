"""The policy gradient: learn from rewards, which no derivative leads to.

A model answers a question G times, and each reply gets a reward. What was better than the group's mean shall
become likelier, what was worse less likely, each in proportion to how much:

    advantage  A = reward - mean of the group           (divided by the group's standard deviation if wished)
    loss         = - sum over tokens of A · log p(token)

The mean of the group is what makes this work without a second network that foretells rewards: GRPO (Shao et
al. 2024, arXiv 2402.03300). Dividing by the deviation, as GRPO does, weighs questions that are nearly always
or nearly never solved more than others; Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) therefore leaves it out,
and so do we unless told. The loss is a sum over all tokens of the batch, divided once by their number, as in
DAPO (Yu et al. 2025, arXiv 2503.14476): a mean of every reply's mean would make the tokens of long replies
count less, and so make wrong replies long.

**Several steps on the same replies.** After the first step the model is not the one any more that has written
them. The ratio r = p(token) now / p(token) when it was drawn corrects for that. A ratio far from 1 corrects
badly, so a token is left alone once its ratio has gone far enough the way its advantage pushes (PPO, Schulman
et al. 2017, arXiv 1707.06347):

    loss = - sum of min(r · A, clip(r, 1 - clip_low, 1 + clip_high) · A)

with more room upwards than downwards (DAPO's "clip higher"): else rare tokens could never become frequent,
and the replies of a group would soon all be alike. At r = 1 the gradient of r · A is that of A · log p, as
above.

The p "when it was drawn" is what the engine has told while it wrote, at the same temperature. So r corrects,
too, for whatever little the engine and the training step differ by in rounding.

**Stay near where you began**, if wished: a reference model's log-probabilities pull with `kl` times an
estimate of the distance, exp(d) - d - 1 with d = log p_reference - log p, which is never negative and on
average the Kullback-Leibler divergence (Schulman 2020, "Approximating KL divergence": k3).

Shapes: b rows, t tokens, n = b · t; k sums.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pilgrim.data.loader import IGNORED, Batch
from pilgrim.train.losses import Losses, linear_logprobs
from pilgrim.train.objective import Objective

EXTRA = ("advantage", "rollout", "reference")  # of each target: Batch.extra
LARGEST_LOG = 20.0  # a log-ratio beyond has long been clipped, and its exponential shall stay finite

# The largest ratio of a step can't be had from sums. So tokens are counted by |log ratio|, in steps of a
# factor of sqrt(2): the largest is known as well as that.
SMALLEST_POWER, POWERS = -24, 60  # from 2^-12 on


def advantages(rewards: Sequence[float | None], divide_by_std: bool) -> list[float]:
    """Of the replies to one question: how much better than their mean each is.

    None is a reply without a reward: it has the advantage 0, and is not counted in the mean. All have 0 where
    the others are equally good: nothing can be learned from such a group.
    """
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2 or max(known) == min(known):
        return [0.0] * len(rewards)
    mean = statistics.fmean(known)
    scale = statistics.pstdev(known) if divide_by_std else 1.0
    return [0.0 if reward is None else (reward - mean) / scale for reward in rewards]


def policy_objective(clip_low: float, clip_high: float, kl: float, temperature: float) -> Objective:
    """What to train for with batches that have `EXTRA`."""

    def head_loss(hidden_btw: Tensor, head_vw: Tensor, batch: Batch, softcap: float | None) -> Losses:
        targets_n = batch.targets_bt.flatten()
        logprobs_n, entropies_n = linear_logprobs(
            hidden_btw.flatten(0, 1), head_vw, targets_n, softcap, temperature
        )
        counts_n = (targets_n != IGNORED).float()
        advantage_n, rollout_n, reference_n = (batch.extra[name].flatten() for name in EXTRA)
        moved_n = (logprobs_n - rollout_n * counts_n).clamp(-LARGEST_LOG, LARGEST_LOG)
        losses_n, clipped_n = clipped_losses(moved_n, advantage_n, clip_low, clip_high)
        apart_n = distance(logprobs_n, reference_n * counts_n)
        total = ((losses_n + kl * apart_n) * counts_n).sum()
        with torch.no_grad():
            columns = (
                counts_n,
                entropies_n,
                clipped_n * counts_n,
                moved_n.abs(),
                distance(rollout_n * counts_n, logprobs_n),
                apart_n,
            )
            sums_k = torch.cat(
                [torch.stack([column.sum() for column in columns]), by_size(moved_n, counts_n)]
            )
        return Losses(total, -logprobs_n.detach().view_as(batch.targets_bt), sums_k)

    return Objective(head_loss, measures=lambda sums: measures(sums, kl > 0), extra=EXTRA)


def clipped_losses(
    moved_n: Tensor, advantage_n: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """The loss of each token, and 1 where it is clipped, which means that it has no gradient.

    `moved_n` is log p now less log p when it was drawn.
    """
    ratio_n = moved_n.exp()
    free_n = ratio_n * advantage_n
    bounded_n = ratio_n.clamp(1 - clip_low, 1 + clip_high) * advantage_n
    return -torch.minimum(free_n, bounded_n), (bounded_n < free_n).float()


def distance(logprobs_n: Tensor, others_n: Tensor) -> Tensor:
    """k3, for each token: its mean over tokens that the first has drawn is KL(first ‖ other).

    exp(d) - d - 1, written so that for small d the 1 doesn't swallow what is left.
    """
    d = (others_n - logprobs_n).clamp(-LARGEST_LOG, LARGEST_LOG)
    return torch.expm1(d) - d


def by_size(moved_n: Tensor, counts_n: Tensor) -> Tensor:
    """How many tokens have an |log ratio| of each size; what is 0 is counted nowhere."""
    power_n = (2 * torch.log2(moved_n.abs().clamp(min=1e-30))).ceil() - SMALLEST_POWER
    place_n = power_n.clamp(0, POWERS - 1).long()
    counted_n = counts_n * (moved_n != 0)
    return torch.zeros(POWERS, device=moved_n.device).index_add(0, place_n, counted_n)


def measures(sums: Sequence[float], reference: bool) -> dict[str, Any]:
    """What stands in the row of a step."""
    tokens, entropy, clipped, drift, moved, apart = sums[:6]
    sizes = [place for place, count in enumerate(sums[6:]) if count]
    largest = 2 ** ((sizes[-1] + SMALLEST_POWER) / 2) if sizes else 0.0
    each = 1 / max(1.0, tokens)
    found = {
        "entropy": entropy * each,  # of what is drawn from, nats a token
        "clipped": clipped * each,
        "drift": drift * each,  # mean |log p now - log p when drawn|
        "drift_kl": moved * each,  # KL(who wrote ‖ who learns), nats a token
        # Or its inverse; its logarithm is rounded up by a factor of up to sqrt(2).
        "largest_ratio": math.exp(min(largest, LARGEST_LOG)),
    }
    return found | ({"kl": apart * each} if reference else {})
