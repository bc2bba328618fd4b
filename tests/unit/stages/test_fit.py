"""A recipe that cannot fit is refused in a sentence, before anything is made."""

from typing import Any

import pytest
import torch

from pilgrim.core import machine
from pilgrim.core.config import build
from pilgrim.core.errors import SettingsError
from pilgrim.core.runtime import Runtime
from pilgrim.model.memory import training_bytes
from pilgrim.stages.fit import Room, cannot_fit, check
from pilgrim.stages.recipe import Recipe

BF16 = torch.bfloat16
CPU = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)


def recipe(**tables: Any) -> Recipe:
    return build(Recipe, {"name": "big", "tokenizer": {"vocab_size": 32768}, **tables}, "x.toml").resolved()


def told(room: Room, **model: Any) -> str | None:
    given = recipe(model={"context": 2048, **model})
    return cannot_fit(given, training_bytes(given.model.config(32768), 1, BF16), room)


def test_what_fits_is_let_through() -> None:
    assert told(Room("NVIDIA GeForce RTX 5090", 34_000_000_000, 33_000_000_000), depth=20) is None


def test_a_model_that_is_too_large_for_the_card() -> None:
    assert told(Room("NVIDIA GeForce RTX 4090", 25_000_000_000, 24_000_000_000), depth=48) == (
        "big: training needs 99.3 GB even with one row at a time (weights 36.3, gradients 24.4, optimizer "
        "25.2, activations 12.7, loss 0.7), and NVIDIA GeForce RTX 4090 has 25.0 GB; lower model.depth = 48"
    )


def test_rows_that_are_too_long_for_the_card() -> None:
    found = told(Room("NVIDIA A10", 24_000_000_000, 23_000_000_000), depth=20, context=65536)
    assert found is not None and found.endswith("lower model.context = 65536, or model.depth = 20")


def test_a_card_that_others_use() -> None:
    room = Room(
        "NVIDIA A10", 24_000_000_000, 4_000_000_000, "other processes hold 20.0 of the 24.0 GB; end them"
    )
    found = told(room, depth=20)
    assert found is not None
    assert found.endswith(
        "has 24.0 GB, of which 4.0 are free: other processes hold 20.0 of the 24.0 GB; end them"
    )


def test_this_machine_is_asked() -> None:
    assert check(recipe(), CPU) == []
    total, _ = machine.memory_bytes()
    with pytest.raises(SettingsError, match=f"and this machine has {total / 1e9:.1f} GB; lower model.depth"):
        check(recipe(model={"depth": 199}), CPU)
