"""Drawing tokens: each filter against its definition spelled out, and what a draw picks."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pilgrim.core.config import build
from pilgrim.core.errors import SettingsError
from pilgrim.infer.sampling import Sampling, biased, choose, penalized, probabilities, token_scores

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


@pytest.mark.parametrize("dials", [{"top_p": 5e-324}, {"temperature": 5e-324}, {"temperature": 1e-300}])
def test_what_is_nearly_0_leaves_the_likeliest(dials: dict[str, Any]) -> None:
    """In fp32 such a number is 0."""
    scores = random_scores(1)
    for others in ([], [Sampling()]):  # as a number, and as a column
        rows = [Sampling(**dials)] * (3 - len(others)) + others
        ids = choose(scores, [[]] * 3, rows, [0.5] * 3)
        assert ids[:2].tolist() == scores.argmax(-1)[:2].tolist()


def test_a_tiny_temperature_does_not_overflow() -> None:
    scores = torch.tensor([[1.0, 3e4, 2e4]])
    ids = choose(scores, [[]], [Sampling(temperature=1e-30)], [0.5])
    assert ids.tolist() == [1]


def test_bf16_scores_are_computed_with_in_fp32() -> None:
    scores_bv = random_scores(3).bfloat16()
    dials = [Sampling(top_p=0.9)] * 3
    same = choose(scores_bv.float(), [[]] * 3, dials, [0.5] * 3)
    assert torch.equal(choose(scores_bv, [[]] * 3, dials, [0.5] * 3), same)


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


# Rows with dials of their own -----------------------------------------------------------------------

DIALS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 5, 100]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    penalty_window=st.sampled_from([1, 3, 64]),
    dry_multiplier=st.sampled_from([0.0, 0.8]),
    dry_base=st.sampled_from([1.0, 1.75]),
    dry_allowed=st.integers(1, 3),
)
ROWS = st.lists(
    st.tuples(
        DIALS,
        st.lists(st.integers(0, 4), max_size=12),
        st.floats(1e-9, 1.0),
        st.dictionaries(st.integers(0, V - 1), st.sampled_from([-100.0, 2.5, 100.0]), max_size=2),
    ),
    min_size=1,
    max_size=5,
)


def slow_dry(scores: list[float], ids: list[int], sampling: Sampling) -> list[float]:
    """The definition: how long is the repetition that the next token of each place would go on with?"""
    longest: dict[int, int] = {}
    for place in range(len(ids) - 1):
        length = 0
        while length <= place and ids[place - length] == ids[-1 - length]:
            length += 1
        longest[ids[place + 1]] = max(longest.get(ids[place + 1], 0), length)
    out = list(scores)
    for token, length in longest.items():
        if sampling.dry_multiplier and length >= sampling.dry_allowed:
            out[token] -= sampling.dry_multiplier * sampling.dry_base ** (length - sampling.dry_allowed)
    return out


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 1000))
def test_each_row_is_treated_as_if_it_were_alone(
    rows: list[tuple[Sampling, list[int], float, dict[int, float]]], seed: int
) -> None:
    scores_bv = random_scores(seed, b=len(rows))
    dials, recent, draws, biases = (list(column) for column in zip(*rows, strict=True))
    together = choose(scores_bv, recent, dials, draws, biases)
    alone = [
        choose(scores_bv[i : i + 1], [recent[i]], [dials[i]], [draws[i]], [biases[i]])
        for i in range(len(rows))
    ]
    assert together.tolist() == [int(ids) for ids in alone]
    for i, (sampling, ids, _, bias) in enumerate(rows):
        expected = [score + bias.get(token, 0.0) for token, score in enumerate(scores_bv[i].tolist())]
        used = set(ids[-sampling.penalty_window :])
        penalty = sampling.repetition_penalty
        expected = [
            (s / penalty if s > 0 else s * penalty) if token in used else s
            for token, s in enumerate(expected)
        ]
        expected = slow_dry(expected, ids, sampling)
        found = penalized(biased(scores_bv[i : i + 1], [bias]), [ids], [sampling])[0]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-4)


def test_dry_gets_stronger_with_the_repetition() -> None:
    sampling = Sampling(dry_multiplier=1, dry_base=2, dry_allowed=2)
    scores = torch.zeros(1, 10)
    lost = [
        -float(penalized(scores, [ids], [sampling])[0, 4])
        for ids in ([3], [3, 4, 3], [2, 3, 4, 2, 3], [1, 2, 3, 4, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1, 2, 3])
    ]
    assert lost == [0, 0, 1, 2, 4]


def test_a_long_repetition_stays_finite() -> None:
    sampling = Sampling(dry_multiplier=10, dry_base=4)
    assert torch.isfinite(penalized(torch.zeros(1, 5), [[1] * 500], [sampling])).all()


def test_log_probabilities_are_the_models_own() -> None:
    logits_bv = random_scores(7)
    found = token_scores(logits_bv, [4, 5, 6], [2, None, 0])
    assert found[1] is None
    for row, token, top in ((0, 4, 2), (2, 6, 0)):
        told = found[row]
        assert told is not None
        log_probs = logits_bv[row].double().log_softmax(-1)
        assert told.log_prob == pytest.approx(float(log_probs[token]), abs=1e-5)
        assert [i for i, _ in told.likeliest] == log_probs.argsort(descending=True)[:top].tolist()
        assert [p for _, p in told.likeliest] == pytest.approx(
            [float(log_probs[i]) for i, _ in told.likeliest]
        )
