"""From scores to the next token: how a reply is drawn.

The network gives every token of the vocabulary a score (a logit). Softmax turns scores into
probabilities, and the next token is drawn from those; or it is simply the likeliest one ("greedy").
In between lie a few dials, applied in the order that transformers has:

    logit bias           added to the scores of certain tokens
    a grammar            leaves no chance to whatever would not be of the wanted form (constrained.py)
    repetition penalty   scores of tokens it has used lately are pushed down (Keskar et al. 2019)
    DRY                  "don't repeat yourself": pushed down is what would go on with a repetition, the more
                         the longer it already is (p-e-w 2024, text-generation-webui #5677)
    temperature          scores / temperature: below 1 the likely becomes likelier, above 1 all get closer
    top-k                only the k likeliest tokens stay
    top-p                only the likeliest that together reach probability p (Holtzman et al. 2020)
    min-p                only those at least min_p times as likely as the likeliest (Nguyen et al. 2024)

Penalties look at the reply and not at the prompt: a question's words belong into its answer. And the
repetition penalty looks at a window of it, or in a long reply even "the" would be forbidden in the end. Small
models need such things, as they loop.

Everything here is a pure function over rows, each with dials of its own: what most rows share is a number,
what they don't is a column. The randomness comes in as one number from (0, 1] for each row: walking along
the probabilities until their running sum reaches it picks a token with exactly its probability. So what a
row draws depends on nothing but its own numbers.

Shapes: b rows, v tokens in the vocabulary, n tokens of a reply.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from pilgrim.core.config import Settings

COLDEST = 1e-30  # what is less would be rounded to 0 in fp32, and divided by
LONGEST_REPETITION = 50  # tokens that DRY follows back: by then the penalty is larger than any score


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
    dry_multiplier: float = Field(
        0.0, ge=0, le=10, description="strength of the penalty on going on with a repetition; 0: none"
    )
    dry_base: float = Field(1.75, ge=1, le=4, description="it grows so much with each repeated token")
    dry_allowed: int = Field(2, ge=1, description="repetitions of up to so many tokens are free")
    max_tokens: int = Field(256, ge=1, description="longest reply, in tokens, its end included")
    seed: int = Field(0, ge=0, lt=2**63, description="beginning of all randomness")


class TokenScores(NamedTuple):
    """What the model thought of a token that was written, before any dial (but for the temperature, where a
    request says so in `scores_at`): natural logarithms."""

    log_prob: float
    likeliest: tuple[tuple[int, float], ...]  # (id, log-probability), the likeliest first


def choose(
    logits_bv: Tensor,
    recent: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    draws: Sequence[float],
    biases: Sequence[Mapping[int, float]] | None = None,
    allowed: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """The next token of every row: ids [b]; -1 where the scores are not finite.

    `recent` holds what each row has written so far; `draws` are numbers from (0, 1], not looked at where the
    temperature is 0. `allowed`: for some rows, Bool [v], what is not left out. Nothing here waits for the
    device.
    """
    scores_bv = restricted(biased(logits_bv.float(), biases), allowed)
    scores_bv = penalized(scores_bv, recent, samplings)
    largest_b, likeliest_b = scores_bv.max(dim=-1)  # NaN, if there is one
    finite_b = largest_b.abs() < float("inf")
    greedy = [sampling.temperature == 0 for sampling in samplings]
    if all(greedy):
        return likeliest_b.where(finite_b, -1)
    # In float64, so that tokens of a large vocabulary aren't lost in the sum's rounding.
    running_bv = probabilities(scores_bv, samplings).double().cumsum(dim=-1)
    draws_b1 = torch.tensor(draws, dtype=torch.float64, device=scores_bv.device)[:, None]
    # The first whose running sum is not below the goal.
    ids_b = torch.searchsorted(running_bv, draws_b1 * running_bv[:, -1:])[:, 0]
    if any(greedy):
        ids_b = torch.where(torch.tensor(greedy, device=ids_b.device), likeliest_b, ids_b)
    return ids_b.where(finite_b, -1)


def biased(scores_bv: Tensor, biases: Sequence[Mapping[int, float]] | None) -> Tensor:
    """Scores with each row's biases added."""
    entries = [(row, i, value) for row, bias in enumerate(biases or ()) for i, value in bias.items()]
    if not entries:
        return scores_bv
    rows, ids, values = zip(*entries, strict=True)
    where = torch.tensor([rows, ids], device=scores_bv.device)
    add = torch.tensor(values, dtype=scores_bv.dtype, device=scores_bv.device)
    return scores_bv.index_put((where[0], where[1]), add, accumulate=True)


