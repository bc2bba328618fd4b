"""The smallest training there is: a few dozen random documents and a network of one layer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pilgrim.core.console import Console
from pilgrim.core.runlog import RunLog
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import PackedRows, one_pass
from pilgrim.data.shards import TokenSet
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers, OptimSettings
from pilgrim.train.fit import MicroBatch
from pilgrim.train.health import HealthSettings
from pilgrim.train.loop import Parts
from pilgrim.train.losses import token_losses
from pilgrim.train.settings import TrainSettings
from pilgrim.train.validation import validate

VOCABULARY, CONTEXT, END = 31, 16, 0
MODEL = ModelSettings(depth=1, width=16, head_size=8, context=CONTEXT)
TOKEN_BYTES = [0, *(1 + i % 3 for i in range(VOCABULARY - 1))]
RATES = OptimSettings(matrix_lr=0.02, embedding_lr=0.1, head_lr=0.01, norm_lr=0.01)
SETTINGS = TrainSettings(
    steps=12, rows=4, micro_rows=2, eval_every=5, checkpoint_every=4, warmup=3, decay=0.5, final_lr=0.1
)


def documents(lengths: list[int], seed: int) -> list[list[int]]:
    dice = np.random.default_rng(seed)
    return [[END, *dice.integers(1, VOCABULARY, length - 1).tolist()] for length in lengths]


def in_memory(texts: list[list[int]], masks: list[list[bool]] | None = None, name: str = "some") -> TokenSet:
    """A token set without the way over the disk."""
    starts = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    tokens = np.concatenate([np.array(text, dtype=np.uint16) for text in texts])
    trained = None if masks is None else np.concatenate([np.array(m, dtype=np.bool_) for m in masks])
    size = sum(TOKEN_BYTES[i] for text in texts for i in text)
    return TokenSet(name, tokens, starts, trained, {"bytes": size})


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)


@pytest.fixture(scope="session")
def token_set() -> Callable[..., TokenSet]:
    return in_memory


@pytest.fixture(scope="session")
def random_documents() -> Callable[[list[int], int], list[list[int]]]:
    return documents


@pytest.fixture(scope="session")
def new_model(runtime: Runtime) -> Callable[..., Transformer]:
    """new_model(width=24) is the same network each time it is made; blocks that start at zero are random."""

    def make(**changes: Any) -> Transformer:
        settings = ModelSettings.model_validate({**MODEL.model_dump(exclude_none=True), **changes})
        model = Transformer(settings.config(VOCABULARY))
        initialize(model, runtime.generator("initialize"))
        dice = runtime.generator("instead of zeros")
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.copy_(torch.randn(parameter.shape, generator=dice) * 0.1)
        return model

    return make


MakeParts = Callable[..., Parts]


@pytest.fixture(scope="session")
def parts_in(runtime: Runtime, new_model: Callable[..., Transformer]) -> MakeParts:
    """parts_in(folder, steps=20) is everything new, as after the start of a process, on that folder."""
    train = in_memory(documents([*range(3, 21)] * 2, seed=1), name="train")
    val = in_memory(documents([5, 30, 9, 14, 2], seed=2), name="val")

    def make(folder: Path, model: Transformer | None = None, **changes: Any) -> Parts:
        model = model or new_model()
        optim = RATES.model_copy(update=changes.pop("optim", {}))

        def evaluate(step: int) -> dict[str, float]:
            found = validate(model, one_pass(val, CONTEXT, END, 2), TOKEN_BYTES, token_losses, runtime)
            return {"bpb": found.bpb, "loss": found.loss}

        parts = Parts(
            model=model,
            optimizers=Optimizers(
                model, optim, runtime.dtype, compile=False, adapter_lr=changes.pop("adapter_lr", None)
            ),
            optim=optim,
            rows=PackedRows(train, CONTEXT, END, runtime),
            losses=token_losses,
            micro=MicroBatch(),
            evaluate=evaluate,
            runtime=runtime,
            settings=SETTINGS,
            folder=folder,
            log=RunLog(folder),
            console=Console(quiet=True),
            health=changes.pop("health", HealthSettings()),
        )
        hooks = {
            name: changes.pop(name) for name in ("rows", "losses", "evaluate") if callable(changes.get(name))
        }
        settings = SETTINGS.model_copy(update=changes)
        parts = replace(parts, settings=settings, micro=MicroBatch(settings.micro_rows))
        return replace(parts, **{name: hook(getattr(parts, name)) for name, hook in hooks.items()})

    return make


@pytest.fixture
def make_parts(tmp_path: Path, parts_in: MakeParts) -> MakeParts:
    """The same on a folder below the test's own, by name: make_parts("a", steps=20)."""
    return lambda name, **changes: parts_in(tmp_path / name, **changes)
