"""Learning from preferences: raise the better reply's probability against the worse one's.

A reply's *log-ratio* tells how much more likely the network finds it than the one it began as, the reference:

    ratio(reply) = log p(reply | prompt) - log p_reference(reply | prompt)       summed over its tokens

Times beta, that is the reward which the network gives the reply without ever having been told of rewards: if
one trains a reward model and then a network that maximizes it, while KL(network | reference) costs beta a nat,
the best network is the one whose log-ratios say so. That is DPO's insight (Rafailov et al. 2023, arXiv
2305.18290). So preferences are learned by a loss on log-ratios, of chosen and rejected, w and l:

    dpo        -log sigmoid(beta · (ratio(w) - ratio(l)))
               Only the difference counts: it is content if both fall, as long as the rejected falls faster.
    dpo_norm   the same of mean log-ratios, ratio / tokens, so that long replies don't weigh more (Tülu 3,
               Lambert et al. 2024, arXiv 2411.15124, section 5.1). Means are small, so beta is larger: 5.
    apo_zero   (1 - sigmoid(beta · ratio(w))) + sigmoid(beta · ratio(l))
               The chosen is to rise and the rejected to fall, each by itself (D'Oosterlinck et al. 2024, arXiv
               2408.06266, equation 7). For data that is better than what the network says.

Two additions. `label_smoothing` e takes a share e of the pairs to be labelled wrongly: dpo's loss becomes
(1 - e) · loss(w, l) + e · loss(l, w) (Mitchell 2023, "A note on DPO with noisy preferences"). `sft_weight` adds
that many times the mean loss of the chosen reply's tokens, which keeps its probability from falling (RPO, Pang
et al. 2024, arXiv 2404.19733).

All is summed over pairs, and divided once by the number of pairs in the whole batch. Rows hold whole pairs
(data/pairs.py): documents 2k and 2k + 1 of a row are chosen and rejected. What one wants to see of each step
comes as sums too (`SUMS`), so that nobody waits for it.

Shapes: b rows, t tokens; d = 2 p documents in a row, p pairs; k numbers to look at.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pilgrim.data.loader import IGNORED, Batch
from pilgrim.train.losses import HeadLoss, Losses, linear_logprobs
from pilgrim.train.objective import Objective
from pilgrim.train.settings import TrainSettings

BETA = {"dpo": 0.1, "dpo_norm": 5.0, "apo_zero": 0.1}  # as the papers have it, where a recipe names none

# What is added up over a step's pairs, in this order.
SUMS = (
    "pairs",
    "preference",  # the loss without the part of sft_weight
    "reward_chosen",
    "reward_rejected",
    "right",  # pairs of which the chosen has the higher reward
    "tokens_chosen",
    "tokens_rejected",
    "kl_chosen",
    "kl_rejected",
    "nats_chosen",  # of the mean token of a chosen reply
)


class PreferenceSettings(TrainSettings):
    """`[dpo]`: learn which of two replies is the better one."""

    pairs: tuple[str, ...] = Field(
        ("assets:preferences/train.jsonl.zst",), min_length=1, description="files of training pairs"
    )
    pairs_val: tuple[str, ...] = Field(
        ("assets:preferences/heldout.jsonl.zst",), description="files of held-out pairs"
    )
    val_share: float = Field(
        0.0, ge=0, lt=1, description="share of prompts held out by hash, where pairs_val is empty"
    )
    loss: Literal["dpo", "dpo_norm", "apo_zero"] = Field(
        "dpo", description="what is made small (train/preference.py)"
    )
    beta: float | None = Field(
        None, gt=0, description="how near to stay to the reference; left out: 0.1, and 5 for dpo_norm"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of pairs taken to be labelled wrongly; for dpo and dpo_norm"
    )
    sft_weight: float = Field(
        0.0, ge=0, description="times the loss of the chosen reply's tokens, added (RPO's alpha)"
    )

    def contradiction(self, stage: str) -> str | None:
        """What can't be true together, in one sentence that names the stage; None if nothing is wrong."""
        if bool(self.pairs_val) == bool(self.val_share):
            return (
                f"{stage}.pairs_val = {list(self.pairs_val)} and {stage}.val_share = {self.val_share}: "
                "held-out pairs need exactly one of them; name files, or write pairs_val = [] and a "
                "val_share such as 0.05"
            )
        if self.loss == "apo_zero" and self.label_smoothing:
            return (
                f"{stage}.label_smoothing = {self.label_smoothing} swaps chosen and rejected, which "
                'apo_zero does not compare; leave it out, or write loss = "dpo"'
            )
        if self.grow and self.grow.context:
            return (
                f"{stage}.grow.context would cut pairs in two, and a row holds whole ones; leave it out"
            )
        return super().contradiction(stage)


class Replies(NamedTuple):
    """Of each pair's two replies, chosen first: [..., 2]. Places without a pair have 0 tokens."""

    ratio: Tensor  # nats: log p - log p_reference, summed over tokens
    tokens: Tensor


