"""Data sets that `[dpo]` and `[rl]` name: the rows that they would have had from a file, and no surprise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.errors import ChangedRecipe, DataError
from pilgrim.core.files import read_json, read_jsonl_zst
from pilgrim.core.runlog import read_rows

Walk = Callable[..., Path]
SUMS = [{"question": f"{n}*2?", "answer": f"<<{n}*2={2 * n}>>{2 * n}\n#### {2 * n}"} for n in range(20)]
REWARDS = [
    "rl.steps=1",
    "rl.prompts=2",
    "rl.replies=2",
    "rl.updates=1",
    "rl.rows=2",
    "rl.reply_tokens=6",
    "rl.held_out_prompts=2",
]


@pytest.fixture
def files(tmp_path: Path, recipe: Path) -> dict[str, Path]:
    """What data sets are made of."""
    pairs, sums = tmp_path / "pairs.jsonl", tmp_path / "sums.jsonl"
    shutil.copy(recipe.parent / "pairs.jsonl", pairs)
    sums.write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    return {"pairs": pairs, "sums": sums}


def named(files: dict[str, Path]) -> list[str]:
    """Both as data sets; the problems are a mixture's as well."""
    return [
        "datasets.better.kind=rows",
        f'datasets.better.files=["{files["pairs"]}"]',
        "datasets.sums.kind=gsm8k",
        f'datasets.sums.files=["{files["sums"]}"]',
        "sft.mixture={conversations={weight=0.5},sums={weight=0.5}}",
        'rl.tasks={sums={kind="gsm8k",prompts="dataset:sums",held_out_share=0.3}}',
        *REWARDS,
    ]


def begun(walked: Path, folder: Path) -> Path:
    """The walk up to sft, of which the shards are to be looked at once more."""
    run = shutil.copytree(walked, folder / "tiny", ignore=shutil.ignore_patterns("evaluate"))
    (run / "shards" / "DONE.json").unlink()
    return run


def test_they_are_written_once_and_learned_from_as_from_a_file(
    walk: Walk, walked: Path, preferences: list[str], files: dict[str, Path], tmp_path: Path
) -> None:
    from_sets = begun(walked, tmp_path / "a")
    options = [*preferences, *named(files), 'dpo.pairs=["dataset:better"]']
    walk(tmp_path / "a", *options, until="shards", accept_changes=True)
    rows = from_sets / "shards" / "rows"
    assert [row for _, row in read_jsonl_zst(rows / "sums.jsonl.zst")] == SUMS
    summary = read_json(from_sets / "shards" / "DONE.json")["summary"]
    assert summary["sums_documents"] == summary["sums_rows"] == 20
    assert read_json(from_sets / "shards" / "sums.json")["documents"] == 20  # the mixture's set beside it

    for file in files.values():
        file.rename(file.with_suffix(".gone"))  # as on another machine: all was read
    walk(tmp_path / "a", *options, until="rl")
    for file in files.values():
        file.with_suffix(".gone").rename(file)

    from_files = begun(walked, tmp_path / "b")
    plain = [f'rl.tasks={{sums={{kind="gsm8k",prompts="{files["sums"]}",held_out_share=0.3}}}}']
    walk(tmp_path / "b", *preferences, *named(files), *plain, until="rl", accept_changes=True)
    for stage in ("dpo", "rl"):
        one, other = (run / stage / "metrics.jsonl" for run in (from_sets, from_files))
        assert one.read_bytes() == other.read_bytes()

    old = (rows / "better.json").stat().st_mtime_ns
    (from_sets / "shards" / "DONE.json").unlink()  # as if it had been stopped before its end
    (rows / "sums.json").unlink()
    walk(tmp_path / "a", *options, until="shards")
    assert (rows / "better.json").stat().st_mtime_ns == old and (rows / "sums.json").exists()


