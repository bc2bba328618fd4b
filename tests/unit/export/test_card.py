"""The model card says what the run's folder says, and nothing of the machine it was made on."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pilgrim.core.files import read_jsonl_zst
from pilgrim.export.card import LICENCES, Subject, model_card
from pilgrim.export.huggingface import export_weights
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import train_tokenizer

CONFIG = ModelSettings(depth=2, width=32, head_size=16, context=64).config(300)
RECIPE = """name = "pocket"
seed = 1

[data]
train = ["assets:text/train.jsonl.zst", "/home/somebody/private/letters.jsonl", "~/diary.txt"]

[model]
depth = 2
"""
PROVENANCE = {
    "time": "2026-03-04T05:06:07.000+00:00",
    "command": ["/home/somebody/.venv/bin/pilgrim", "run", "recipes/pocket.toml"],
    "code": {
        "commit": "0123456789abcdef",
        "dirty": True,
        "diff": "secret",
        "untracked": ["/home/somebody/x"],
    },
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "hardware": {"processor": "A Processor", "cores": 2, "gpu": None, "platform": "Linux-somehost"},
}
RESULT = {
    "bpb": {"pretrain": {"bpb": 0.9876}, "sft": {"bpb": 0.9512}},
    "behaviour": {"ended": {"share": 0.975, "n": 200}, "looped": {"share": 0.01, "n": 200}},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "pocket"
    for stage in ("shards", "pretrain", "sft", "evaluate"):
        (folder / stage).mkdir(parents=True)
    sources = {"train": {"tinystories": 30, "onestopenglish/elementary": 2}, "chat_train": {"pilgrim": 5}}
    for name, counts in sources.items():
        write(folder / "shards" / f"{name}.json", {"sources": counts})
    (folder / "recipe.toml").write_text(RECIPE)
    write(folder / "provenance.json", PROVENANCE)
    write(folder / "evaluate" / "result.json", RESULT)
    rows = [{"step": 5, "bpb": 1.5}, {"step": 10, "bpb": 1.25}]
    (folder / "pretrain" / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))


def card(run: Path | None, stage: str | None = "sft", finished: bool = True) -> str:
    return model_card(Subject("pocket", CONFIG, torch.float32, run, stage, 10 if stage else None, finished))


def test_it_says_what_the_run_says(run: Path) -> None:
    text = card(run)
    assert "# pocket\n" in text
    assert "after 10 steps of its last stage, `sft`." in text
    assert "| layers | 2, 32 wide, 2 query and 2 key/value heads of 16 |" in text
    assert "| bits per byte of held-out text | 0.951 |" in text
    assert "| ends its reply by itself | 97.5% of 200 held-out prompts |" in text
    assert "| pilgrim | commit 0123456789ab, with changes |" in text
    assert "| machine | A Processor |" in text
    assert "depth = 2" in text


def test_it_names_the_text_and_its_licences(run: Path) -> None:
    text = card(run)
    assert "| tinystories | 30 |" in text and "CDLA-Sharing-1.0" in text
    assert "| onestopenglish/elementary | 2 |" in text and "CC-BY-SA-4.0" in text
    assert "| pilgrim | 5 | written by hand for this project | MIT |" in text
    assert "language: en" in text and "license: other" in text
    assert "not known" not in text


def test_a_pretrained_model_has_seen_no_conversations(run: Path) -> None:
    text = card(run, "pretrain")
    assert "written by hand" not in text
    assert "<|endoftext|>Once upon a time" in text
    assert "apply_chat_template" not in text


def test_each_stage_has_its_own_measures(run: Path) -> None:
    text = card(run, "pretrain")
    assert "| bits per byte of held-out text | 0.988 |" in text
    assert "ends its reply" not in text
    assert "## Evaluation" not in card(run, "midtrain")


def test_text_of_ones_own_has_a_licence_of_ones_own(run: Path) -> None:
    write(
        run / "shards" / "train.json", {"sources": {"letters": 7, "/home/somebody/mail": 1, "a | b <i>": 1}}
    )
    text = card(run)
    assert "| letters | 7 |  | **not known to pilgrim: state it before you publish this model** |" in text
    assert "| mail | 1 |" in text
    assert r"| a \| b &lt;i> | 1 |" in text
    assert "language:" not in text


def test_the_many_classics_are_one_source_and_small_ones_are_counted(run: Path) -> None:
    books = {f"gutenberg/Author/Book {i}": 2 for i in range(60)}
    mine = {f"folder{i}": 1 for i in range(60)}
    write(run / "shards" / "train.json", {"sources": books | mine})
    text = card(run, "pretrain")
    assert "| gutenberg/… | 120 |" in text
    assert "And 21 smaller sources." in text


def test_nothing_of_the_machine_is_published(run: Path) -> None:
    text = card(run)
    for private in ("somebody", "somehost", "secret", "private", "/home", "~/"):
        assert private not in text
    assert '"letters.jsonl"' in text and '"diary.txt"' in text and "assets:text/train.jsonl.zst" in text


def test_an_unfinished_stage_is_measured_by_its_log(run: Path) -> None:
    text = card(run, "pretrain", finished=False)
    assert "which was not finished" in text
    assert "| bits per byte of held-out text | 1.250 |" in text
    assert "0.951" not in text


def test_what_is_not_there_is_not_invented(tmp_path: Path) -> None:
    (tmp_path / "bare" / "sft").mkdir(parents=True)
    for text in (card(tmp_path / "bare"), card(None, None)):
        assert "Not known: there is no run folder that says it." in text
        assert "## Evaluation" not in text and "## How it was made" not in text
        assert "## What it is" in text


def test_a_fence_holds_whatever_the_recipe_says(run: Path) -> None:
    (run / "recipe.toml").write_text("name = '```'\n")
    assert '````toml\nname = "```"\n````' in card(run)


def test_every_bundled_source_has_a_licence() -> None:
    assets = LICENCES.parent
    files = [*assets.glob("text/*.zst"), *assets.glob("conversations/*.zst")]
    assert files
    sources = {row["source"] for file in files for _, row in read_jsonl_zst(file)}
    text = LICENCES.read_text()
    for source in sources:
        family = "gutenberg/…" if source.startswith("gutenberg/") else source
        assert f"| `{family}` |" in text, source


@pytest.mark.parametrize("stage", ["sft", "pretrain"])
def test_the_code_on_the_card_runs(stage: str, run: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["tell me a story about a dog " * 20], 290)
    model = Transformer(CONFIG.model_copy(update={"vocab_size": 290, "context": 512}))
    initialize(model, torch.Generator().manual_seed(1))
    out = export_weights(model.weights(), model.config, tokenizer, tmp_path / "out")
    code = re.findall(r"```python\n(.*?)\n```", card(run, stage), re.DOTALL)
    assert len(code) == 1
    assert 'folder = "."' in code[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code[0].replace('folder = "."', f"folder = {str(out)!r}"), {})
    assert printed.getvalue()
