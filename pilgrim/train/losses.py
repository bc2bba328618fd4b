"""The loss of a batch, as a sum and as a number for every token.

A batch's loss is the sum over its trained tokens divided *once* by their global number. A mean of
microbatch means would weigh tokens in sparse microbatches more; here any split of a batch into
microbatches (or over processes) gives the same gradient.

The scores are the largest thing in a step: for 8,192 tokens and 4,096 words, 64 MB in bf16, which the usual
way writes and reads back half a dozen times. `LinearCrossEntropy` makes them for a thousand tokens at a
time, while they are in the cache, and goes all the way at once: scores, loss, gradient of the scores, and
from that the gradients of the hidden states and of the head. That is possible before anybody has asked
for a gradient, because a sum hands every one of its terms the same factor, which can come later.
(Liger-Kernel, Hsu et al. 2024, arXiv 2410.10989, does it on GPUs.)

Where tokens have factors of their own, which depend on how likely the tokens were (preferences, policy
gradients), that does not work. `LinearLogProbs` makes the scores a second time in backward instead.

What is trained for is said by a *head loss*: a function of the last hidden states, the head's weights and the
batch. `next_token_losses` is the ordinary one; train/objective.py says what else belongs to an objective.

Shapes: b rows, t tokens; n = b · t tokens, w width, v vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.data.loader import IGNORED, Batch
from pilgrim.model.attention import packed_attention
from pilgrim.model.attention_kernels import Backend, Layout
from pilgrim.model.layers import softcapped
from pilgrim.model.transformer import Transformer

CHUNK = 1024  # tokens whose scores are held at a time


class Losses(NamedTuple):
    """Nats. Only the total carries a gradient; divide it by the trained tokens of the whole batch."""

    total: Tensor  # fp32 scalar
    each_bt: Tensor  # fp32 [b, t]; 0 where no loss counts
    sums_k: Tensor | None = None  # fp32 [k], no gradient: what an objective wants logged, as sums


# (hidden_btw, head_vw, the batch, softcap) -> its losses
HeadLoss = Callable[[Tensor, Tensor, Batch, float | None], Losses]


def token_losses(
    model: Transformer,
    batch: Batch,
    dtype: torch.dtype,
    backend: Backend | None = None,
    layout: Layout = None,
    head_loss: HeadLoss | None = None,
) -> Losses:
    """The losses of a batch: their sum, to train on, and each token's, to measure.

    `backend` and `layout` are for `packed_attention`; `head_loss` is `next_token_losses`, or another one.
    """
    head_loss = head_loss or next_token_losses
    attend = packed_attention(batch.documents_bt, dtype, model.windows, backend, layout)
    hidden = model(batch.inputs_bt, attend, dtype=dtype)
    return head_loss(hidden, model.lm_head.weight, batch, model.config.softcap)


def next_token_losses(hidden_btw: Tensor, head_vw: Tensor, batch: Batch, softcap: float | None) -> Losses:
    """Negative log-likelihood of the batch's targets."""
    targets_n = batch.targets_bt.flatten()
    total, each_n = LinearCrossEntropy.apply(hidden_btw.flatten(0, 1), head_vw, targets_n, softcap)  # type: ignore[no-untyped-call]
    return Losses(total, each_n.view_as(batch.targets_bt))