def restricted(scores_bv: Tensor, allowed: Sequence[Tensor | None] | None) -> Tensor:
    """Scores of -inf for the tokens that a row doesn't allow (constrained.py)."""
    masks = {row: mask_v for row, mask_v in enumerate(allowed or ()) if mask_v is not None}
    if not masks:
        return scores_bv
    rows_k = torch.tensor(list(masks), device=scores_bv.device)
    forbidden_kv = ~torch.stack(list(masks.values())).to(scores_bv.device)
    return scores_bv.index_copy(0, rows_k, scores_bv[rows_k].masked_fill(forbidden_kv, float("-inf")))


def penalized(scores_bv: Tensor, recent: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> Tensor:
    """Scores after the repetition penalty and DRY."""
    if any(sampling.repetition_penalty > 1 for sampling in samplings):
        scores_bv = _less_of_the_used(scores_bv, recent, samplings)
    if any(sampling.dry_multiplier > 0 for sampling in samplings):
        scores_bv = _less_repetition(scores_bv, recent, samplings)
    return scores_bv


def probabilities(scores_bv: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """What is drawn from: [b, v], sums to 1, and 0 for what was filtered out. Temperature 0 counts as 1."""
    temperature = _dial([max(s.temperature, COLDEST) if s.temperature else 1.0 for s in samplings], scores_bv)
    # The largest score becomes 0 first: divided by a tiny temperature, it would overflow.
    scores_bv = (scores_bv - scores_bv.amax(dim=-1, keepdim=True)) / temperature
    if any(s.top_k is not None for s in samplings):
        scores_bv = _keep_top_k(scores_bv, [s.top_k or scores_bv.shape[-1] for s in samplings])
    if any(s.top_p < 1 for s in samplings):
        # Rounding may reach 1 too early: all are kept only below a bound that no sum can reach.
        scores_bv = _keep_top_p(
            scores_bv, _dial([s.top_p if s.top_p < 1 else 2.0 for s in samplings], scores_bv)
        )
    probs_bv = scores_bv.softmax(dim=-1)
    if any(s.min_p > 0 for s in samplings):
        least = _dial([s.min_p for s in samplings], scores_bv) * probs_bv.amax(dim=-1, keepdim=True)
        probs_bv = probs_bv.masked_fill(probs_bv < least, 0)
        probs_bv = probs_bv / probs_bv.sum(dim=-1, keepdim=True)
    return probs_bv


def token_scores(
    logits_bv: Tensor,
    ids: Sequence[int],
    tops: Sequence[int | None],
    temperatures: Sequence[float] | None = None,
) -> list[TokenScores | None]:
    """What the model thinks of `ids[i]` in row i, with the `tops[i]` likeliest beside it; None: not asked.

    At the temperature 1, or at each row's of `temperatures`.
    """
    if all(top is None for top in tops):
        return [None] * len(tops)
    scores_bv = logits_bv.float()
    if temperatures is not None and any(temperature != 1 for temperature in temperatures):
        scores_bv = scores_bv / _dial(temperatures, scores_bv)
    log_probs_bv = scores_bv.log_softmax(-1)
    chosen = log_probs_bv.gather(1, torch.tensor(ids, device=log_probs_bv.device)[:, None])[:, 0].tolist()
    best = log_probs_bv.topk(min(max(top or 0 for top in tops), log_probs_bv.shape[1]))
    rows = zip(chosen, best.indices.tolist(), best.values.tolist(), tops, strict=True)
    return [
        None if top is None else TokenScores(one, tuple(zip(likely[:top], values[:top], strict=True)))
        for one, likely, values, top in rows
    ]


def _dial(values: Sequence[float], like: Tensor) -> float | Tensor:
    """A number, or a column [b, 1] if the rows differ."""
    if all(value == values[0] for value in values):
        return values[0]
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _keep_top_k(scores_bv: Tensor, ks: Sequence[int]) -> Tensor:
    """Tokens that score like the k-th stay too: bf16 makes ties, and which of them is first is chance."""
    ks = [min(k, scores_bv.shape[-1]) for k in ks]
    places_b1 = torch.tensor(ks, device=scores_bv.device)[:, None] - 1
    kth_b1 = scores_bv.topk(max(ks)).values.gather(1, places_b1)
    return scores_bv.masked_fill(scores_bv < kth_b1, float("-inf"))


def _keep_top_p(scores_bv: Tensor, p: float | Tensor) -> Tensor:
    """A token stays if those before it, from the likeliest on, don't reach p yet; so one always does."""
    ordered_bv, order_bv = scores_bv.sort(dim=-1, descending=True, stable=True)
    probs_bv = ordered_bv.softmax(dim=-1)
    reached_before = (probs_bv.cumsum(dim=-1) - probs_bv) >= p
    reached_before[..., 0] = False  # even where p is rounded to 0
    return scores_bv.masked_fill(reached_before.scatter(-1, order_bv, reached_before), float("-inf"))


def _less_of_the_used(
    scores_bv: Tensor, recent: Sequence[Sequence[int]], samplings: Sequence[Sampling]
) -> Tensor:
    """Scores of the tokens in each row's window divided by its penalty, or multiplied if negative."""
    windows = [ids[-s.penalty_window :] for ids, s in zip(recent, samplings, strict=True)]
    longest = max(1, *map(len, windows))
    # Filled up with one of their own, which is penalized just once; a row without any has no penalty yet.
    filled = [[*ids, *[ids[-1] if ids else 0] * (longest - len(ids))] for ids in windows]
    penalty = _dial(
        [s.repetition_penalty if ids else 1.0 for ids, s in zip(windows, samplings, strict=True)], scores_bv
    )
    used_bn = torch.tensor(filled, device=scores_bv.device)
    scores_bn = scores_bv.gather(1, used_bn)
    return scores_bv.scatter(1, used_bn, torch.where(scores_bn > 0, scores_bn / penalty, scores_bn * penalty))


def _less_repetition(
    scores_bv: Tensor, recent: Sequence[Sequence[int]], samplings: Sequence[Sampling]
) -> Tensor:
    """Less by multiplier · base^(length - allowed), for tokens that go on with a repetition of `length`."""
    longest = max(map(len, recent))
    if longest < 2:
        return scores_bv
    history_bn = torch.tensor([[*[-1] * (longest - len(ids)), *ids] for ids in recent])
    length_bn = repetitions(history_bn).to(scores_bv.device, scores_bv.dtype)
    next_bn = history_bn[:, 1:].to(scores_bv.device)  # what followed there
    multiplier, base, allowed = (
        _dial([float(getattr(s, name)) for s in samplings], scores_bv)
        for name in ("dry_multiplier", "dry_base", "dry_allowed")
    )
    growth = torch.as_tensor(base, dtype=scores_bv.dtype, device=scores_bv.device) ** (length_bn - allowed)
    penalty_bn = torch.where((length_bn >= allowed) & (length_bn > 0), multiplier * growth, 0.0)
    penalty_bv = torch.zeros_like(scores_bv).scatter_reduce(1, next_bn.clamp(min=0), penalty_bn, "amax")
    return scores_bv - penalty_bv


def repetitions(history_bn: Tensor) -> Tensor:
    """At each place but the last: how many tokens up to there are the same as at the end; [b, n - 1].

    Rows are filled up with -1 at the left, which equals nothing.
    """
    places = history_bn.shape[1] - 1
    length_bn = torch.zeros(len(history_bn), places, dtype=torch.int64)
    alive_bn = torch.ones_like(length_bn, dtype=torch.bool)
    for back in range(min(places, LONGEST_REPETITION)):
        end_b1 = history_bn[:, -1 - back, None]
        same_bn = (history_bn[:, : places - back] == end_b1) & (end_b1 >= 0)
        alive_bn[:, back:] &= same_bn
        alive_bn[:, :back] = False
        if not alive_bn.any():
            break
        length_bn += alive_bn
    return length_bn
