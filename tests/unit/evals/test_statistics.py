"""Errors and tests beside what theory and counting say."""

import math
import random
from statistics import fmean, pstdev

import pytest
import torch

from pilgrim.evals.behaviour import Share
from pilgrim.evals.statistics import clustered_error, error_of_mean, paired, wilson


def test_standard_error_of_a_share() -> None:
    assert Share(25, 100).standard_error == pytest.approx(0.0433, abs=1e-4)
    assert Share(0, 100).standard_error == 0


def test_paired_counts_only_what_differs() -> None:
    found = paired([True, True, False, False, True], [True, False, True, True, True])
    assert (found.n, found.only_first, found.only_second) == (5, 1, 2)
    assert found.difference == pytest.approx(0.2)
    values = [0, -1, 1, 1, 0]
    assert found.standard_error == pytest.approx(pstdev(values) / math.sqrt(5))


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (3, 3, 1.0), (0, 5, 2 / 32), (1, 9, 2 * 11 / 1024), (9, 1, 2 * 11 / 1024)],
)
def test_mcnemar_is_a_coin(only_first: int, only_second: int, p: float) -> None:
    first = [True] * only_first + [False] * only_second + [True] * 4
    second = [False] * only_first + [True] * only_second + [True] * 4
    assert paired(first, second).p_value == pytest.approx(p)


def test_nothing_to_pair() -> None:
    for first, second in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="as many, and at least one"):
            paired(first, second)


def test_the_error_of_a_mean_over_independent_tasks() -> None:
    tasks = {"a": dict(enumerate([0.0, 1.0, 1.0, 1.0])), "b": dict(enumerate([0.0, 0.0, 1.0, 1.0]))}
    alone = [pstdev(values.values()) / 2 for values in tasks.values()]
    expected = math.hypot(*alone) / 2
    assert error_of_mean(tasks, {"a": "file a", "b": "file b"}) == pytest.approx(expected)


def test_tasks_of_the_same_items_err_together() -> None:
    """Asking the same question twice makes the mean no surer."""
    once = {"a": dict(enumerate([0.0, 1.0, 1.0, 1.0]))}
    twice = once | {"b": once["a"]}
    one = error_of_mean(once, {"a": "file"})
    assert error_of_mean(twice, {"a": "file", "b": "file"}) == pytest.approx(one)
    assert error_of_mean(twice, {"a": "file", "b": "other"}) == pytest.approx(one / math.sqrt(2))


def test_the_error_is_what_repetition_shows() -> None:
    """Over 2,000 draws of items, the means spread as one draw's error says."""
    dice = random.Random(1)
    means, errors = [], []
    for _ in range(2000):
        a = {item: float(dice.random() < 0.3) for item in range(50)}
        b = {item: a[item] if dice.random() < 0.5 else float(dice.random() < 0.6) for item in range(50)}
        means.append(fmean([fmean(a.values()), fmean(b.values())]))
        errors.append(error_of_mean({"a": a, "b": b}, {"a": "file", "b": "file"}))
    assert fmean(errors) == pytest.approx(pstdev(means), rel=0.06)


def test_questions_of_several_parts() -> None:
    """The error is that of a share where each question has one part, and larger where parts go together."""
    rights = [1, 0, 0, 1, 1, 0, 1, 1]
    alone = clustered_error(rights, [1] * 8)
    assert alone == pytest.approx(math.sqrt(5 / 8 * 3 / 8 / 8))
    assert clustered_error([3 * right for right in rights], [3] * 8) == pytest.approx(alone)
    assert clustered_error([2, 1], [2, 1]) == 0
    means = torch.Generator().manual_seed(1)
    draws = []
    for _ in range(400):  # 30 questions of two parts, which are both right or both wrong
        right = (torch.rand(30, generator=means) < 0.3).tolist()
        draws.append(2 * sum(right) / 60)
    spread = float(torch.tensor(draws).std())
    assert clustered_error([2] * 9 + [0] * 21, [2] * 30) == pytest.approx(spread, rel=0.15)


def test_wilson_takes_an_effective_number() -> None:
    low, high = wilson(0.5, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    assert wilson(0.5, 25.5)[0] < low < high < wilson(0.5, 25.5)[1]
    assert wilson(0.0, 10)[0] == 0 and wilson(1.0, 10)[1] == pytest.approx(1)
