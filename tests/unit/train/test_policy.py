"""The policy gradient beside its slow twin: written out with softmax, and one reply at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.data.loader import IGNORED, Batch
from pilgrim.train.policy import advantages, by_size, clipped_losses, distance, measures, policy_objective
from pilgrim.train.rollouts import Rollout, batch_of, learned_from, told

WIDTH, VOCABULARY, END = 8, 23, 0


def reply(group: int, reward: float | None, ids: list[int], drawn: list[bool] | None = None) -> Rollout:
    prompt = [END, 5, 6 + group]
    return Rollout(
        task="some", line=1, group=group, prompt="?", reply="!", reward=reward, solved=reward == 1,
        ended=True, calls=0, why="", prompt_ids=prompt, ids=ids, drawn=drawn or [True] * len(ids),
        logprobs=[-1.0 - i / 10 for i in range(len(ids))], reference=[-2.0] * len(ids),
    )  # fmt: skip


ROUND = [
    reply(0, 1.0, [7, 8, 2]),
    reply(0, 0.0, [9, 10, 11, 12, 2], [True, False, False, True, True]),
    reply(1, 1.0, [7, 2]),
    reply(1, 1.0, [8, 2]),
    reply(2, 0.5, [3, 2]),
    reply(2, None, [4, 4]),
    reply(2, 0.0, [5, 2]),
]


def test_advantages_are_what_is_better_than_the_groups_mean() -> None:
    assert advantages([1.0, 0.0, 0.0, 0.0], False) == [0.75, -0.25, -0.25, -0.25]
    assert advantages([1.0, 0.0], True) == [1.0, -1.0]
    assert advantages([1.0, None, 0.0], False) == [0.5, 0.0, -0.5]  # None is not in the mean


@pytest.mark.parametrize("rewards", [[1.0, 1.0], [0.0, None, 0.0], [1.0, None], [None, None]])
def test_a_group_that_is_equally_good_teaches_nothing(rewards: list[float | None]) -> None:
    assert advantages(rewards, True) == [0.0] * len(rewards)


def test_groups_without_differences_and_replies_without_reward_are_left_out() -> None:
    found = learned_from(ROUND, False)
    assert [[r.ids for r, _ in group] for group in found] == [
        [[7, 8, 2], [9, 10, 11, 12, 2]],
        [[3, 2], [5, 2]],
    ]
    assert [[value for _, value in group] for group in found] == [[0.5, -0.5], [0.25, -0.25]]


def test_what_is_trained_is_what_was_drawn_the_stop_token_too() -> None:
    pairs = [pair for group in learned_from(ROUND, False) for pair in group]
    batch = batch_of(pairs, 16, END)
    for rollout, value in pairs:
        whole = rollout.prompt_ids + rollout.ids
        row, first = next(
            (row, at)
            for row in range(len(batch.inputs_bt))
            for at in range(16)
            if batch.inputs_bt[row, at : at + len(whole) - 1].tolist() == whole[:-1]
            and batch.targets_bt[row, at + len(whole) - 2] == whole[-1]
        )
        here = slice(first + len(rollout.prompt_ids) - 1, first + len(whole) - 1)
        targets = [i if drawn else IGNORED for i, drawn in zip(rollout.ids, rollout.drawn, strict=True)]
        assert batch.targets_bt[row, here].tolist() == targets
        assert batch.targets_bt[row, first : here.start].tolist() == [IGNORED] * (len(rollout.prompt_ids) - 1)
        torch.testing.assert_close(batch.extra["advantage"][row, here], value * torch.tensor(rollout.drawn))
        assert len({int(d) for d in batch.documents_bt[row, first : here.stop]}) == 1
    assert batch.trained_tokens == 3 + 3 + 2 + 2
    assert batch_of([], 16, END).trained_tokens == 0


def random_head(batch: Batch) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(*batch.inputs_bt.shape, WIDTH, generator=generator, requires_grad=True)
    return hidden, torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True)


@pytest.mark.parametrize(("kl", "temperature", "softcap"), [(0.0, 1.0, None), (0.3, 0.7, 4.0)])
def test_the_loss_is_the_formula_written_out(kl: float, temperature: float, softcap: float | None) -> None:
    pairs = [pair for group in learned_from(ROUND, False) for pair in group]
    batch = batch_of(pairs, 16, END)
    hidden, head = random_head(batch)
    objective = policy_objective(0.2, 0.28, kl, temperature)
    losses = objective.head_loss(hidden, head, batch, softcap)
    found = torch.autograd.grad(losses.total, (hidden, head))

    scores = F.linear(hidden, head)
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    expected, clipped, drift, drift_kl = torch.zeros(()), 0, 0.0, 0.0
    for row, at in (batch.targets_bt != IGNORED).nonzero().tolist():
        log_p = (scores[row, at] / temperature).log_softmax(-1)[batch.targets_bt[row, at]]
        a, old, ref = (batch.extra[name][row, at] for name in ("advantage", "rollout", "reference"))
        ratio = (log_p - old).exp()
        bounded = ratio.clamp(0.8, 1.28) * a
        expected = (
            expected - torch.minimum(ratio * a, bounded) + kl * ((ref - log_p).exp() - (ref - log_p) - 1)
        )
        clipped += int(bounded < ratio * a)
        drift += float((log_p - old).detach().abs())
        drift_kl += float((ratio - 1 - (log_p - old)).detach())
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (hidden, head)), rtol=1e-4, atol=1e-4)
    assert losses.sums_k is not None
    row_of_log = objective.measures(losses.sums_k.tolist())
    assert row_of_log["clipped"] == pytest.approx(clipped / 10)
    assert row_of_log["drift"] == pytest.approx(drift / 10, rel=1e-5)
    assert row_of_log["drift_kl"] == pytest.approx(drift_kl / 10, rel=1e-5)
    assert ("kl" in row_of_log) == (kl > 0)


def test_the_mean_distance_over_what_the_first_draws_is_its_divergence() -> None:
    wrote, learns = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.1, 0.4])
    divergence = (wrote * (wrote.log() - learns.log())).sum()
    torch.testing.assert_close((wrote * distance(wrote.log(), learns.log())).sum(), divergence)
    tiny = distance(torch.zeros(1), torch.tensor([1e-4]))  # and no rounding is taken for a distance
    torch.testing.assert_close(tiny, torch.tensor([5e-9]), rtol=1e-3, atol=0)


def test_at_a_ratio_of_1_the_gradient_is_that_of_the_plain_policy_gradient() -> None:
    moved = torch.zeros(3, requires_grad=True)
    losses, clipped = clipped_losses(moved, torch.tensor([1.0, -0.5, 0.0]), 0.2, 0.28)
    assert torch.autograd.grad(losses.sum(), moved)[0].tolist() == [-1.0, 0.5, 0.0]
    assert not clipped.any()


def test_a_token_that_has_gone_far_enough_has_no_gradient_and_more_room_upwards() -> None:
    moved = torch.tensor([1.27, 1.29, 0.79, 0.81, 1.29, 0.79]).log().requires_grad_()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, 1.0])
    losses, clipped = clipped_losses(moved, advantage, 0.2, 0.28)
    (gradient,) = torch.autograd.grad(losses.sum(), moved)
    assert clipped.tolist() == [0, 1, 1, 0, 0, 0]
    assert (gradient == 0).tolist() == [False, True, True, False, False, False]


def test_microbatches_add_up_to_the_batch_and_padding_adds_nothing() -> None:
    pairs = [pair for group in learned_from(ROUND, False) for pair in group]
    batch = batch_of(pairs, 8, END)
    assert len(batch.inputs_bt) > 2
    hidden, head = random_head(batch)
    objective = policy_objective(0.2, 0.28, 0.1, 1.0)
    whole = objective.head_loss(hidden, head, batch, None)
    total, sums = torch.zeros(()), torch.zeros(())
    for number, micro in enumerate(batch.micro(2)):
        part = hidden[2 * number : 2 * number + 2]
        missing = 2 - len(part)
        losses = objective.head_loss(F.pad(part, (0, 0, 0, 0, 0, missing)), head, micro.filled(2), None)
        assert losses.sums_k is not None
        total, sums = total + losses.total, sums + losses.sums_k
    assert whole.sums_k is not None
    torch.testing.assert_close(total, whole.total)
    torch.testing.assert_close(sums, whole.sums_k)


@pytest.mark.parametrize("largest", [0.0, 1e-6, 0.01, 0.3, 2.0])
def test_the_largest_ratio_is_known_within_a_root_of_two(largest: float) -> None:
    moved = torch.tensor([0.0, largest / 3, -largest, 5.0])
    counts = torch.tensor([1.0, 1.0, 1.0, 0.0])
    found = math.log(measures([1.0] * 6 + by_size(moved, counts).tolist(), False)["largest_ratio"])
    assert (
        found == 0
        if largest == 0
        else largest * 0.999 <= found <= max(2**-12, largest * math.sqrt(2) * 1.001)
    )


def test_a_rounds_facts() -> None:
    facts = told(ROUND)
    assert facts["reward"] == pytest.approx(3.5 / 6)
    assert facts["solved"] == pytest.approx(3 / 7)
    assert facts["groups_dropped"] == pytest.approx(1 / 3)
    assert facts["without_reward"] == pytest.approx(1 / 7)
    means = [0.5, 1.0, 0.25]
    spread = math.sqrt(sum((m - sum(means) / 3) ** 2 for m in means) / 2)
    assert facts["reward_error"] == pytest.approx(spread / math.sqrt(3))
