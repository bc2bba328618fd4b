"""Training adapters through the loop: what moves, what is saved, and that it goes on to the same bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import ChangedRecipe
from pilgrim.core.runlog import read_rows
from pilgrim.infer.load import load_model
from pilgrim.model.lora import LoraSettings, adapt, adapters
from pilgrim.model.transformer import Transformer
from pilgrim.train.loop import Loop, Parts
from pilgrim.train.settings import TrainSettings

LORA = LoraSettings(rank=4, lr=0.01)
MakeParts = Callable[..., Parts]
NewModel = Callable[..., Transformer]


class Unplugged(Exception):
    """What ends a run in its middle."""


@pytest.fixture
def lora_parts(make_parts: MakeParts, new_model: NewModel) -> MakeParts:
    """lora_parts("a", lora=LORA, steps=20): what a stage with adapters begins with."""

    def make(name: str, lora: LoraSettings = LORA, **changes: Any) -> Parts:
        model = new_model()
        adapt(model, lora, torch.Generator().manual_seed(5))
        return make_parts(name, model=model, adapter_lr=lora.lr, **changes)

    return make


def test_frozen_weights_stay_to_the_bit(lora_parts: MakeParts, new_model: NewModel) -> None:
    parts, before = lora_parts("a"), new_model().weights()
    first = {name: adapter.clone() for name, adapter in adapters(parts.model).items()}
    Loop(parts).run()
    own = {name: p for name, p in parts.model.named_parameters() if ".lora." not in name}
    assert own.keys() == before.keys()
    assert all(torch.equal(own[name], before[name]) for name in own)
    assert all(p.grad is None for p in own.values())
    assert all(not torch.equal(first[name], now) for name, now in adapters(parts.model).items())
    rows = read_rows(parts.folder / "metrics.jsonl")
    assert max(row["learning_rate"] for row in rows) == pytest.approx(LORA.lr)
    evals = read_rows(parts.folder / "evals.jsonl")
    assert evals[-1]["loss"] < evals[0]["loss"]


def test_optimizers_remember_adapters_only(lora_parts: MakeParts) -> None:
    parts = lora_parts("a")
    numbers = sum(adapter.numel() for adapter in adapters(parts.model).values())
    assert parts.optimizers.missing_bytes() == 4 * 2 * numbers
    Loop(parts).run()
    assert {name.rpartition("/")[0] for name in parts.optimizers.tensors()} == adapters(parts.model).keys()
    assert parts.optimizers.missing_bytes() == 0


def test_others_read_merged_weights(lora_parts: MakeParts, new_model: NewModel) -> None:
    parts = lora_parts("a")
    Loop(parts).run()
    read = load_model(parts.folder).weights()
    assert read.keys() == new_model().weights().keys()
    assert all(torch.equal(read[name], weight) for name, weight in parts.model.weights().items())
    found = CheckpointStore(parts.folder / "checkpoints").load_latest(print)
    assert found is not None
    assert found.tensors["adapter"].keys() == adapters(parts.model).keys()


@pytest.mark.parametrize("stop", [4, 8])
def test_it_goes_on_to_the_same_bits(lora_parts: MakeParts, stop: int) -> None:
    Loop(lora_parts("whole")).run()
    with pytest.raises(Unplugged):
        Loop(lora_parts("resumed", evaluate=lambda measured: interrupted(measured, stop + 1))).run()
    whole, resumed = lora_parts("whole"), lora_parts("resumed")
    Loop(resumed).run()
    names = ("model.safetensors", "adapter.safetensors", "optimizer.safetensors")
    for name in names:
        one, other = (p.folder / "checkpoints" / "step_000012" / name for p in (whole, resumed))
        assert one.read_bytes() == other.read_bytes(), name
    assert metrics(whole.folder) == metrics(resumed.folder)


def interrupted(measured: Callable[[int], dict[str, float]], at: int) -> Callable[[int], dict[str, float]]:
    def evaluate(step: int) -> dict[str, float]:
        if step >= at:
            raise Unplugged
        return measured(step)

    return evaluate


def metrics(folder: Path) -> bytes:
    return (folder / "metrics.jsonl").read_bytes()


def test_adapters_of_another_recipe_are_refused(lora_parts: MakeParts, make_parts: MakeParts) -> None:
    Loop(lora_parts("a")).run()
    with pytest.raises(
        ChangedRecipe, match="with LoRA of rank 4 in 7 matrices, and the recipe now says with"
    ):
        Loop(lora_parts("a", lora=LORA.model_copy(update={"rank": 2}))).run()
    with pytest.raises(ChangedRecipe, match="the recipe now says without LoRA"):
        Loop(make_parts("a")).run()
    Loop(make_parts("full")).run()
    with pytest.raises(ChangedRecipe, match="it was trained without LoRA"):
        Loop(lora_parts("full")).run()


def test_adapters_of_other_weights_are_refused(lora_parts: MakeParts) -> None:
    Loop(lora_parts("a")).run()
    parts = lora_parts("a")
    with torch.no_grad():
        dict(parts.model.named_parameters())["model.layers.0.mlp.up_proj.weight"][0, 0] += 0.01
    with pytest.raises(ChangedRecipe, match=r"up_proj.weight differs"):
        Loop(parts).run()


def test_pretraining_has_nothing_to_adapt() -> None:
    settings = TrainSettings(lora=LoraSettings())
    assert "begins with none" in str(settings.contradiction("pretrain"))
    assert settings.contradiction("sft") is None
