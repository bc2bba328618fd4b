"""Bits per byte with an error: what adds up adds up, and the error is what drawing anew finds."""

import math

import numpy as np
import pytest

from pilgrim.evals.compression import Bits, as_json, bits, by_source


def some_documents(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Long and short documents, harder and easier ones; the long ones are easier."""
    dice = np.random.default_rng(seed)
    bytes_d = dice.lognormal(6, 1, count).astype(np.int64) + 1
    nats_d = bytes_d * (0.7 + 0.2 * dice.standard_normal(count)) * (1 - 0.02 * np.log(bytes_d))
    return nats_d, bytes_d


def test_by_hand() -> None:
    found = bits(np.array([math.log(2) * 10, math.log(2) * 30]), np.array([10, 10]))
    assert found is not None
    assert (found.bytes, found.documents) == (20, 2)
    assert found.bpb == pytest.approx(2)
    # Residuals -10 and +10 bits; sqrt(2 / 1 * 200) / 20
    assert found.standard_error == pytest.approx(1.0)
    assert found.nats == pytest.approx(40 * math.log(2))


def test_the_error_is_that_of_drawing_documents_anew() -> None:
    nats_d, bytes_d = some_documents(400)
    found = bits(nats_d, bytes_d)
    assert found is not None and found.standard_error is not None
    dice = np.random.default_rng(2)
    again = []
    for _ in range(1000):
        drawn = dice.integers(0, len(bytes_d), len(bytes_d))
        again.append(nats_d[drawn].sum() / bytes_d[drawn].sum() / math.log(2))
    assert found.standard_error == pytest.approx(np.std(again), rel=0.1)


def test_sources_add_up() -> None:
    nats_d, bytes_d = some_documents(90)
    bytes_d[:9] = 0  # conversations of which nothing is counted
    nats_d[:9] = 0
    source_d = np.random.default_rng(3).integers(0, 3, 90).astype(np.int32)
    found, whole = by_source(["a", "b", "c", "d"], source_d, nats_d, bytes_d), bits(nats_d, bytes_d)
    assert whole is not None
    assert list(found) == ["a", "b", "c"]
    assert sum(part.bytes for part in found.values()) == whole.bytes == bytes_d.sum()
    assert sum(part.documents for part in found.values()) == whole.documents == 81
    assert sum(part.nats for part in found.values()) == pytest.approx(whole.nats, rel=1e-12)


def test_one_document_and_none() -> None:
    one = bits(np.array([7.0]), np.array([10]))
    assert one == Bits(7 / 10 / math.log(2), None, 10, 1)
    assert bits(np.zeros(3), np.zeros(3, np.int64)) is None
    assert as_json(by_source(["a"], np.zeros(1, np.int32), np.array([0.0]), np.array([0]))) == {}
