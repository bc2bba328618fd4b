"""From scores to the next token: how a reply is drawn.

The network gives every token of the vocabulary a score (a logit). Softmax turns scores into
probabilities, and the next token is drawn from those; or it is simply the likeliest one ("greedy").
In between lie a few dials, applied in the order that transformers has:

    repetition penalty   scores of tokens it has used lately are pushed down (Keskar et al. 2019)
    temperature          scores / temperature: below 1 the likely becomes likelier, above 1 all get closer
    top-k                only the k likeliest tokens stay
    top-p                only the likeliest that together reach probability p (Holtzman et al. 2020)
    min-p                only those at least min_p times as likely as the likeliest (Nguyen et al. 2024)

The penalty looks at a window of the reply and not at the prompt: a question's words belong into its
answer, and in a long reply even "the" would be forbidden in the end. Small models need it, as they loop.

Everything here is a pure function. The randomness comes in as one number from (0, 1] for each sequence:
walking along the probabilities until their running sum reaches it picks a token with exactly its
probability. So what a sequence draws depends on nothing but its own numbers.

Shapes: b sequences, v tokens in the vocabulary.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from pilgrim.core.config import Settings
from pilgrim.core.errors import PilgrimError


class Sampling(Settings):
    """How replies are drawn. The same seed and prompt give the same reply."""

    temperature: float = Field(
        0.8, ge=0, le=10, description="0: always the likeliest; 1: as the model has it"
    )
    top_k: int | None = Field(
        None, ge=1, description="draw among the k likeliest tokens; left out: among all"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="draw among the likeliest that reach this probability")
    min_p: float = Field(
        0.0, ge=0, le=1, description="least probability, as a share of the likeliest token's"
    )
    repetition_penalty: float = Field(1.0, ge=1, le=10, description="1: none; small models like 1.1 to 1.3")
    penalty_window: int = Field(64, ge=1, description="how many tokens back the penalty looks")
    max_tokens: int = Field(256, ge=1, description="longest reply, in tokens, its end included")
    seed: int = Field(0, ge=0, lt=2**63, description="beginning of all randomness")


def choose(logits_bv: Tensor, recent: Sequence[Sequence[int]], sampling: Sampling, draws_b: Tensor) -> Tensor:
    """The next token of every sequence: ids [b].

    `recent` holds what each sequence has generated so far; `draws_b` are float64 numbers from (0, 1], not
    looked at when the temperature is 0. Raises PilgrimError if the scores are not finite.
    """
    scores_bv = penalized(logits_bv.float(), recent, sampling)
    if not torch.isfinite(scores_bv.amax(dim=-1)).all():
        raise PilgrimError(
            "the model's scores are not finite, so its weights are spoiled; use an earlier checkpoint"
        )
    if sampling.temperature == 0:
        return scores_bv.argmax(dim=-1)
    # In float64, so that tokens of a large vocabulary aren't lost in the sum's rounding.
    running_bv = probabilities(scores_bv, sampling).double().cumsum(dim=-1)
    goal_b1 = draws_b[:, None] * running_bv[:, -1:]
    return torch.searchsorted(running_bv, goal_b1)[:, 0]  # the first whose running sum is not below the goal


def penalized(scores_bv: Tensor, recent: Sequence[Sequence[int]], sampling: Sampling) -> Tensor:
    """Scores of the tokens in each sequence's window divided by the penalty, or multiplied if negative."""
    if sampling.repetition_penalty == 1:
        return scores_bv
    scores_bv = scores_bv.clone()
    for scores_v, ids in zip(scores_bv, recent, strict=True):
        window = torch.tensor(ids[-sampling.penalty_window :], dtype=torch.long, device=scores_v.device)
        used = scores_v[window]
        scores_v[window] = torch.where(
            used > 0, used / sampling.repetition_penalty, used * sampling.repetition_penalty
        )
    return scores_bv


def probabilities(scores_bv: Tensor, sampling: Sampling) -> Tensor:
    """What is drawn from, at a temperature above 0: [b, v], sums to 1, and 0 for what was filtered out."""
    # The largest score becomes 0 first: divided by a tiny temperature, it would overflow.
    scores_bv = (scores_bv - scores_bv.amax(dim=-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None:
        scores_bv = _keep_top_k(scores_bv, sampling.top_k)
    if sampling.top_p < 1:
        scores_bv = _keep_top_p(scores_bv, sampling.top_p)
    probs_bv = scores_bv.softmax(dim=-1)
    if sampling.min_p > 0:
        too_rare = probs_bv < sampling.min_p * probs_bv.amax(dim=-1, keepdim=True)
        probs_bv = probs_bv.masked_fill(too_rare, 0)
        probs_bv = probs_bv / probs_bv.sum(dim=-1, keepdim=True)
    return probs_bv


def _keep_top_k(scores_bv: Tensor, k: int) -> Tensor:
    """Tokens that score like the k-th stay too: bf16 makes ties, and which of them is first is chance."""
    kth_b1 = scores_bv.topk(min(k, scores_bv.shape[-1])).values[:, -1:]
    return scores_bv.masked_fill(scores_bv < kth_b1, float("-inf"))


def _keep_top_p(scores_bv: Tensor, p: float) -> Tensor:
    """A token stays if those before it, from the likeliest on, don't reach p yet; so one always does."""
    ordered_bv, order_bv = scores_bv.sort(dim=-1, descending=True, stable=True)
    probs_bv = ordered_bv.softmax(dim=-1)
    reached_before = (probs_bv.cumsum(dim=-1) - probs_bv) >= p
    return scores_bv.masked_fill(reached_before.scatter(-1, order_bv, reached_before), float("-inf"))