def rewards(replies: Replies, settings: PreferenceSettings) -> Tensor:
    """Beta times the log-ratio, or the mean one, as the loss has it. [..., 2]."""
    assert settings.beta is not None
    ratio = replies.ratio
    if settings.loss == "dpo_norm":
        ratio = ratio / replies.tokens.clamp(min=1)
    return settings.beta * ratio


def pair_losses(replies: Replies, settings: PreferenceSettings) -> Tensor:
    """The loss of each pair, [...]."""
    chosen, rejected = rewards(replies, settings).unbind(-1)
    if settings.loss == "apo_zero":
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)
    margin, smoothing = chosen - rejected, settings.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def preference_losses(settings: PreferenceSettings, pairs_in_row: int) -> HeadLoss:
    """The loss of a batch of pairs, of which a row holds at most `pairs_in_row`.

    The batch's extra "reference" is the reference's log-probability of each target.
    """

    def losses(hidden_btw: Tensor, head_vw: Tensor, batch: Batch, softcap: float | None) -> Losses:
        targets_bt = batch.targets_bt
        logp_n = linear_logprobs(hidden_btw.flatten(0, 1), head_vw, targets_bt.flatten(), softcap)
        logp_bt = logp_n.view_as(targets_bt)
        total, sums_k = of_pairs(logp_bt, batch, settings, pairs_in_row)
        return Losses(total, -logp_bt.detach(), sums_k)

    return losses


def of_pairs(
    logp_bt: Tensor, batch: Batch, settings: PreferenceSettings, pairs_in_row: int
) -> tuple[Tensor, Tensor]:
    """(the summed loss, SUMS without a gradient), from the log-probability of each target."""
    counted_bt = (batch.targets_bt != IGNORED).float()
    ratio_bt = (logp_bt - batch.extra["reference"]) * counted_bt

    def by_reply(x_bt: Tensor) -> Tensor:
        return sum_by_document(x_bt, batch.documents_bt, 2 * pairs_in_row).unflatten(1, (-1, 2))

    replies = Replies(by_reply(ratio_bt), by_reply(counted_bt))
    is_pair_bp = (replies.tokens[..., 0] > 0).float()
    preference = (pair_losses(replies, settings) * is_pair_bp).sum()
    nats_bp = -by_reply(logp_bt * counted_bt)[..., 0] / replies.tokens[..., 0].clamp(min=1)
    total = preference + settings.sft_weight * nats_bp.sum()
    # KL(reference | network) by the estimate (r - 1) - log r, r = p / p_reference, which is never negative
    # (Schulman 2020, "Approximating KL divergence"): exact on average, if the reference wrote the text.
    drift_bp2 = by_reply((ratio_bt.exp() - 1 - ratio_bt) * counted_bt)
    reward_bp2 = rewards(replies, settings)
    right_bp = (reward_bp2[..., 0] > reward_bp2[..., 1]).float() * is_pair_bp
    both = [x.sum((0, 1)) for x in (reward_bp2, replies.tokens, drift_bp2)]
    return total, torch.stack(
        [is_pair_bp.sum(), preference, *both[0], right_bp.sum(), *both[1], *both[2], nats_bp.sum()]
    ).detach()


def sum_by_document(x_bt: Tensor, documents_bt: Tensor, documents: int) -> Tensor:
    """[b, documents]: x summed over each document of a row. The same additions every time, on every device."""
    number_d = torch.arange(documents, device=x_bt.device, dtype=documents_bt.dtype)
    inside_bdt = documents_bt[:, None, :] == number_d[None, :, None]
    return torch.where(inside_bdt, x_bt[:, None, :], 0.0).sum(-1)


def count_pairs(batch: Batch) -> int:
    """Pairs of the whole batch: what its loss is divided by."""
    return int(((batch.whole or batch).documents_bt.amax(1) + 1).sum()) // 2


def measures(sums: Sequence[float]) -> dict[str, Any]:
    """What a step's row of metrics says of its pairs."""
    of: Mapping[str, float] = dict(zip(SUMS, sums, strict=True))
    pairs = max(1.0, of["pairs"])
    chosen, rejected = of["reward_chosen"] / pairs, of["reward_rejected"] / pairs
    return {
        "pairs": int(of["pairs"]),
        "preference_loss": of["preference"] / pairs,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "margin": chosen - rejected,
        "accuracy": of["right"] / pairs,
        "kl_chosen": of["kl_chosen"] / max(1.0, of["tokens_chosen"]),
        "kl_rejected": of["kl_rejected"] / max(1.0, of["tokens_rejected"]),
        "nats_chosen": of["nats_chosen"] / pairs,
    }


def preference_objective(settings: PreferenceSettings, pairs_in_row: int) -> Objective:
    """What the loop makes small in the stage `dpo`."""
    return Objective(preference_losses(settings, pairs_in_row), count_pairs, measures)
