"""The one-dial rules at their anchor, and how they move away from it."""

import pytest

from pilgrim.optim.scaling import (
    ANCHOR_BATCH_TOKENS,
    ANCHOR_HORIZON_TOKENS,
    ANCHOR_RATES,
    ANCHOR_WIDTH,
    batch_tokens,
    horizon_tokens,
    learning_rates,
)


def test_at_the_anchor_nothing_is_scaled() -> None:
    assert learning_rates(ANCHOR_WIDTH) == ANCHOR_RATES
    assert batch_tokens(ANCHOR_HORIZON_TOKENS, 512) == ANCHOR_BATCH_TOKENS


def test_batches_are_powers_of_two_that_grow_with_the_horizon() -> None:
    batches = [batch_tokens(10.0**power, 512) for power in range(4, 12)]
    assert batches == sorted(batches)
    assert batches[-1] > 10 * batches[2]
    assert all(batch & (batch - 1) == 0 for batch in batches)


def test_a_batch_has_at_least_one_row() -> None:
    assert batch_tokens(1.0, 384) == 384
    assert batch_tokens(1e4, 2048) == 2048


def test_only_embedding_and_head_learn_slower_in_wider_models() -> None:
    rates = learning_rates(4 * ANCHOR_WIDTH)
    assert (rates.matrix, rates.norm) == (ANCHOR_RATES.matrix, ANCHOR_RATES.norm)
    assert rates.embedding == pytest.approx(ANCHOR_RATES.embedding / 2)
    assert rates.head == pytest.approx(ANCHOR_RATES.head / 2)


def test_the_horizon_is_twelve_tokens_a_parameter() -> None:
    assert horizon_tokens(1_000_000) == 12_000_000
