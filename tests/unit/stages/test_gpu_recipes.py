"""The recipes for one GPU: they load without their text, fit the cards they name, and say what is missing."""

from pathlib import Path

import pytest
import torch

from pilgrim.core.errors import DataError
from pilgrim.model.memory import rows_that_fit, training_bytes
from pilgrim.stages.journey import chosen, run_journey
from pilgrim.stages.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
USABLE = 0.9  # of a card's memory: CUDA itself, the allocator's gaps and a desktop take some


def recipe(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.toml", [])


@pytest.mark.parametrize(("name", "width", "parameters_m"), [("d12", 768, 142), ("d20", 1280, 510)])
def test_it_is_a_whole_journey_of_the_size_it_says(name: str, width: int, parameters_m: int) -> None:
    found = recipe(name)
    assert chosen(found, None, None) == ["tokenizer", "shards", "pretrain", "midtrain", "sft", "evaluate"]
    assert (found.model.width, found.model.context, found.tokenizer.vocab_size) == (width, 2048, 32768)
    assert f"{parameters_m} million parameters" in (RECIPES / f"{name}.toml").read_text()
    assert found.pretrain.rows and found.pretrain.rows * found.model.context == 524_288


@pytest.mark.parametrize("card_gb", [32, 80])
@pytest.mark.parametrize(("name", "rows_on_32", "rows_on_80"), [("d12", 16, 64), ("d20", 8, 16)])
def test_it_fits_cards_of_32_and_of_80_gb(name: str, rows_on_32: int, rows_on_80: int, card_gb: int) -> None:
    """The rows that its head promises, and the microbatch that it resolves to, where it names one."""
    found = recipe(name)
    config = found.model.config(found.tokenizer.vocab_size)
    memory = USABLE * card_gb * 1e9
    assert rows_that_fit(config, memory, torch.bfloat16) >= (rows_on_32 if card_gb == 32 else rows_on_80)
    for stage in (found.pretrain, found.midtrain, found.sft):
        assert stage is not None
        rows = stage.micro_rows or 1  # without a number it is measured on the card
        assert training_bytes(config, rows, torch.bfloat16).total < memory


@pytest.mark.parametrize("name", ["d12", "d20"])
def test_missing_text_is_told_before_anything_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        run_journey(RECIPES / f"{name}.toml", [])
    assert str(error.value) == (
        "[data] names data/text.jsonl.zst, but there is no file data/text.jsonl.zst; "
        "mend the path, or make the file"
    )
    assert list(tmp_path.iterdir()) == []
