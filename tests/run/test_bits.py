"""`pilgrim eval RUN --text`: any text, by file and source, and the same bytes whatever the tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilgrim.core.files import read_json
from pilgrim.core.runlog import read_rows
from pilgrim.data.loader import IGNORED, one_pass
from pilgrim.data.shards import in_memory
from pilgrim.data.sources import Text, read_documents
from pilgrim.lab.report import write_report
from pilgrim.stages.shards import tokenized
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

Pilgrim = Callable[..., Any]


def test_the_held_out_text_needs_what_validation_found(run: Path, pilgrim: Pilgrim, recipe: Path) -> None:
    """Bits per byte of the validation file are those of the run's last evaluation, source by source."""
    mine = Path("mine.txt")
    mine.write_text("A text of my own. It is short, but it is text: Ça va, 你好!\n" * 9)
    told = pilgrim("eval", "tiny", "--text", recipe.parent / "val.jsonl", "--text", mine)
    assert told.exit_code == 0, told.output
    found = read_json(run / "evaluate" / "text.json")
    val, own = found["files"][str(recipe.parent / "val.jsonl")], found["files"]["mine.txt"]
    last = read_rows(run / "sft" / "evals.jsonl")[-1]
    assert val["bpb"] == pytest.approx(last["bpb"], rel=1e-9)
    assert val["sources"].keys() == last["sources"].keys()
    for name, source in last["sources"].items():
        assert val["sources"][name]["bytes"] == source["bytes"]
        assert val["sources"][name]["bpb"] == pytest.approx(source["bpb"], rel=1e-9)
    result = read_json(run / "evaluate" / "result.json")["bpb"]["sft"]
    assert result["standard_error"] == pytest.approx(val["standard_error"], rel=1e-9)
    assert sum(source["bytes"] for source in result["sources"].values()) == result["bytes"] == val["bytes"]
    assert (own["bytes"], own["documents"], own["standard_error"]) == (len(mine.read_bytes()), 1, None)
    assert "mine.txt" in told.output and "±      –" in told.output
    assert "Bits per byte of other text" in write_report(run).read_text()


def bpb_by_bits(run: Path, pilgrim: Pilgrim, recipe: Path, what: str, choices: list[str]) -> dict[str, float]:
    """Bits per byte of the same text with weights, or a cache, of each of these bits."""
    found = {}
    for bits in choices:
        told = pilgrim("eval", "tiny", "--text", recipe.parent / "val.jsonl", f"--{what}", bits)
        assert told.exit_code == 0, told.output
        result = read_json(run / "evaluate" / "text.json")
        assert result[what] == bits
        found[bits] = next(iter(result["files"].values()))["bpb"]
    return found


def test_weights_of_fewer_bits_cost_a_little(run: Path, pilgrim: Pilgrim, recipe: Path) -> None:
    found = bpb_by_bits(run, pilgrim, recipe, "weights", ["full", "int8", "int4"])
    assert 0 < abs(found["int8"] - found["full"]) < abs(found["int4"] - found["full"]) < 0.1


def test_a_cache_of_8_bits_costs_a_little(run: Path, pilgrim: Pilgrim, recipe: Path) -> None:
    found = bpb_by_bits(run, pilgrim, recipe, "cache", ["full", "int8", "fp8"])
    assert 0 < abs(found["int8"] - found["full"]) < 0.01
    assert 0 < abs(found["fp8"] - found["full"]) < 0.05


def test_parts_of_a_large_file_give_the_same(
    run: Path, pilgrim: Pilgrim, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(recipe.parent / "val.jsonl")
    pilgrim("eval", "tiny", "--text", file)
    whole = read_json(run / "evaluate" / "text.json")["files"][file]
    monkeypatch.setattr("pilgrim.stages.bits.AT_ONCE", 2)
    pilgrim("eval", "tiny", "--text", file)
    parts = read_json(run / "evaluate" / "text.json")["files"][file]
    assert (parts["bytes"], parts["documents"]) == (whole["bytes"], whole["documents"])
    assert parts["bpb"] == pytest.approx(whole["bpb"], rel=1e-4)  # other rows, and bf16 where the CPU has it


@pytest.fixture(scope="module")
def tokenizers() -> list[Tokenizer]:
    texts = [document.text for document in read_documents(["assets:text/val.jsonl.zst"])]
    return [train_tokenizer(texts, 300), train_tokenizer(texts[:60], 900)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=5),
    st.sampled_from([8, 33]),
)
def test_every_tokenizer_counts_the_same_bytes(
    tokenizers: list[Tokenizer], texts: list[str], context: int
) -> None:
    """What is divided by is the text's UTF-8 bytes, each of them once, in rows of any length."""
    for tokenizer in tokenizers:
        documents = tokenized([Text(text, "x") for text in texts], tokenizer)
        tokens = in_memory("x", documents, tokenizer.vocab_size)
        token_bytes = tokenizer.token_bytes()
        counted = sum(
            token_bytes[target]
            for batch in one_pass(tokens, context, tokenizer.eot_id, 4)
            for target in batch.targets_bt.flatten().tolist()
            if target != IGNORED
        )
        assert counted == sum(len(text.encode()) for text in texts) == tokens.text_bytes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--text", "empty.txt"], "empty.txt holds no text; give it some, or name another file"),
        (["--text", "table.csv"], "files ending in '.csv' can't be read"),
        (["--weights", "int8"], "--weights goes with --text"),
        (["--cache", "int8"], "--cache goes with --text"),
        (["--text", "empty.txt", "--suite", "core"], "--text measures bits per byte and nothing else; leave"),
    ],
)
def test_what_cannot_be_measured(run: Path, pilgrim: Pilgrim, arguments: list[str], sentence: str) -> None:
    Path("empty.txt").write_text(" \n")
    Path("table.csv").write_text("a,b")
    told = pilgrim("eval", "tiny", *arguments)
    assert told.exit_code == 2, told.output
    assert sentence in told.output.replace("\n", " ")
    assert not (run / "evaluate" / "text.json").exists()
