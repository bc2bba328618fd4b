"""Learning from a teacher's scores: not only which token came next, but all that could have.

The next token of a text is one answer of many that would have been right. A teacher that was trained longer,
or is larger, says for each place how likely it finds every token, which is far more to learn from than one
token (Hinton, Vinyals and Dean 2015, arXiv 1503.02531). The loss of a token with teacher p and student q is

    (1 - weight) · cross-entropy of the text's token  +  weight · T² · KL(p ‖ q)

with both distributions at the temperature T: above 1, what is unlikely counts for more. Gradients of the
second term shrink by T², which the factor makes good, so that `weight` means the same at each T.

The teacher's `top_k` likeliest tokens are kept by name, and all others as one lump with the sum of their
probabilities; the student's are lumped alike. A lump says less than its parts, so this divergence is never
larger than the full one, and it is 0 where student and teacher agree. Left out altogether, as is often done,
the others would be free: the student could put any probability there.

With scores s, warm ones s / T, and q their softmax, the gradient of KL with respect to warm ones is

    q[j] - p[j]                                for the tokens with a name
    q[j] · (1 - p[rest] / q[rest])             for the others

As in losses.py, scores and gradient are made for a chunk of tokens, all at once.

Shapes: b rows, t tokens; n = b · t tokens, w width, v vocabulary, k tokens with a name, l = k + 1.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pilgrim.core.config import Settings
from pilgrim.data.loader import IGNORED, Batch
from pilgrim.model.attention import packed_attention
from pilgrim.model.attention_kernels import Backend, Layout
from pilgrim.model.layers import softcapped
from pilgrim.model.transformer import Transformer
from pilgrim.train.losses import CHUNK, Losses, only_at
from pilgrim.train.objective import Objective

IDS = "teacher_ids"  # in Batch.extra: [b, t, k]
LOGPROBS = "teacher_logprobs"  # likewise: [b, t, l], the lump last
LEAST_LOGPROB = -80.0  # of a lump: e⁻⁸⁰ counts for nothing, and its logarithm is still a number


class TeacherSettings(Settings):
    """`[pretrain.teacher]`, `[midtrain.teacher]`, `[sft.teacher]`: learn from what another model foresees."""

    run: str = Field(description="a run's folder, or a Hugging Face folder, with the same tokenizer")
    stage: str | None = Field(None, description="of that run, whose weights teach; left out: the last")
    top_k: int = Field(32, ge=1, le=4096, description="tokens of each place that are told apart")
    weight: float = Field(0.5, gt=0, le=1, description="of the teacher; the rest is the text's own token")
    temperature: float = Field(1.0, gt=0, le=20, description="above 1: the unlikely counts for more")


def distilled(objective: Objective, settings: TeacherSettings) -> Objective:
    """The objective with a teacher's part in it. It logs the two parts of the loss for themselves."""
    inner = objective.sums

    def sums(batch: Batch, losses: Losses) -> Tensor:
        assert losses.sums_k is not None
        more = [] if inner is None else [inner(batch, losses._replace(sums_k=None))]
        return torch.cat([losses.sums_k, *more])

    def measures(found: Sequence[float]) -> dict[str, Any]:
        divergence, cross_entropy, tokens = found[:3]
        own = {"teacher_kl": divergence / max(1, tokens), "cross_entropy": cross_entropy / max(1, tokens)}
        return own | objective.measures(found[3:])

    head_loss = partial(distillation_losses, weight=settings.weight, temperature=settings.temperature)
    return replace(objective, head_loss=head_loss, sums=sums, measures=measures)


def distillation_losses(
    hidden_btw: Tensor,
    head_vw: Tensor,
    batch: Batch,
    softcap: float | None,
    weight: float,
    temperature: float,
) -> Losses:
    """The loss above, for a batch with what the teacher says in `extra`. `each_bt` is the cross-entropy."""
    targets_n = batch.targets_bt.flatten()
    ids_nk, logprobs_nl = batch.extra[IDS].flatten(0, 1), batch.extra[LOGPROBS].flatten(0, 1)
    total, each_n, divergence = LinearDistillation.apply(  # type: ignore[no-untyped-call]
        hidden_btw.flatten(0, 1), head_vw, targets_n, ids_nk, logprobs_nl, softcap, weight, temperature
    )
    sums_k = torch.stack([divergence, each_n.sum(), (targets_n != IGNORED).sum().float()])
    return Losses(total, each_n.view_as(batch.targets_bt), sums_k)


