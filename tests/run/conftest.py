"""A whole journey in two seconds: a hundred of the bundled stories, a network of two layers, 24 steps."""

import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pilgrim.cli import app
from pilgrim.core.console import Console
from pilgrim.core.files import read_json, read_jsonl_zst
from pilgrim.data.sources import ASSETS
from pilgrim.stages.journey import run_journey

RECIPE = """
name = "tiny"
seed = 1

[runtime]
compile = "off"
threads = 1

[tokenizer]
vocab_size = 512

[data]
train = {train}
val = {val}
conversations = {chat}
conversations_val = {chat_val}

[model]
depth = 2
width = 64
context = 128

[pretrain]
steps = 12
rows = 4
micro_rows = 2
eval_every = 6
checkpoint_every = 4

[midtrain]
steps = 6
rows = 2
warmup = 0
checkpoint_every = 2

[sft]
steps = 6
rows = 2
warmup = 2
eval_every = 3

[eval]
prompts = ["Once upon a time", "The dog"]
questions = ["Hello!"]
sample_tokens = 6
reply_tokens = 3
"""
DOCUMENTS = {
    "train": ("text/train.jsonl.zst", 100),
    "val": ("text/val.jsonl.zst", 5),
    "chat": ("conversations/train.jsonl.zst", 40),
    "chat_val": ("conversations/heldout.jsonl.zst", 5),
}
# Short enough for rows of 64 tokens.
PAIRS = [
    {"prompt": f"{a}{b}", "chosen": f"{a}.", "rejected": f"{b}!"}
    for a in ("Hi", "Bye", "The dog", "Yes")
    for b in ("", " no", " one", " day", " he", " and")
    if b
]
# What a walk leaves that depends on time, or on where it was interrupted.
VARIES = {"events.jsonl", "timings.jsonl", "provenance.json", "report.html", ".lock", "LATEST", "BEST"}
VARIES |= {"peak.json", ".epoch"}
VARIES_IN_A_CHECKPOINT = {"state.json", "manifest.json"}
TIMES = ("elapsed_s", "train_s", "tokens_per_s", "mfu", "mfu_spec")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, beside its data."""
    folder = tmp_path_factory.mktemp("recipe")
    names = {}
    for name, (asset, documents) in DOCUMENTS.items():
        rows = [row for _, row in islice(read_jsonl_zst(ASSETS / asset), documents)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        names[name] = json.dumps([str(folder / f"{name}.jsonl")])
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    file = folder / "tiny.toml"
    file.write_text(RECIPE.format(**names))
    return file


@pytest.fixture(scope="session")
def preferences(recipe: Path) -> list[str]:
    """What makes a stage `dpo` of some steps of the recipe."""
    pairs = json.dumps([str(recipe.parent / "pairs.jsonl")])
    of_them = [f"dpo.pairs={pairs}", "dpo.pairs_val=[]", "dpo.val_share=0.3"]
    return [
        *of_them,
        "dpo.steps=6",
        "dpo.rows=2",
        "dpo.warmup=2",
        "dpo.eval_every=3",
        "dpo.checkpoint_every=2",
    ]


Walk = Callable[..., Path]


@pytest.fixture(scope="session")
def walk(recipe: Path) -> Walk:
    """walk(runs, "model.depth=1", until="shards") walks through the recipe, and returns the run's folder."""

    def walk_through(runs: Path, *overrides: str, **options: Any) -> Path:
        return run_journey(recipe, [*overrides], runs=runs, console=Console(quiet=True), **options)

    return walk_through


@pytest.fixture(scope="session")
def walked(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed. To be looked at only."""
    return walk(tmp_path_factory.mktemp("walked"))


@pytest.fixture
def run(walked: Path, tmp_path: Path) -> Path:
    """The same, below tmp_path, to be spoiled."""
    return shutil.copytree(walked, tmp_path / "runs" / "tiny")


@pytest.fixture
def pilgrim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """pilgrim("run", recipe, "seed=2") is that command line, called in tmp_path.

    In this very process: to `run`, it looks like the only rank, which a supervisor has started.
    """
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    runner = CliRunner()
    yield lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def essence() -> Callable[[Path], dict[str, str]]:
    """What two runs of one recipe have in common to the bit: a hash for each file, times left out.

    Of each stage's checkpoints the last one counts; which others are kept depends on interruptions.
    """

    def hashes(run: Path) -> dict[str, str]:
        last = {max(folder.glob("step_*")) for folder in run.glob("*/checkpoints")}
        found = {}
        for file in sorted(path for path in run.rglob("*") if path.is_file()):
            if file.name in VARIES or file.parent.name == "logs":
                continue
            if file.parent.name.startswith("step_") and (
                file.parent not in last or file.name in VARIES_IN_A_CHECKPOINT
            ):
                continue
            data = _without_times(file) if file.name == "DONE.json" else file.read_bytes()
            found[str(file.relative_to(run))] = sha256(data).hexdigest()
        return found

    return hashes


def _without_times(file: Path) -> bytes:
    done = read_json(file)
    summary = {name: value for name, value in done["summary"].items() if name not in TIMES}
    return json.dumps({"stage": done["stage"], "summary": summary}).encode()
