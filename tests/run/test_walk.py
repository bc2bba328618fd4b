"""From raw text to a reply, and back: the whole walk, once more, in parts, and with another recipe."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pilgrim.core.config import load_toml
from pilgrim.core.console import Console
from pilgrim.core.files import read_json, sha256_file
from pilgrim.core.runlog import read_rows
from pilgrim.core.runtime import Runtime
from pilgrim.export.huggingface import export
from pilgrim.infer.sampling import Sampling
from pilgrim.serve.terminal import exchanges
from pilgrim.stages.journey import run_journey
from pilgrim.text.chat import Message, render_prompt
from pilgrim.text.tokenizer import Tokenizer

STAGES = ["tokenizer", "shards", "pretrain", "midtrain", "sft", "evaluate"]
EVALUATED = {"pretrain": [0, 6, 12], "midtrain": [0, 6], "sft": [0, 3, 6]}

Walk = Callable[..., Path]
Essence = Callable[[Path], dict[str, str]]
Pilgrim = Callable[..., Any]  # ("run", recipe) -> a result with exit_code, output and stderr


# What is there when it is done --------------------------------------------------------------------


def test_every_stage_is_done(walked: Path) -> None:
    for stage in STAGES:
        done = read_json(walked / stage / "DONE.json")
        assert done["stage"] == stage
        assert done["elapsed_s"] > 0
    assert (walked / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("stage", EVALUATED)
def test_a_trained_stage_leaves_its_rows(walked: Path, stage: str) -> None:
    folder = walked / stage
    steps = EVALUATED[stage][-1]
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == list(range(1, steps + 1))
    assert [row["step"] for row in read_rows(folder / "evals.jsonl")] == EVALUATED[stage]
    assert ("chat_bpb" in read_rows(folder / "evals.jsonl")[0]) == (stage != "pretrain")
    asked = ["Once upon a time", "The dog"] + (["Hello!"] if stage != "pretrain" else [])
    samples = [(row["step"], row["prompt"]) for row in read_rows(folder / "samples.jsonl")]
    assert samples == [(step, prompt) for step in EVALUATED[stage] for prompt in asked]
    assert [row["kind"] for row in read_rows(folder / "events.jsonl")] == ["start", "done"]


def test_speeds_are_told_beside_the_machines_peak(walked: Path) -> None:
    assert read_json(walked / "peak.json")["matmul_flops"] > 0
    for stage in EVALUATED:
        rows = read_rows(walked / stage / "timings.jsonl")
        assert rows and all(0 < row["mfu"] < 1 for row in rows)
        assert 0 < read_json(walked / stage / "DONE.json")["summary"]["mfu"] < 1


def test_it_learns(walked: Path) -> None:
    """Even in 24 steps; and each stage begins where the one before ended."""
    bpb = [row["bpb"] for stage in EVALUATED for row in read_rows(walked / stage / "evals.jsonl")]
    assert bpb[0] > bpb[-1] + 0.3
    last = {stage: read_rows(walked / stage / "evals.jsonl")[-1]["bpb"] for stage in EVALUATED}
    assert read_rows(walked / "midtrain" / "evals.jsonl")[0]["bpb"] == last["pretrain"]
    assert read_rows(walked / "sft" / "evals.jsonl")[0]["bpb"] == last["midtrain"]
    result = read_json(walked / "evaluate" / "result.json")
    assert {stage: found["bpb"] for stage, found in result["bpb"].items()} == last
    assert result["behaviour"].keys() == {"ended", "looped", "named"}


def test_where_it_comes_from_is_kept(walked: Path, recipe: Path) -> None:
    provenance = read_json(walked / "provenance.json")
    files = [recipe.parent / f"{name}.jsonl" for name in ("train", "val", "chat", "chat_val")]
    assert provenance["data_sha256"] == {str(file): sha256_file(file) for file in files}
    assert provenance["seed"] == 1


def test_it_replies(walked: Path) -> None:
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
    sampling = Sampling(max_tokens=20, seed=3)
    said = exchanges(walked, ["Hello!", "Who are you?"], sampling=sampling, runtime=runtime)
    assert [prompt for prompt, _ in said] == ["Hello!", "Who are you?"]
    assert all(isinstance(reply, str) and reply for _, reply in said)
    assert said == exchanges(walked, ["Hello!", "Who are you?"], sampling=sampling, runtime=runtime)


def test_it_loads_in_transformers(walked: Path, tmp_path: Path) -> None:
    folder = export(walked, tmp_path / "hf", say=lambda sentence: None)
    load: Any = AutoModelForCausalLM.from_pretrained
    model, loading = load(folder, output_loading_info=True)
    assert not any(loading.values())
    load_tokenizer: Any = AutoTokenizer.from_pretrained
    theirs = load_tokenizer(folder)
    ours = Tokenizer.load(walked / "tokenizer")
    turns = [{"role": "user", "content": "Hello!"}]
    ids = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert ids == render_prompt([Message("user", "Hello!")], ours)
    written = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)
    assert written[0, : len(ids)].tolist() == ids


# Once more ----------------------------------------------------------------------------------------


def files(run: Path) -> dict[str, str]:
    return {
        str(file.relative_to(run)): sha256(file.read_bytes()).hexdigest()
        for file in run.rglob("*")
        if file.is_file() and file.name != ".epoch"  # the number of starts
    }


def test_a_second_walk_has_nothing_to_do(run: Path, pilgrim: Pilgrim, recipe: Path) -> None:
    before = files(run)
    result = pilgrim("run", recipe)
    assert result.exit_code == 0, result.output
    assert [line for line in result.output.splitlines() if "report" not in line] == [
        f"{stage}: done before" for stage in STAGES
    ]
    assert result.output.endswith("report: runs/tiny/report.html\n")
    assert files(run) == before


def test_the_same_seed_gives_the_same_bits(
    walk: Walk, walked: Path, essence: Essence, tmp_path: Path
) -> None:
    """Also when it is walked in parts, with the recipe that the first run has written."""
    for until in STAGES[:-1]:
        run = walk(tmp_path, until=until)
        assert not (run / STAGES[STAGES.index(until) + 1]).exists()
    assert essence(walk(tmp_path)) == essence(walked)


def test_a_runs_own_recipe_makes_the_same_run(
    walked: Path, pilgrim: Pilgrim, essence: Essence, tmp_path: Path
) -> None:
    result = pilgrim("run", walked / "recipe.toml", "name=again", "--until", "pretrain")
    assert result.exit_code == 0, result.output
    again, first = (essence(run) for run in (tmp_path / "runs" / "again", walked))
    assert again.keys() >= {"pretrain/metrics.jsonl", "pretrain/samples.jsonl", "shards/train.tokens.npy"}
    assert {name: first[name] for name in again if name != "recipe.toml"} == {
        name: digest for name, digest in again.items() if name != "recipe.toml"
    }


def test_beginning_as_a_bigram_is_repeatable_too(
    walk: Walk, walked: Path, essence: Essence, tmp_path: Path
) -> None:
    """What counting knows is worth more than these few steps."""
    a, b = (walk(tmp_path / name, "pretrain.begin=bigram", until="pretrain") for name in "ab")
    assert essence(a) == essence(b)
    begins = [read_rows(run / "pretrain" / "evals.jsonl")[0]["bpb"] for run in (a, walked)]
    assert begins[0] < begins[1] - 0.5


def test_another_seed_gives_another_model(walk: Walk, walked: Path, essence: Essence, tmp_path: Path) -> None:
    other, first = essence(walk(tmp_path, "seed=2", until="pretrain")), essence(walked)
    assert other["shards/train.tokens.npy"] == first["shards/train.tokens.npy"]
    assert other["pretrain/metrics.jsonl"] != first["pretrain/metrics.jsonl"]


def test_evaluating_once_more_finds_the_same(
    run: Path, pilgrim: Pilgrim, recipe: Path, essence: Essence
) -> None:
    before = essence(run)
    for arguments in (["run", recipe, "--only", "evaluate"], ["eval", "tiny", "--suite", "behaviour"]):
        (run / "evaluate" / "result.json").unlink()
        result = pilgrim(*arguments)
        assert result.exit_code == 0, result.output
        assert "bits per byte on held-out text" in result.output
        assert essence(run) == before


# Other recipes ------------------------------------------------------------------------------------


def test_a_journey_without_conversations(recipe: Path, tmp_path: Path) -> None:
    """No [midtrain] and no [sft]: a base model, of which only the bits per byte are measured."""
    text = recipe.read_text()
    base = tmp_path / "base.toml"
    base.write_text(text[: text.index("[midtrain]")].replace("tiny", "base"))
    run = run_journey(base, ["pretrain.steps=6"], runs=tmp_path, console=Console(quiet=True))
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == sorted(
        ["tokenizer", "shards", "pretrain", "evaluate"]
    )
    assert sorted(file.stem for file in (run / "shards").glob("*.json")) == ["DONE", "train", "val"]
    assert read_json(run / "evaluate" / "result.json").keys() == {"bpb"}


def test_one_document_larger_than_all_rows(walk: Walk, recipe: Path, tmp_path: Path) -> None:
    """A book as one .txt: it is cut into rows, all of it is trained on, and validation is another file."""
    rows = (recipe.parent / "train.jsonl").read_text().splitlines()
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(json.loads(row)["text"] for row in rows))
    run = walk(tmp_path, f'data.train=["{book}"]', "pretrain.steps=6", until="pretrain")
    summary = read_json(run / "shards" / "DONE.json")["summary"]
    assert summary["train_documents"] == 1
    assert summary["train_bytes"] == book.stat().st_size
    assert summary["train_tokens"] > 6 * 4 * 128
    assert read_json(run / "pretrain" / "DONE.json")["summary"]["tokens"] == 6 * 4 * 128


def test_validation_can_be_a_share_of_the_text(walk: Walk, recipe: Path, tmp_path: Path) -> None:
    run = walk(tmp_path, "data.val=[]", "data.val_share=0.1", until="shards")
    summary = read_json(run / "shards" / "DONE.json")["summary"]
    assert summary["train_documents"] + summary["val_documents"] == 100
    assert 2 <= summary["val_documents"] <= 25


def test_the_pocket_recipe_with_a_few_settings_changed(
    pilgrim: Pilgrim, recipe: Path, tmp_path: Path
) -> None:
    """As one would try it: the recipe of the demo on text of one's own, smaller."""
    pocket = Path(__file__).parents[2] / "recipes" / "pocket.toml"
    data = load_toml(recipe)["data"]
    result = pilgrim(
        *("run", pocket, "name=plumb", "model.depth=2", "model.width=64", "model.context=128"),
        *("tokenizer.vocab_size=512", "pretrain.steps=8", "runtime.compile=off", "runtime.threads=1"),
        *(f"data.{name}={json.dumps(files)}" for name, files in data.items()),
        *("--until", "pretrain"),
    )
    assert result.exit_code == 0, result.output
    assert "== pretrain: learn language from the text" in result.output
    assert read_json(tmp_path / "runs" / "plumb" / "pretrain" / "DONE.json")["summary"]["steps"] == 8
