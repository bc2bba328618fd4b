"""How many processes a run gets."""

from typing import Any

import pytest

from pilgrim.core.errors import SettingsError
from pilgrim.launch import count


@pytest.mark.parametrize(
    ("asked", "recipe", "gpus", "found"),
    [
        (None, {}, 0, 1),
        (None, {}, 8, 8),
        (None, {"runtime": {"device": "cpu"}}, 8, 1),
        (None, {"runtime": {"device": "mps"}}, 0, 1),
        (1, {}, 8, 1),
        (4, {}, 8, 4),
        (4, {}, 0, 4),
        (12, {"runtime": {"device": "cpu"}}, 8, 12),
        (None, {"runtime": "nonsense"}, 2, 2),
    ],
)
def test_one_for_each_gpu(asked: int | None, recipe: dict[str, Any], gpus: int, found: int) -> None:
    assert count.how_many(asked, recipe, lambda: gpus) == found


def test_more_than_there_are_gpus_is_refused() -> None:
    with pytest.raises(SettingsError) as error:
        count.how_many(3, {}, lambda: 2)
    assert str(error.value) == (
        "--processes 3: each needs a GPU of its own, and 2 can be used here; "
        "write --processes 2, or runtime.device=cpu"
    )


def test_torch_is_asked_where_a_driver_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "SIGNS", ("/",))
    monkeypatch.setattr(count, "ASK_TORCH", "print(3)")
    assert count.visible_gpus() == 3
    monkeypatch.setattr(count, "ASK_TORCH", "raise OSError")
    assert count.visible_gpus() == 0
