"""Drawing tokens: each filter against its definition spelled out, and what a draw picks."""

import math

import pytest
import torch
from torch import Tensor

from pilgrim.core.config import build
from pilgrim.core.errors import SettingsError
from pilgrim.infer.sampling import Sampling, choose, penalized, probabilities

V = 40


def random_scores(seed: int, b: int = 3) -> Tensor:
    return torch.randn(b, V, generator=torch.Generator().manual_seed(seed)) * 3


def slow_probabilities(scores: list[float], sampling: Sampling) -> list[float]:
    """The definitions, one token at a time, in float64."""

    def softmax(kept: list[int]) -> dict[int, float]:
        exponentials = {i: math.exp(scores[i] / sampling.temperature) for i in kept}
        return {i: e / sum(exponentials.values()) for i, e in exponentials.items()}

    kept = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = kept[: sampling.top_k]
    reached, nucleus = 0.0, []
    for i, probability in softmax(kept).items():
        if reached < sampling.top_p or sampling.top_p == 1:  # rounding may reach 1 too early
            nucleus.append(i)
        reached += probability
    probs = softmax(nucleus)
    most = max(probs.values())
    probs = softmax([i for i in nucleus if probs[i] >= sampling.min_p * most])
    return [probs.get(i, 0.0) for i in range(len(scores))]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1),
        Sampling(temperature=0.3),
        Sampling(temperature=5),
        Sampling(temperature=1, top_k=1),
        Sampling(temperature=1, top_k=7),
        Sampling(temperature=1, top_k=1000),
        Sampling(temperature=1, top_p=0.01),
        Sampling(temperature=0.7, top_p=0.8),
        Sampling(temperature=1.5, top_p=0.999),
        Sampling(temperature=1, min_p=0.05),
        Sampling(temperature=2, min_p=1),
        Sampling(temperature=1.3, top_k=20, top_p=0.9, min_p=0.1),
    ],
    ids=str,
)
def test_the_filters_are_what_their_definitions_say(sampling: Sampling) -> None:
    for seed in range(30):
        scores_bv = random_scores(seed)
        expected = torch.tensor([slow_probabilities(row, sampling) for row in scores_bv.tolist()])
        probs_bv = probabilities(scores_bv, [sampling] * 3)
        assert torch.equal(probs_bv > 0, expected > 0)
        torch.testing.assert_close(probs_bv, expected, rtol=1e-5, atol=1e-7)


def test_the_penalty_is_what_its_definition_says() -> None:
    sampling = Sampling(repetition_penalty=1.5, penalty_window=3)
    scores_bv, recent = random_scores(1), [[], [4, 4], [9, 8, 7, 6, 8]]
    expected = scores_bv.clone()
    for row, used in enumerate([set(), {4}, {7, 6, 8}]):  # each once, and 9 is out of the window
        for i in used:
            expected[row, i] *= 1 / 1.5 if expected[row, i] > 0 else 1.5
    before = scores_bv.clone()
    torch.testing.assert_close(penalized(scores_bv, recent, [sampling] * 3), expected)
    assert torch.equal(scores_bv, before)


def test_draws_pick_each_token_as_often_as_its_probability() -> None:
    n = 10_000
    sampling = Sampling(temperature=1, top_k=12, top_p=0.95)
    scores_1v = random_scores(5, b=1)
    draws = [i / n for i in range(1, n + 1)]
    ids = choose(scores_1v.expand(n, V), [[]] * n, [sampling] * n, draws)
    counts = torch.bincount(ids, minlength=V)
    assert (counts - probabilities(scores_1v, [sampling])[0] * n).abs().max() <= 1


def test_the_extreme_draws_pick_only_what_was_kept() -> None:
    for seed in range(50):
        scores_bv = random_scores(seed, b=2)
        sampling = Sampling(temperature=1, top_k=3)
        ids = choose(scores_bv, [[], []], [sampling] * 2, [2.0**-53, 1.0])
        kept = probabilities(scores_bv, [sampling] * 2) > 0
        assert kept[0, ids[0]]
        assert kept[1, ids[1]]


def test_temperature_0_takes_the_likeliest_after_the_penalty() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.9], [1.0, 3.0, 2.9]])
    sampling = Sampling(temperature=0, repetition_penalty=1.1)
    assert choose(scores, [[], [1]], [sampling] * 2, [math.nan] * 2).tolist() == [1, 2]


def test_a_tiny_temperature_does_not_overflow() -> None:
    scores = torch.tensor([[1.0, 3e4, 2e4]])
    ids = choose(scores, [[]], [Sampling(temperature=1e-30)], [0.5])
    assert ids.tolist() == [1]


def test_bf16_scores_are_computed_with_in_fp32() -> None:
    scores_bv = random_scores(3).bfloat16()
    rows = [[]] * 3, [Sampling(top_p=0.9)] * 3, [0.5] * 3
    assert torch.equal(choose(scores_bv, *rows), choose(scores_bv.float(), *rows))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_spoiled_scores_are_told(bad: float, temperature: float) -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0, bad]])
    ids = choose(scores, [[], []], [Sampling(temperature=temperature)] * 2, [1.0, 1.0])
    assert ids.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.9),
        ("penalty_window", 0),
        ("max_tokens", 0),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_values_out_of_range_are_refused_in_a_sentence(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=rf"^here: {name} = .* should be "):
        build(Sampling, {name: value}, "here")