def test_a_table_that_has_changed_is_noticed(
    walk: Walk, walked: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """Also a table that came after the shards were done: its rows are read when they are needed."""
    run = shutil.copytree(walked, tmp_path / "runs" / "tiny", ignore=shutil.ignore_patterns("evaluate"))
    rewards = [option for option in named(files) if "sft" not in option]
    walk(run.parent, *rewards, only="rl", accept_changes=True)
    assert read_json(run / "shards" / "rows" / "sums.json")["rows"] == 20
    (run / "rl" / "DONE.json").unlink()
    fewer = [*rewards, "datasets.sums.limit=9"]
    with pytest.raises(ChangedRecipe, match=r"datasets\.sums\.limit: not set -> 9"):
        walk(run.parent, *fewer, only="rl")
    shutil.rmtree(run / "rl")
    walk(run.parent, *fewer, only="rl", accept_changes=True)
    assert read_json(run / "shards" / "rows" / "sums.json")["rows"] == 9
    asked = {row["line"] for row in read_rows(next((run / "rl" / "rollouts").iterdir()))}
    assert max(asked) <= 9

    (run / "shards" / "rows" / "sums.jsonl.zst").write_bytes(b"")
    (run / "rl" / "DONE.json").unlink()
    with pytest.raises(DataError, match=r"sums\.jsonl\.zst is damaged or missing; delete .*sums\.json and"):
        walk(run.parent, *fewer, only="rl")


def test_a_row_that_cannot_be_used_is_told_by_the_stage_that_reads_it(
    walk: Walk, preferences: list[str], files: dict[str, Path], tmp_path: Path
) -> None:
    alike = {"prompt": "Hi", "chosen": "Ho.", "rejected": "Ho."}
    (tmp_path / "more.jsonl").write_text(json.dumps(alike) + "\n")
    both = f'datasets.better.files=["{files["pairs"]}","{tmp_path}/more.jsonl"]'
    options = [*preferences, *named(files), both, 'dpo.pairs=["dataset:better"]']
    with pytest.raises(DataError, match=r"more\.jsonl, line 1: chosen and rejected are the same"):
        walk(tmp_path, *options, until="shards")
    walk(tmp_path, *options, "datasets.better.bad_rows=skip", until="shards", accept_changes=True)
    whole = read_json(tmp_path / "tiny" / "shards" / "rows" / "better.json")
    assert whole["rows"] == 20 and whole["origin"]["read_as"] == ["pairs"]

    files["sums"].write_text(json.dumps({"question": "1+1?", "answer": "two"}) + "\n")
    with pytest.raises(DataError, match=r'sums\.jsonl, line 1: "answer" does not end with'):
        walk(tmp_path / "other", *named(files), "sft.mixture={conversations={weight=1}}", until="shards")


def test_a_dry_run_walks_with_their_stand_ins(
    recipe: Path, pilgrim: Callable[..., Any], preferences: list[str], files: dict[str, Path], tmp_path: Path
) -> None:
    absent = ['datasets.better.files=["nowhere.parquet"]', 'dpo.pairs=["dataset:better"]']
    counted = ["datasets.words.kind=rows", 'datasets.words.files=["nowhere.jsonl"]']
    tasks = ['rl.tasks.a={kind="gsm8k",prompts="dataset:sums"}']
    tasks += ['rl.tasks.b={kind="counting",prompts="dataset:words",tools=true}']
    said = pilgrim(
        "run", recipe, *preferences, *named(files), *absent, *counted, *tasks, "--until", "rl", "--dry-run"
    )
    assert said.exit_code == 0, said.output
    assert "datasets.better: 40 made rows, rows, instead of nowhere.parquet" in said.output
    assert "datasets.sums: the first 20 rows of" in said.output
    run = tmp_path / "runs" / "tiny-dry-run"
    assert sorted(file.name for file in (run / "shards" / "rows").glob("*.zst")) == [
        "better.jsonl.zst",
        "sums.jsonl.zst",
        "words.jsonl.zst",
    ]
    assert set(read_rows(run / "rl" / "evals.jsonl")[0]["held_out"]) == {"sums", "a", "b"}
