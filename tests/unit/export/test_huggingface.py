"""What `export` writes, from which checkpoint, and where it refuses to write."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import sha256_file
from pilgrim.export.huggingface import MANIFEST, export, export_weights
from pilgrim.model.config import ModelConfig, ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    MANIFEST,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat " * 9], 280)


def network(tokenizer: Tokenizer, seed: int = 1, tied: bool = False) -> Transformer:
    settings = ModelSettings(depth=1, width=16, head_size=8, kv_heads=1, context=64, tied=tied)
    model = Transformer(settings.config(tokenizer.vocab_size))
    initialize(model, torch.Generator().manual_seed(seed))
    return model


def save(run: Path, stage: str, step: int, model: Transformer, done: bool = True) -> None:
    """A checkpoint as a stage leaves it."""
    tensors = {"model": model.weights(), "optimizer": {"x": torch.ones(2)}}
    CheckpointStore(run / stage / "checkpoints").save(
        step, tensors, {"model_config": model.config.model_dump()}
    )
    if done:
        (run / stage / "DONE.json").write_text("{}")


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A run that was pretrained and midtrained, with other weights in each."""
    folder = tmp_path / "pocket"
    tokenizer.save(folder / "tokenizer")
    save(folder, "pretrain", 30, network(tokenizer, seed=1))
    save(folder, "midtrain", 9, network(tokenizer, seed=2))
    return folder


