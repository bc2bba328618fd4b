"""Preference losses against slow twins: plain log_softmax over one conversation at a time, and TRL's code.

TRL (its extra is `pilgrim[trl]`; without it those tests are skipped) is given the very log-probabilities that
ours get, and must find the same loss, gradient and rewards.
"""

from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pilgrim.core.compiling import compiled
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import IGNORED, Batch, one_pass, stack
from pilgrim.data.pairs import PairRows
from pilgrim.data.shards import Document, TokenSet, in_memory
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.train.likelihood import token_logprobs
from pilgrim.train.losses import token_losses
from pilgrim.train.preference import (
    SUMS,
    Preference,
    count_pairs,
    measures,
    of_pairs,
    preference_objective,
)
from pilgrim.train.preference import PreferenceSettings as Settings
from pilgrim.train.preference_eval import measured_pairs
from pilgrim.train.step import accumulate, compiled_token_losses

CONTEXT, VOCABULARY = 128, 40
RUNTIME = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
ALL = [
    Settings(loss="dpo"),
    Settings(loss="dpo", beta=0.5, label_smoothing=0.2, sft_weight=0.3),
    Settings(loss="dpo_norm", sft_weight=1.0),
    Settings(loss="apo_zero", beta=0.7),
]


def pairs(count: int) -> TokenSet:
    """Pairs with a common prompt and replies of all lengths, of which the end of turn is trained too."""
    dice = torch.Generator().manual_seed(3)

    def some(n: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (n,), generator=dice).tolist()

    documents = []
    for number in range(count):
        prompt = [0, *some(8 + number % 5)]
        for longer in (2, 5):
            reply = some(3 + (number * longer) % 17)
            mask = [False] * len(prompt) + [True] * len(reply) + [False]
            documents.append(Document([*prompt, *reply, 1], mask, "some", 1))
    return in_memory("pairs", documents, VOCABULARY)


def network(seed: int) -> Transformer:
    settings = ModelSettings(depth=2, width=16, head_size=8, context=CONTEXT, softcap=8.0)
    model = Transformer(settings.config(VOCABULARY))
    dice = torch.Generator().manual_seed(seed)
    initialize(model, dice)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=dice) * 0.1)
    return model


def slow_logprobs(model: Transformer, tokens: TokenSet, document: int) -> Tensor:
    """Of the trained tokens of one conversation, which the network reads alone."""
    assert tokens.trained is not None
    here = slice(int(tokens.starts[document]), int(tokens.starts[document + 1]))
    ids = torch.from_numpy(tokens.tokens[here].astype("int64"))
    alone = Batch(ids[None], ids[None], torch.zeros(1, len(ids), dtype=torch.int32))
    seen: list[Tensor] = []

    def look(hidden: Tensor, head: Tensor, batch: Batch, softcap: float | None) -> Any:
        seen.append(hidden[0])
        return None

    token_losses(model, alone, torch.float32, head_loss=look)
    logprobs = model.logits(seen[0]).log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    return logprobs[torch.from_numpy(tokens.trained[here])[1:]]


def slow_loss(settings: Settings, now: list[Tensor], before: list[Tensor]) -> Tensor:
    """Of one pair, as the papers write it."""
    beta, e = settings.preference().beta, settings.label_smoothing
    ratio = [(a - b).sum() for a, b in zip(now, before, strict=True)]
    if settings.loss == "apo_zero":
        loss = (1 - torch.sigmoid(beta * ratio[0])) + torch.sigmoid(beta * ratio[1])
    else:
        if settings.loss == "dpo_norm":
            ratio = [r / len(a) for r, a in zip(ratio, now, strict=True)]
        h = beta * (ratio[0] - ratio[1])
        loss = -(1 - e) * torch.log(torch.sigmoid(h)) - e * torch.log(1 - torch.sigmoid(h))
    return loss - settings.sft_weight * now[0].mean()