class LinearDistillation(torch.autograd.Function):
    """-> (summed loss, each token's cross-entropy, summed KL); only the first has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nw: Tensor,
        head_vw: Tensor,
        targets_n: Tensor,
        ids_nk: Tensor,
        logprobs_nl: Tensor,
        softcap: float | None,
        weight: float,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = head_vw.to(hidden_nw.dtype)
        entropies, divergences, d_hidden = [], [], []
        d_head = torch.zeros_like(head_vw, dtype=torch.float32)
        chunks = (x.split(CHUNK) for x in (hidden_nw, targets_n, ids_nk, logprobs_nl))
        for hidden, targets, ids, logprobs in zip(*chunks, strict=True):
            counts = (targets != IGNORED)[:, None].float()
            scores = softcapped(F.linear(hidden, head), softcap).float()
            entropy, d_entropy = _cross_entropy(scores, targets.clamp(min=0)[:, None])
            divergence, d_warm = _divergence(scores / temperature, ids, logprobs)
            entropies.append(entropy * counts)
            divergences.append(divergence * counts)
            # T² of the loss, and 1 / T as warm scores are cold ones divided by T
            d_scores = counts * ((1 - weight) * d_entropy + weight * temperature * d_warm)
            if softcap is not None:
                d_scores = d_scores * (1 - (scores / softcap) ** 2)
            d_scores = d_scores.to(hidden.dtype)
            d_hidden.append(d_scores @ head)
            if ctx.needs_input_grad[1]:  # else the head is frozen
                d_head += d_scores.T @ hidden
        each, divergence = torch.cat(entropies).flatten(), torch.cat(divergences).sum()
        ctx.save_for_backward(torch.cat(d_hidden), d_head)
        ctx.mark_non_differentiable(each, divergence)
        return (1 - weight) * each.sum() + weight * temperature**2 * divergence, each, divergence

    @staticmethod
    def backward(ctx: Any, factor: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        return (d_hidden * factor).to(d_hidden.dtype), d_head * factor, *[None] * 6


def _cross_entropy(scores_nv: Tensor, target_n1: Tensor) -> tuple[Tensor, Tensor]:
    """[n, 1], and its gradient with respect to the scores."""
    normalizer_n1 = scores_nv.logsumexp(-1, keepdim=True)
    likely_nv = (scores_nv - normalizer_n1).exp()
    gradient = likely_nv - only_at(target_n1, torch.ones_like(normalizer_n1), likely_nv)
    return normalizer_n1 - scores_nv.gather(1, target_n1), gradient


def _divergence(warm_nv: Tensor, ids_nk: Tensor, logprobs_nl: Tensor) -> tuple[Tensor, Tensor]:
    """KL from the teacher's lumped distribution to the student's, [n, 1], and its gradient."""
    student_nv = warm_nv.log_softmax(-1)
    likely_nv = student_nv.exp()
    # Added up without the named ones: 1 less their sum would be nothing but rounding where that is near 1.
    unnamed_nv = likely_nv.scatter(1, ids_nk, 0.0)
    rest_n1 = unnamed_nv.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    student_nl = torch.cat([student_nv.gather(1, ids_nk), rest_n1.log()], dim=1)
    teacher_nl = logprobs_nl.exp()
    divergence_n1 = (teacher_nl * (logprobs_nl - student_nl)).sum(-1, keepdim=True)
    gradient_nv = likely_nv - unnamed_nv * (teacher_nl[:, -1:] / rest_n1)
    return divergence_n1, gradient_nv.scatter_add(1, ids_nk, -teacher_nl[:, :-1])


@torch.no_grad()
def foreseen(
    teacher: Transformer,
    batch: Batch,
    dtype: torch.dtype,
    backend: Backend | None,
    layout: Layout,
    top_k: int,
    temperature: float,
    vocabulary: int,
) -> tuple[Tensor, Tensor]:
    """What the teacher says of each place: the `top_k` likeliest ids [b, t, k], and their log-probabilities
    at the temperature with that of all others behind them, fp32 [b, t, l].

    Of ids only the first `vocabulary` count: what a padded table has behind them is no token.
    """
    attend = packed_attention(batch.documents_bt, dtype, teacher.windows, backend, layout)
    hidden = teacher(batch.inputs_bt, attend, dtype=dtype).flatten(0, 1)
    ids, logprobs = [], []
    for part in hidden.split(CHUNK):
        all_nv = (teacher.logits(part)[:, :vocabulary].float() / temperature).log_softmax(-1)
        best = all_nv.topk(top_k)
        rest_n1 = all_nv.scatter(1, best.indices, -torch.inf).logsumexp(-1, keepdim=True)
        ids.append(best.indices)
        logprobs.append(torch.cat([best.values, rest_n1.clamp(min=LEAST_LOGPROB)], dim=1))
    shape = batch.inputs_bt.shape
    return torch.cat(ids).view(*shape, top_k), torch.cat(logprobs).view(*shape, top_k + 1)
