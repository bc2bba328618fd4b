"""Models from run folders."""

from pathlib import Path

import pytest

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import CheckpointError, DataError
from pilgrim.core.runtime import Runtime
from pilgrim.infer.engine import Engine
from pilgrim.infer.load import load_engine, load_model, newest_stage
from pilgrim.infer.sampling import Sampling
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import train_tokenizer


def save(model: Transformer, stage_folder: Path, step: int = 1) -> None:
    state = {"model_config": model.config.model_dump()}
    CheckpointStore(stage_folder / "checkpoints").save(step, {"model": model.weights()}, state)


def test_a_saved_model_comes_back(model: Transformer, tmp_path: Path) -> None:
    save(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert all((loaded.weights()[name] == tensor).all() for name, tensor in model.weights().items())


def test_a_tied_head_stays_tied(runtime: Runtime, tmp_path: Path) -> None:
    tied = Transformer(ModelSettings(depth=1, width=16, tied=True).config(vocab_size=97))
    save(tied, tmp_path)
    engine = Engine(load_model(tmp_path), runtime)
    assert engine.model.lm_head.weight is engine.model.model.embed_tokens.weight


def test_the_last_trained_stage_is_taken(model: Transformer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no trained model yet"):
        newest_stage(tmp_path)
    for stage in ("pretrain", "sft", "midtrain"):
        save(model, tmp_path / stage)
    assert newest_stage(tmp_path) == "sft"


def test_a_damaged_checkpoint_is_passed_over(model: Transformer, tmp_path: Path) -> None:
    save(model, tmp_path, step=1)
    save(model, tmp_path, step=2)
    (tmp_path / "checkpoints" / "step_000002" / "model.safetensors").write_bytes(b"")
    told: list[str] = []
    assert load_model(tmp_path, told.append).config == model.config
    assert len(told) == 1


def test_what_is_no_model_is_refused(model: Transformer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_model(tmp_path)
    CheckpointStore(tmp_path / "checkpoints").save(3, {"model": model.weights()}, {})
    with pytest.raises(CheckpointError, match=r"step_000003 is not a model that this version knows"):
        load_model(tmp_path)
    other = {"model_config": model.config.model_dump() | {"depth": 3}}
    CheckpointStore(tmp_path / "checkpoints").save(4, {"model": model.weights()}, other)
    with pytest.raises(CheckpointError, match=r"step_000004 is not a model that this version knows"):
        load_model(tmp_path)


def test_another_runs_tokenizer_is_refused(model: Transformer, runtime: Runtime, tmp_path: Path) -> None:
    save(model, tmp_path)
    tokenizer = train_tokenizer(["a text"], 272)
    with pytest.raises(DataError, match="the model has 97 tokens, but the tokenizer 272"):
        load_engine(tmp_path, tokenizer, runtime)


def test_an_engine_is_loaded(runtime: Runtime, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a text"], 272)
    model = Transformer(ModelSettings(depth=1, width=16, context=16).config(272))
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    save(model, tmp_path)
    (reply,) = load_engine(tmp_path, tokenizer, runtime).generate([[1, 2]], Sampling(), ())
    assert len(reply.ids) == 14