def linear_logprobs(
    hidden_nw: Tensor, head_vw: Tensor, targets_n: Tensor, softcap: float | None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Of each target, fp32 [n]: its log-probability, with a gradient, and the entropy of what was foreseen.

    Both in nats, and 0 where the target is IGNORED. The scores are divided by `temperature` first.
    """
    logprobs_n, entropies_n = LinearLogProbs.apply(hidden_nw, head_vw, targets_n, softcap, temperature)  # type: ignore[no-untyped-call]
    return logprobs_n, entropies_n


def plain_token_losses(model: Transformer, batch: Batch, dtype: torch.dtype) -> Tensor:
    """The slow twin, [b, t]: all scores at once, and torch's own loss. Every token carries a gradient."""
    attend = packed_attention(batch.documents_bt, dtype, model.windows)
    hidden = model(batch.inputs_bt, attend, dtype=dtype)
    logits, targets = model.logits(hidden).float(), batch.targets_bt
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(targets)


class LinearCrossEntropy(torch.autograd.Function):
    """(hidden_nw, head_vw, targets_n, softcap) -> (summed loss, each token's without a gradient).

    The head's gradient is added up in fp32, whatever the head comes in.

    For a token with scores s = head · h and target y the loss is log(sum(exp(s))) - s[y]; its gradient
    with respect to the scores is softmax(s), less one at y. Where they are bounded, s = c · tanh(r / c), the
    gradient with respect to the raw r is that times 1 - (s / c)².
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_nw: Tensor, head_vw: Tensor, targets_n: Tensor, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        head = head_vw.to(hidden_nw.dtype)
        losses, d_hidden, d_head = [], [], torch.zeros_like(head_vw, dtype=torch.float32)
        for hidden, targets in zip(hidden_nw.split(CHUNK), targets_n.split(CHUNK), strict=True):
            counts = (targets != IGNORED)[:, None].to(hidden.dtype)
            target = targets.clamp(min=0)[:, None]
            scores = softcapped(F.linear(hidden, head), softcap)
            largest = scores.amax(-1, keepdim=True).float()
            # Rounded before it is summed: so it is computed once, and kept in half the room.
            likelihood = (scores.float() - largest).exp().to(hidden.dtype)
            total = likelihood.float().sum(-1, keepdim=True)
            losses.append((largest + total.log() - scores.gather(1, target)) * counts)
            d_scores = likelihood * (counts / total)
            d_scores = (d_scores - only_at(target, counts, d_scores)).to(hidden.dtype)
            if softcap is not None:
                d_scores = (d_scores * (1 - (scores.float() / softcap) ** 2)).to(hidden.dtype)
            d_hidden.append(d_scores @ head)
            if ctx.needs_input_grad[1]:  # else the head is frozen (model/lora.py)
                d_head += d_scores.T @ hidden
        each = torch.cat(losses).flatten()
        ctx.save_for_backward(torch.cat(d_hidden), d_head)
        ctx.mark_non_differentiable(each)
        return each.sum(), each

    @staticmethod
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_head = ctx.saved_tensors
        return (d_hidden * factor).to(d_hidden.dtype), d_head * factor, None, None


def only_at(target_n1: Tensor, amount_n1: Tensor, like_nv: Tensor) -> Tensor:
    """As large as `like_nv`: each row's amount in the column of its target, and 0 elsewhere.

    Every column is asked whether it is the one, as that becomes part of the loop around it. A `scatter_add`
    would not: where several threads are at work, torch.compile leaves it to torch, which copies the table.
    """
    columns_v = torch.arange(like_nv.shape[1], dtype=torch.int32, device=like_nv.device)
    return torch.where(columns_v == target_n1.int(), amount_n1.to(like_nv.dtype), 0.0)


class LinearLogProbs(torch.autograd.Function):
    """(hidden_nw, head_vw, targets_n, softcap, temperature) -> (log-probabilities [n], entropies [n]).

    The entropies carry no gradient. With s = head · h / temperature and target y the log-probability is s[y]
    - log(sum(exp(s))); its gradient with respect to the scores is one at y, less softmax(s). Forward keeps
    that logarithm of each token and no scores; backward makes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nw: Tensor,
        head_vw: Tensor,
        targets_n: Tensor,
        softcap: float | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        head = head_vw.to(hidden_nw.dtype)
        logprobs, entropies, normalizers = [], [], []
        for hidden, targets in zip(hidden_nw.split(CHUNK), targets_n.split(CHUNK), strict=True):
            scores = softcapped(F.linear(hidden, head), softcap).float() / temperature
            normalizer = scores.logsumexp(-1, keepdim=True)
            counts = (targets != IGNORED)[:, None].float()
            target = targets.clamp(min=0)[:, None]
            logprobs.append((scores.gather(1, target) - normalizer) * counts)
            mean_score = ((scores - normalizer).exp() * scores).sum(-1, keepdim=True)
            entropies.append((normalizer - mean_score) * counts)
            normalizers.append(normalizer)
        ctx.save_for_backward(hidden_nw, head_vw, targets_n, torch.cat(normalizers))
        ctx.softcap, ctx.temperature = softcap, temperature
        entropies_n = torch.cat(entropies).flatten()
        ctx.mark_non_differentiable(entropies_n)
        return torch.cat(logprobs).flatten(), entropies_n

    @staticmethod
    def backward(ctx: Any, factor_n: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_nw, head_vw, targets_n, normalizer_n1 = ctx.saved_tensors
        head = head_vw.to(hidden_nw.dtype)
        d_hidden, d_head = [], torch.zeros_like(head_vw, dtype=torch.float32)
        chunks = (hidden_nw, targets_n, normalizer_n1, factor_n)
        for hidden, targets, normalizer, factor in zip(*(x.split(CHUNK) for x in chunks), strict=True):
            scores = softcapped(F.linear(hidden, head), ctx.softcap).float()
            factor = (factor * (targets != IGNORED))[:, None]
            likelihood = (scores / ctx.temperature - normalizer).exp()
            d_scores = only_at(targets[:, None], factor, likelihood) - factor * likelihood
            d_scores = d_scores / ctx.temperature
            if ctx.softcap is not None:
                d_scores = d_scores * (1 - (scores / ctx.softcap) ** 2)
            d_scores = d_scores.to(hidden.dtype)
            d_hidden.append(d_scores @ head)
            if ctx.needs_input_grad[1]:
                d_head += d_scores.T @ hidden
        return torch.cat(d_hidden), d_head.to(head_vw.dtype), None, None, None