@pytest.mark.parametrize("settings", ALL)
def test_packed_pairs_are_those_of_one_conversation_at_a_time(settings: Settings) -> None:
    tokens, model, reference = pairs(9), network(1), network(2)
    reference_n = token_logprobs(reference, tokens, one_pass(tokens, CONTEXT, 0, 2), token_losses, RUNTIME)
    rows = PairRows(tokens, reference_n, CONTEXT, 0, RUNTIME)
    batch = _epoch(rows, 9)
    objective = preference_objective(settings)
    losses = compiled_token_losses(RUNTIME, None, objective.head_loss)
    found = accumulate(model, batch, 1, losses, RUNTIME, divisor=objective.divisor)
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    each = []
    for pair in range(9):
        now, before = ([slow_logprobs(m, tokens, 2 * pair + i) for i in (0, 1)] for m in (model, reference))
        each.append(slow_loss(settings, now, [b.detach() for b in before]))
    slow = torch.stack(each).mean()
    slow.backward()
    torch.testing.assert_close(found.loss, slow.detach(), rtol=1e-5, atol=1e-6)
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(gradients, expected, rtol=2e-4, atol=2e-6)
    assert found.sums_k is not None and dict(zip(SUMS, found.sums_k.tolist(), strict=True))["pairs"] == 9


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, within its compiler
def test_compiled_losses_are_the_same() -> None:
    batch, logp_bt, _ = laid_out(9)
    preference = ALL[1].preference()
    found = []
    for function in (of_pairs, compiled(of_pairs)):
        leaf = logp_bt.clone().requires_grad_()
        total, sums_k = function(leaf, batch, preference)
        found.append([total.detach(), sums_k, *torch.autograd.grad(total, leaf)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def _epoch(rows: PairRows, count: int) -> Batch:
    """The rows that hold each pair once."""
    taken: list[Batch] = []
    for row, _ in rows.rows(None):
        taken.append(row)
        if count_pairs(stack(taken)) == count:
            return stack(taken)
    raise AssertionError


def test_what_is_measured_is_what_is_trained() -> None:
    """The sums of a step, and the measures of held-out pairs, which go another way."""
    tokens, model, reference = pairs(9), network(1), network(2)
    logprob_n, reference_n = (
        token_logprobs(m, tokens, one_pass(tokens, CONTEXT, 0, 2), token_losses, RUNTIME)
        for m in (model, reference)
    )
    for settings in ALL:
        batch = _epoch(PairRows(tokens, reference_n, CONTEXT, 0, RUNTIME), 9)
        head_loss = preference_objective(settings).head_loss
        found = token_losses(model, batch, torch.float32, head_loss=head_loss)
        assert found.sums_k is not None
        step = measures(found.sums_k.tolist())
        held_out = measured_pairs(tokens, logprob_n, reference_n, settings.preference())
        assert held_out["pairs"] == step["pairs"] == 9
        for ours, theirs in (
            ("pair_loss", "preference_loss"),
            ("pair_accuracy", "accuracy"),
            ("pair_margin", "margin"),
            ("pair_reward_chosen", "reward_chosen"),
            ("pair_nats_chosen", "nats_chosen"),
        ):
            assert held_out[ours] == pytest.approx(step[theirs], rel=1e-4, abs=1e-5), ours


# TRL ----------------------------------------------------------------------------------------------


def laid_out(count: int) -> tuple[Batch, Tensor, Tensor]:
    """One row of pairs with random log-probabilities: (batch, ours [1, t], the mask of trained targets)."""
    tokens = pairs(count)
    dice = torch.Generator().manual_seed(5)
    reference_n = (-3 * torch.rand(len(tokens.tokens), generator=dice)).numpy()
    rows = PairRows(tokens, reference_n, 1024, 0, RUNTIME)
    (row,) = (row for row, _ in islice(rows.rows(None), 1))
    assert count_pairs(row) == count
    counted = row.targets_bt != IGNORED
    return row, (-3 * torch.rand(counted.shape, generator=dice)) * counted, counted


def as_trl_has_it(batch: Batch, x_bt: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """All chosen, then all rejected: [2 p, longest], and which places count."""
    order = [*range(0, 2 * count_pairs(batch), 2), *range(1, 2 * count_pairs(batch), 2)]
    kept = [x_bt[(batch.documents_bt == number) & counted] for number in order]
    masks = [torch.ones(len(x), dtype=torch.long) for x in kept]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(kept, batch_first=True), pad(masks, batch_first=True)


def trl_loss(kind: str, beta: float, logp: Tensor, reference: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
    """What TRL's DPOTrainer makes of these log-probabilities, and its metrics.

    Its trainer is not started; only the method that computes the loss is called, on a stand-in for the model
    that returns them. A place before the first is the prompt's.
    """
    trainer = pytest.importorskip("trl.trainer.dpo_trainer", reason="needs pip install 'pilgrim[trl]'")
    zeros = torch.zeros_like(logp)

    def model(**inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(
            log_probs=logp, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros
        )

    metrics: dict[str, Any] = {"train": {}}
    for name in _METRICS:
        metrics["train"][name] = []
    itself = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.2,
        use_weighting=False,
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
    )
    before = torch.zeros(len(logp), 1, dtype=torch.long)
    ids = torch.ones(len(logp), logp.shape[1] + 1, dtype=torch.long)
    chosen, rejected = reference.sum(1).chunk(2)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": torch.cat([before, mask], 1),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = trainer.DPOTrainer._compute_loss(itself, model, inputs, False)
    return loss, {name: values[-1] for name, values in metrics["train"].items() if values}


_METRICS = (
    "entropy",
    "logits/chosen",
    "logits/rejected",
    "mean_token_accuracy",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def compare(
    count: int, preference: Preference, kind: str, also: str | None = None, weight: float = 1.0
) -> Any:
    """Our loss and gradient are TRL's of `kind`, plus `weight` times `also`. Returns what both measure."""
    batch, logp_bt, counted = laid_out(count)
    logp_bt = logp_bt.requires_grad_()
    total, sums_k = of_pairs(logp_bt, batch, preference)
    (ours,) = torch.autograd.grad(total / count, logp_bt)

    logp, mask = as_trl_has_it(batch, logp_bt, counted)
    reference, _ = as_trl_has_it(batch, batch.extra["reference"], counted)
    loss, metrics = trl_loss(kind, preference.beta, logp, reference, mask)
    if also:
        loss = loss + weight * trl_loss(also, preference.beta, logp, reference, mask)[0]
    (theirs,) = torch.autograd.grad(loss, logp_bt)
    torch.testing.assert_close(total.detach() / count, loss.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)
    return measures(sums_k.tolist()), metrics


@pytest.mark.parametrize(
    ("loss", "beta", "kind"),
    [("dpo", 0.1, "sigmoid"), ("dpo", 2.0, "sigmoid"), ("apo_zero", 0.1, "apo_zero")],
)
def test_as_trl(loss: str, beta: float, kind: str) -> None:
    ours, theirs = compare(9, Preference(loss, beta, 0.0, 0.0), kind)
    for name, its in (
        ("reward_chosen", "rewards/chosen"),
        ("reward_rejected", "rewards/rejected"),
        ("margin", "rewards/margins"),
        ("accuracy", "rewards/accuracies"),
    ):
        assert ours[name] == pytest.approx(theirs[its], rel=1e-5), name


def test_mean_log_ratios_as_trl() -> None:
    compare(9, Preference("dpo_norm", 5.0, 0.0, 0.0), "sigmoid_norm")


def test_label_smoothing_as_trl() -> None:
    """Of TRL's losses "aot" has it: it sorts the pairs of a batch first, and one pair is in order."""
    compare(1, Preference("dpo", 0.1, 0.2, 0.0), "aot")


def test_the_chosen_replys_own_loss_as_trl() -> None:
    """TRL's "sft" is the mean over all chosen tokens, ours over each pair's first: of one pair the same."""
    compare(1, Preference("dpo", 0.1, 0.0, 0.7), "sigmoid", "sft", 0.7)
