"""From a run's folder to a model that writes.

A checkpoint holds the weights and, in its state, the network's shape ("model_config"), so nothing else is
needed to bring a model back. Of a run's trained stages the last one talks best.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import CheckpointError, DataError
from pilgrim.core.files import read_json, sha256_file
from pilgrim.core.runtime import Runtime
from pilgrim.core.stages import TRAINED
from pilgrim.infer.cache_bits import CacheBits
from pilgrim.infer.engine import Engine
from pilgrim.infer.quantized import Weights
from pilgrim.model.config import ModelConfig
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import Tokenizer


def tell(sentence: str) -> None:
    """Where a damaged checkpoint is reported unless one says otherwise: standard error."""
    print(sentence, file=sys.stderr)


def newest_stage(run_folder: Path) -> str:
    """The last stage of a run that has a checkpoint. Raises CheckpointError if none has."""
    for stage in reversed(TRAINED):
        if CheckpointStore(run_folder / stage / "checkpoints").steps():
            return stage
    raise CheckpointError(f"{run_folder} holds no trained model yet; train one with `pilgrim run`")


def load_tokenizer(run_folder: Path) -> Tokenizer:
    """The run's tokenizer, if its file is still the one that the run has learned.

    Another one would give every id another meaning, and neither training nor a reply would notice. A run that
    does not say which it was (its `tokenizer/DONE.json` is missing) is believed. Raises DataError.
    """
    folder = run_folder / "tokenizer"
    done = folder / "DONE.json"
    tokenizer = Tokenizer.load(folder)
    learned = read_json(done)["summary"].get("sha256") if done.exists() else None
    if learned is not None and sha256_file(folder / "tokenizer.json") != learned:
        raise DataError(
            f"{folder / 'tokenizer.json'} is not the one that this run has learned; put that back (an export "
            "of the run holds a copy), or begin a new run with name=…"
        )
    return tokenizer


def load_model(
    stage_folder: Path, on_damage: Callable[[str], None] = tell, step: int | None = None
) -> Transformer:
    """The model of a stage's newest whole checkpoint, or of exactly that `step`, in fp32 on the CPU.

    `on_damage` is told of damaged ones. Raises CheckpointError if there is none, or it is of another kind.
    """
    store = CheckpointStore(stage_folder / "checkpoints")
    found = store.load_latest(on_damage, only="model") if step is None else store.load(step, only="model")
    if found is None:
        raise CheckpointError(
            f"{stage_folder} holds no checkpoint; train that stage first with `pilgrim run`"
        )
    try:
        model = Transformer(ModelConfig.model_validate(found.state["model_config"]))
        model.load_weights(found.tensors["model"])
    except (KeyError, ValidationError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{found.folder} is not a model that this version knows ({reason}); train it again"
        ) from error
    return model


def load_engine(
    stage_folder: Path,
    tokenizer: Tokenizer,
    runtime: Runtime,
    rows: int = 32,
    on_damage: Callable[[str], None] = tell,
    *,
    step: int | None = None,
    record: bool = False,
    lookup: bool = False,
    weights: Weights = "full",
    cache: CacheBits = "full",
) -> Engine:
    """An engine for a stage's newest model, or that of `step`; the others as for
    `Engine`.

    Raises DataError if the model was trained with another tokenizer, else as `load_model`.
    """
    model = load_model(stage_folder, on_damage, step)
    if model.config.vocab_size != tokenizer.vocab_size:
        raise DataError(
            f"{stage_folder}: the model has {model.config.vocab_size} tokens, but the tokenizer "
            f"{tokenizer.vocab_size}; use the tokenizer of the same run"
        )
    return Engine(model, runtime, rows, record=record, lookup=lookup, weights=weights, cache=cache)
