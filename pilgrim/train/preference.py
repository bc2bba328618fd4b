"""Learning from preferences: raise the better reply's probability against the worse one's.

A reply's *log-ratio* tells how much more likely the network finds it than the one it began as, the reference:

    ratio(reply) = log p(reply | prompt) - log p_reference(reply | prompt)       summed over its tokens

Times beta, it is the reward that the network gives the reply. For if one trains a reward model, and then a
network to maximize it, where each nat of KL(network | reference) costs beta, the best network is the one
whose log-ratios are those rewards. That is DPO's insight (Rafailov et al. 2023, arXiv 2305.18290): the reward
model can be left out. Preferences are learned by a loss on the log-ratios of the chosen and the rejected
reply, w and l:

    dpo        -log sigmoid(beta · (ratio(w) - ratio(l)))
               Only the difference counts: it is content if both fall, as long as the rejected falls faster.
    dpo_norm   the same of mean log-ratios, ratio / tokens, so that a reply's length has no say (Tülu 3,
               Lambert et al. 2024, arXiv 2411.15124, section 5.1). Means are small, so beta is larger: 5.
    apo_zero   (1 - sigmoid(beta · ratio(w))) + sigmoid(beta · ratio(l))
               The chosen is to rise and the rejected to fall, each by itself (D'Oosterlinck et al. 2024,
               arXiv 2408.06266, equation 7). For data that is better than what the network says.

Two additions. `label_smoothing` e takes a share e of the pairs to be labelled wrongly: the loss becomes
(1 - e) · loss(w, l) + e · loss(l, w) (Mitchell 2023, "A note on DPO with noisy preferences"). `sft_weight`
adds that many times the mean loss of the chosen reply's tokens, which keeps its probability from falling
(RPO, Pang et al. 2024, arXiv 2404.19733).

All is summed over pairs, and divided once by the number of pairs in the whole batch. Rows hold whole pairs
(data/pairs.py): documents 2k and 2k + 1 of a row are chosen and rejected. What one wants to see of each step
comes as sums too (`SUMS`), so that nobody waits for it.

Shapes: b rows, t tokens; d = 2 p documents in a row, p pairs; k numbers to look at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pilgrim.data.loader import IGNORED, Batch
from pilgrim.data.pairs import REFERENCE, SHORTEST
from pilgrim.train.losses import Losses, linear_logprobs
from pilgrim.train.objective import Objective
from pilgrim.train.settings import TrainSettings

BETA = {"dpo": 0.1, "dpo_norm": 5.0, "apo_zero": 0.1}  # as the papers have it, where a recipe names none

# What is added up over a step's pairs, in this order.
SUMS = (
    "pairs",
    "preference",  # the loss without the part of sft_weight
    "right",  # pairs of which the chosen has the higher reward
    "nats_chosen",  # of the mean token of a chosen reply
    "reward_chosen",
    "reward_rejected",
    "tokens_chosen",
    "tokens_rejected",
    "kl_chosen",
    "kl_rejected",
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
        None, gt=0, description="how dear it is to leave the reference; left out: 0.1, or 5 for dpo_norm"
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
            return f"{stage}.grow.context would cut pairs in two, and a row holds whole ones; leave it out"
        return super().contradiction(stage)

    def preference(self) -> "Preference":
        """What is made small."""
        beta = BETA[self.loss] if self.beta is None else self.beta
        return Preference(self.loss, beta, self.label_smoothing, self.sft_weight)


@dataclass(frozen=True)
class Preference:
    """What is made small, as plain values: a part of what is compiled."""

    loss: str
    beta: float
    label_smoothing: float
    sft_weight: float


class Replies(NamedTuple):
    """Of each pair's two replies, chosen first: [..., 2]. Places without a pair have 0 tokens."""

    ratio: Tensor  # nats: log p - log p_reference, summed over tokens
    tokens: Tensor


def rewards(replies: Replies, preference: Preference) -> Tensor:
    """Beta times the log-ratio, or the mean one, as the loss has it. [..., 2]."""
    ratio = replies.ratio
    if preference.loss == "dpo_norm":
        ratio = ratio / replies.tokens.clamp(min=1)
    return preference.beta * ratio


def pair_losses(reward: Tensor, preference: Preference) -> Tensor:
    """The loss of each pair, [...], from the rewards of its two replies, [..., 2]."""
    chosen, rejected = reward[..., 0], reward[..., 1]
    if preference.loss == "apo_zero":
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)
    margin, smoothing = chosen - rejected, preference.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def preference_objective(settings: PreferenceSettings) -> Objective:
    """What the loop makes small in the stage `dpo`."""
    preference = settings.preference()

    def losses(hidden_btw: Tensor, head_vw: Tensor, batch: Batch, softcap: float | None) -> Losses:
        targets_bt = batch.targets_bt
        logp_n, _ = linear_logprobs(hidden_btw.flatten(0, 1), head_vw, targets_bt.flatten(), softcap)
        logp_bt = logp_n.view_as(targets_bt)
        total, sums_k = of_pairs(logp_bt, batch, preference)
        return Losses(total, -logp_bt.detach(), sums_k)

    return Objective(losses, count_pairs, measures=measures, extra=(REFERENCE,))


def of_pairs(logp_bt: Tensor, batch: Batch, preference: Preference) -> tuple[Tensor, Tensor]:
    """(the summed loss, SUMS without a gradient), from the log-probability of each target."""
    counted_bt = (batch.targets_bt != IGNORED).float()
    ratio_bt = (logp_bt - batch.extra[REFERENCE]) * counted_bt

    def by_reply(x_bt: Tensor) -> Tensor:
        pairs = x_bt.shape[1] // SHORTEST // 2  # at most, in a row
        return sum_by_document(x_bt, batch.documents_bt, 2 * pairs).view(-1, pairs, 2)

    replies = Replies(by_reply(ratio_bt), by_reply(counted_bt))
    reward_bp2 = rewards(replies, preference)
    is_pair_bp = (replies.tokens[..., 0] > 0).float()
    loss = (pair_losses(reward_bp2, preference) * is_pair_bp).sum()
    nats_bp = -by_reply(logp_bt * counted_bt)[..., 0] / replies.tokens[..., 0].clamp(min=1)
    right_bp = (reward_bp2[..., 0] > reward_bp2[..., 1]).float()
    # KL(reference | network) by the estimate (r - 1) - log r, r = p / p_reference, which is never negative
    # (Schulman 2020, "Approximating KL divergence"): right on average, if the reference wrote the text.
    drift_bp2 = by_reply((ratio_bt.exp() - 1 - ratio_bt) * counted_bt)
    chosen_and_rejected = [x.sum((0, 1)) for x in (reward_bp2, replies.tokens, drift_bp2)]
    of_all = torch.stack([is_pair_bp.sum(), loss, right_bp.sum(), nats_bp.sum()])
    sums_k = torch.cat([of_all, *chosen_and_rejected]).detach()
    return loss + preference.sft_weight * nats_bp.sum(), sums_k


def sum_by_document(x_bt: Tensor, documents_bt: Tensor, documents: int) -> Tensor:
    """[b, documents]: x summed over each document of a row, by the same additions every time.

    (To scatter would need less memory, but adds in no fixed order on a GPU.)
    """
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
