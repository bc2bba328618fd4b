"""`pilgrim bench infer` on a tiny run: every number is there, and the arithmetic is honest."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pilgrim.core.files import read_json
from pilgrim.model.config import ModelSettings
from pilgrim.model.count import kv_cache_bytes, parameters
from pilgrim.stages import bench


def test_a_run_is_measured(run: Path, pilgrim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BATCHES", (1, 3))
    result = pilgrim("bench", "infer", run, "--tokens", 16, "--rounds", 1, "--prompt", 5, "--cache", "int8")
    assert result.exit_code == 0, result.output
    rows = read_json(run / "bench" / "infer.json")
    assert [row["texts"] for row in rows] == [1, 3]
    for row in rows:
        times = [*row["ours"].values(), *row["theirs"].values(), row["bandwidth_share"]]
        assert all(math.isfinite(time) and time > 0 for time in times)
        assert row["cache_bytes"] > 0


def test_what_must_be_read_is_counted() -> None:
    plain = ModelSettings(depth=4, width=64, context=512).config(vocab_size=300)
    matrices = parameters(plain).matrices + 300 * 64
    cache = kv_cache_bytes(plain, torch.bfloat16)
    assert bench.bytes_per_step(plain, torch.bfloat16, 3, 200) == 2 * matrices + 3 * 200 * cache
    windowed = ModelSettings(depth=4, width=64, context=512, window=50).config(vocab_size=300)
    seen = (3 * 50 + 200) / (4 * 200)
    assert bench.bytes_per_step(windowed, torch.bfloat16, 3, 200) == 2 * matrices + 3 * 200 * cache * seen


def test_fewer_bits_are_fewer_bytes() -> None:
    config = ModelSettings(depth=4, width=64, context=512).config(vocab_size=300)
    whole, eight, four = (
        bench.bytes_per_step(config, torch.bfloat16, 0, 1, w) for w in ("full", "int8", "int4")
    )
    assert whole == 2 * eight and four == eight * 5 / 8  # with two numbers of 16 bits for 32 weights


def test_a_cache_of_8_bits_is_counted_with_its_scales() -> None:
    config = ModelSettings(depth=4, width=64, head_size=32, context=512).config(vocab_size=300)
    whole, eight = (
        bench.bytes_per_step(config, torch.bfloat16, 5, 200, cache=c)
        - bench.bytes_per_step(config, torch.bfloat16, 0, 200, cache=c)
        for c in ("full", "int8")
    )
    assert eight == whole * (32 + 2) / 64


def test_tokens_that_fill_the_context_are_refused(run: Path, pilgrim: Callable[..., Any]) -> None:
    result = pilgrim("bench", "infer", run, "--tokens", 5000)
    assert result.exit_code == 2 and "--tokens 5000 leaves no room for a prompt" in result.output.replace(
        "\n", " "
    )