def written(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# What is written ----------------------------------------------------------------------------------


def test_the_newest_stage_is_written_whole(run: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    told: list[str] = []
    out = export(run, tmp_path / "deep" / "out", say=told.append)
    assert {path.name for path in out.iterdir()} == FILES
    assert same(written(out), network(tokenizer, seed=2).weights())
    assert told == []
    manifest = json.loads((out / MANIFEST).read_text())
    assert (manifest["run"], manifest["stage"], manifest["step"]) == ("pocket", "midtrain", 9)
    assert manifest["sha256"] == {name: sha256_file(out / name) for name in FILES - {MANIFEST}}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_newest_stage_is_sft_then_midtrain_then_pretrain(
    run: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save(run, "sft", 5, network(tokenizer, seed=3))
    save(run, "sft", 6, network(tokenizer, seed=4))
    assert same(written(export(run, tmp_path / "out")), network(tokenizer, seed=4).weights())


def test_an_unfinished_stage_is_exported_and_says_so(run: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save(run, "sft", 5, network(tokenizer, seed=3), done=False)
    told: list[str] = []
    out = export(run, tmp_path / "out", say=told.append)
    assert len(told) == 1 and "sft is not finished; this is its model after step 5" in told[0]
    assert "which was not finished" in (out / "README.md").read_text()


def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(
    run: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save(run, "midtrain", 12, network(tokenizer, seed=5))
    newest = run / "midtrain" / "checkpoints" / "step_000012" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x00\x01")
    told: list[str] = []
    out = export(run, tmp_path / "out", say=told.append)
    assert same(written(out), network(tokenizer, seed=2).weights())
    assert len(told) == 1 and "step_000012" in told[0] and "damaged" in told[0]


def test_the_config_is_qwen3s(run: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["model_type"] == "qwen3"
    assert (config["hidden_size"], config["head_dim"], config["intermediate_size"]) == (16, 8, 48)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["max_position_embeddings"] == 64
    assert config["sliding_window"] is None and config["use_sliding_window"] is False
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 2, 0)
    assert (config["dtype"], config["vocab_size"]) == ("float32", tokenizer.vocab_size)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.im_end_id, tokenizer.eot_id]
    with safetensors.safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_tokenizer_comes_back(run: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out")
    assert Tokenizer.load(out).encode("the cat") == tokenizer.encode("the cat")
    assert (out / "tokenizer.json").read_bytes() == (run / "tokenizer" / "tokenizer.json").read_bytes()


def test_a_tied_table_is_written_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = network(tokenizer, tied=True)
    out = export_weights(model.weights(), model.config, tokenizer, tmp_path / "out")
    assert "lm_head.weight" not in written(out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    one, two = export(run, tmp_path / "one"), export(run, tmp_path / "two")
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


# Where it refuses ---------------------------------------------------------------------------------


def refused(run: Path, out: Path) -> str:
    with pytest.raises(PilgrimError) as error:
        export(run, out)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def test_a_run_without_a_trained_stage(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for run in (tmp_path / "new", tmp_path / "nowhere"):
        assert f"{run} holds no trained model yet; train one" in refused(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_version(run: Path, tmp_path: Path) -> None:
    CheckpointStore(run / "sft" / "checkpoints").save(1, {"model": {}}, {"model_config": {"depth": 3}})
    assert "step_000001 is not a model that this version knows" in refused(run, tmp_path / "out")


def test_an_earlier_export_is_replaced(run: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out")
    save(run, "sft", 5, network(tokenizer, seed=3))
    assert export(run, out) == out
    assert same(written(out), network(tokenizer, seed=3).weights())
    assert {path.name for path in tmp_path.iterdir()} == {"out", "pocket"}


def test_an_empty_folder_is_taken(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert {path.name for path in export(run, tmp_path / "out").iterdir()} == FILES


def test_a_folder_with_other_things_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert "out is not empty, and no earlier export; choose another folder" in refused(run, tmp_path / "out")
    assert "is not empty" in refused(run, run)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_file_that_someone_put_into_an_export_is_not_lost(run: Path, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    assert "also holds notes.txt, which would be lost" in refused(run, out)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_file_in_the_place_of_the_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert "out is a file; give the name of a folder" in refused(run, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_where_writing_is_not_allowed(run: Path, tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o500)
    assert "could not be written" in refused(run, shut / "out")


def test_a_full_disk_leaves_the_earlier_export(
    run: Path, tmp_path: Path, no_file_beyond: Callable[[int], AbstractContextManager[None]]
) -> None:
    out = export(run, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with no_file_beyond(6000):
        sentence = refused(run, out)
    assert "could not be written" in sentence
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "pocket"}


def mismatched(weights: dict[str, torch.Tensor], config: ModelConfig, tokenizer: Tokenizer, out: Path) -> str:
    with pytest.raises(PilgrimError) as error:
        export_weights(weights, config, tokenizer, out)
    assert not out.exists()
    return str(error.value)


def test_weights_of_another_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model, out = network(tokenizer), tmp_path / "out"
    weights, config = model.weights(), model.config
    deeper = config.model_copy(update={"depth": 2})
    wider = config.model_copy(update={"mlp_width": 50})
    shallow = {name: w for name, w in weights.items() if "lm_head" not in name}
    assert "the weights lack model.layers.1." in mismatched(weights, deeper, tokenizer, out)
    assert "the weights lack lm_head.weight" in mismatched(shallow, config, tokenizer, out)
    assert "have an unknown extra" in mismatched(weights | {"extra": torch.ones(1)}, config, tokenizer, out)
    told = mismatched(weights, wider, tokenizer, out)
    assert "have the shape" in told and "but the config asks for" in told


def test_bounded_scores_have_no_place_in_qwen3(tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = ModelSettings(depth=1, width=16, head_size=8, context=64, softcap=15.0)
    model = Transformer(settings.config(tokenizer.vocab_size))
    initialize(model, torch.Generator().manual_seed(1))
    with pytest.raises(
        PilgrimError, match=r"model\.softcap = 15\.0: Qwen3 bounds no scores, .*train without"
    ):
        export_weights(model.weights(), model.config, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_too_large(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = network(tokenizer)
    larger = train_tokenizer(["the cat sat on the mat with other cats " * 9], tokenizer.vocab_size + 5)
    assert "the tokenizer has 285 tokens and the model only 280" in mismatched(
        model.weights(), model.config, larger, tmp_path / "out"
    )


def test_windows_are_told_and_written(run: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Every other program would compute something else, so whoever exports hears of it."""
    settings = ModelSettings(depth=3, width=16, head_size=8, context=64, window=16)
    model = Transformer(settings.config(tokenizer.vocab_size))
    initialize(model, torch.Generator().manual_seed(1))
    save(run, "sft", 7, model)
    said: list[str] = []
    folder = export(run, tmp_path / "out", say=said.append)
    assert len(said) == 1 and "llama.cpp" in said[0] and "16 tokens" in said[0]
    assert said[0] in (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]
    assert config["sliding_window"] == 16 and config["use_sliding_window"] is True
