"""Preference losses on small numbers: values, gradients, and sums that do not depend on the cut."""

import math

import pytest
import torch
from torch import Tensor

from pilgrim.data.loader import IGNORED, Batch
from pilgrim.data.pairs import REFERENCE
from pilgrim.train.preference import (
    SUMS,
    Preference,
    Replies,
    count_pairs,
    measures,
    of_pairs,
    pair_losses,
    rewards,
    sum_by_document,
)
from pilgrim.train.preference_eval import standard_error

KINDS = [
    Preference("dpo", 0.1, 0.0, 0.0),
    Preference("dpo", 1.0, 0.2, 0.5),
    Preference("dpo_norm", 5.0, 0.1, 0.0),
]
KINDS += [Preference("apo_zero", 0.5, 0.0, 0.0), Preference("apo_zero", 0.5, 0.0, 1.0)]


def loss(ratios: tuple[float, float], preference: Preference, tokens: tuple[int, int] = (4, 4)) -> float:
    replies = Replies(torch.tensor([ratios]), torch.tensor([tokens]))
    return float(pair_losses(rewards(replies, preference), preference))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values() -> None:
    dpo, smooth = Preference("dpo", 0.5, 0, 0), Preference("dpo", 0.5, 0.25, 0)
    norm, apo = Preference("dpo_norm", 2.0, 0, 0), Preference("apo_zero", 0.5, 0, 0)
    assert loss((0, 0), dpo) == pytest.approx(math.log(2))
    assert loss((3, 1), dpo) == pytest.approx(-math.log(sigmoid(1)))
    assert loss((-5, -7), dpo) == pytest.approx(loss((3, 1), dpo))  # only the difference counts
    mixed = -0.75 * math.log(sigmoid(1)) - 0.25 * math.log(sigmoid(-1))
    assert loss((3, 1), smooth) == pytest.approx(mixed)
    assert loss((3, 1), norm, (6, 1)) == pytest.approx(-math.log(sigmoid(-1)))  # 0.5 a token against 1
    assert loss((0, 0), apo) == pytest.approx(1)
    assert loss((2, -2), apo) == pytest.approx(2 * (1 - sigmoid(1)))
    assert loss((-2, -6), apo) > loss((2, -2), apo)  # where the difference is the same


def batch(seed: int) -> tuple[Batch, Tensor]:
    """Three rows of 96 tokens with three, one and no pairs; and log-probabilities."""
    dice = torch.Generator().manual_seed(seed)
    targets = torch.full((3, 96), IGNORED)
    documents = torch.full((3, 96), -1, dtype=torch.int32)
    for row, lengths in ((0, (12, 14, 13, 20, 15, 22)), (1, (30, 25))):
        at = 0
        for number, length in enumerate(lengths):
            documents[row, at : at + length] = number
            targets[row, at + 8 : at + length - 1] = 1
            at += length
    counted = targets != IGNORED
    logp, reference = (-2 * torch.rand(3, 96, generator=dice, dtype=torch.float64) * counted for _ in "12")
    return Batch(targets.clamp(min=0), targets, documents, extra={REFERENCE: reference}), logp


@pytest.mark.parametrize("preference", KINDS)
def test_gradients(preference: Preference) -> None:
    some, logp = batch(1)
    found = logp.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: of_pairs(x, some, preference)[0], found)
    total, sums_k = of_pairs(found, some, preference)
    (gradient,) = torch.autograd.grad(total, found)
    assert not sums_k.requires_grad
    assert gradient[2].abs().sum() == 0 and torch.isfinite(gradient).all()
    assert gradient[some.targets_bt == IGNORED].abs().sum() == 0  # the prompt is read, not learned
    chosen = (some.documents_bt % 2 == 0) & (some.documents_bt >= 0) & (some.targets_bt != IGNORED)
    rejected = (some.documents_bt % 2 == 1) & (some.targets_bt != IGNORED)
    if not preference.label_smoothing:
        assert (gradient[chosen] < 0).all() and (gradient[rejected] > 0).all()


@pytest.mark.parametrize("preference", KINDS)
def test_any_cut_into_microbatches_gives_the_same_sums(preference: Preference) -> None:
    some, logp = batch(2)
    total, sums = of_pairs(logp, some, preference)
    parts = [of_pairs(logp[i : i + 1], micro, preference) for i, micro in enumerate(some.micro(1))]
    torch.testing.assert_close(sum(part[0] for part in parts), total)
    torch.testing.assert_close(sum(part[1] for part in parts), sums)
    assert count_pairs(some) == int(sums[SUMS.index("pairs")]) == 4
    assert [count_pairs(micro) for micro in some.micro(1)] == [3, 1, 0]


def test_where_nothing_has_changed_nothing_is_preferred() -> None:
    some, logp = batch(3)
    still = Batch(some.inputs_bt, some.targets_bt, some.documents_bt, extra={REFERENCE: logp})
    total, sums = of_pairs(logp, still, KINDS[0])
    found = measures(sums.tolist())
    assert float(total) == pytest.approx(4 * math.log(2))
    assert found["pairs"] == 4 and found["preference_loss"] == pytest.approx(math.log(2))
    zero = ("reward_chosen", "reward_rejected", "margin", "accuracy", "kl_chosen", "kl_rejected")
    assert all(found[name] == 0 for name in zero)


def test_the_estimate_of_kl_is_right_on_average() -> None:
    """Over words drawn from the reference, of another distribution over three words."""
    reference, now = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    drawn = torch.multinomial(
        reference, 96 - 24, replacement=True, generator=torch.Generator().manual_seed(1)
    )
    counts = torch.bincount(drawn, minlength=3)
    targets = torch.full((1, 96), IGNORED)
    targets[0, 12 : 96 - 12] = drawn
    documents = torch.zeros(1, 96, dtype=torch.int32)
    documents[0, 84:] = 1
    at = targets.clamp(min=0)
    some = Batch(at, targets, documents, extra={REFERENCE: reference.log()[at]})
    found = measures(of_pairs(now.log()[at], some, KINDS[0])[1].tolist())
    r = now / reference
    assert found["kl_chosen"] == pytest.approx(float((counts * (r - 1 - r.log())).sum() / 72), rel=1e-4)
    assert found["kl_chosen"] == pytest.approx(float((reference * (reference / now).log()).sum()), abs=0.15)


def test_sums_by_document() -> None:
    documents = torch.tensor([[0, 0, 1, 2, 2, -1], [0, 1, 1, 1, -1, -1]], dtype=torch.int32)
    x = torch.arange(12.0).view(2, 6)
    expected = torch.tensor([[1.0, 2.0, 7.0, 0.0], [6.0, 24.0, 0.0, 0.0]])
    assert torch.equal(sum_by_document(x, documents, 4), expected)


def test_the_error_of_a_mean() -> None:
    assert standard_error(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(1 / math.sqrt(3))
    assert standard_error(torch.tensor([1.0])) is None
