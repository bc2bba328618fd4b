"""Named data sets: rows of every kind of file, and no more of them read than are asked for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from pilgrim.core.config import build
from pilgrim.core.errors import DataError, SettingsError
from pilgrim.data.datasets import (
    DatasetSettings,
    conversations,
    conversations_of,
    documents_of,
    drawn,
    rows_as_they_are,
    texts,
)
from pilgrim.stages.recipe import Recipe

TALKS = [
    {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": f"Ho {i}"}]}
    for i in range(20)
]


def written(file: Path, rows: list[dict[str, Any]]) -> str:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if file.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=3)
    else:
        file.write_bytes(zstandard.compress(data) if file.suffix == ".zst" else data)
    return str(file)


def dataset(**settings: Any) -> DatasetSettings:
    return build(DatasetSettings, settings, "x.toml")


def said(found: Iterator[Any]) -> list[str]:
    return [conversation.messages[-1].content for conversation in found]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.zst", "parquet"])
def test_rows_of_every_kind_of_file(tmp_path: Path, ending: str) -> None:
    file = written(tmp_path / f"talks.{ending}", TALKS)
    found = list(conversations("talks", dataset(kind="conversations", files=[file])))
    assert said(iter(found)) == [f"Ho {i}" for i in range(20)]
    assert {conversation.source for conversation in found} == {"talks"}
    story = written(tmp_path / f"stories.{ending}", [{"text": "A cat.", "source": "me"}, {"text": " "}])
    assert [(t.text, t.source) for t in texts("s", dataset(kind="text", files=[story]))] == [("A cat.", "me")]


def test_no_more_is_read_than_the_limit_says(tmp_path: Path) -> None:
    files = [written(tmp_path / "a.jsonl", TALKS[:5]), str(tmp_path / "missing.jsonl")]
    limited = dataset(kind="conversations", files=files, limit=5)
    assert len(list(conversations("talks", limited))) == 5  # the second file is not looked for
    with pytest.raises(DataError, match=r"there is no file .*missing\.jsonl"):
        list(conversations("talks", dataset(kind="conversations", files=files)))


def test_a_seed_draws_of_all_rows_evenly() -> None:
    rows = [("", {"number": i}) for i in range(12)]
    counts = [0] * 12
    for seed in range(600):
        numbers = [row["number"] for _, row in drawn(iter(rows), 4, seed)]
        assert len(numbers) == 4 and numbers == sorted(set(numbers))
        for number in numbers:
            counts[number] += 1
    assert all(abs(count - 200) < 4 * (600 * 1 / 3 * 2 / 3) ** 0.5 for count in counts)
    assert drawn(iter(rows), 4, 7) == drawn(iter(rows), 4, 7)
    assert drawn(iter(rows), 99, 7) == rows


def test_bad_rows_are_refused_or_counted(tmp_path: Path) -> None:
    rows = [*TALKS[:2], {"messages": [{"role": "user", "content": "And?"}]}]
    file = written(tmp_path / "talks.jsonl", rows)
    with pytest.raises(DataError, match=r"talks\.jsonl, line 3: no message of the assistant"):
        list(conversations("t", dataset(kind="conversations", files=[file])))
    told: list[str] = []
    skipping = dataset(kind="conversations", files=[file], bad_rows="skip")
    assert len(list(conversations("t", skipping, told.append))) == 2
    assert told[0].startswith("datasets.t: 1 rows of 3 were skipped, such as ") and "line 3" in told[0]


def test_an_empty_data_set(tmp_path: Path) -> None:
    file = written(tmp_path / "none.jsonl", [])
    with pytest.raises(DataError, match=r"datasets\.t holds no conversation; name files with rows in them"):
        list(conversations("t", dataset(kind="conversations", files=[file])))
    with pytest.raises(DataError, match=r"datasets\.t holds no document; name files with rows in them"):
        list(texts("t", dataset(kind="text", files=[file])))


def test_parquet_without_the_column(tmp_path: Path) -> None:
    file = written(tmp_path / "t.parquet", [{"prompt": "Hi", "reply": "Ho"}])
    with pytest.raises(
        DataError, match=r"t\.parquet has no column 'messages'; its columns are prompt, reply:"
    ):
        list(conversations("t", dataset(kind="conversations", files=[file])))
    Path(file).write_bytes(Path(file).read_bytes()[:-20])
    with pytest.raises(DataError, match=r"t\.parquet is no whole Parquet file .*; fetch or make it again"):
        list(conversations("t", dataset(kind="conversations", files=[file])))


def test_parquet_with_bytes_that_are_no_text(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    offsets = pa.py_buffer(np.array([0, 2, 4], dtype=np.int32).tobytes())
    odd = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ok\xff\xfe")])
    pq.write_table(pa.table({"text": odd}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: behind row 0 is text that is no valid UTF-8"):
        list(texts("t", dataset(kind="text", files=[str(tmp_path / "t.parquet")])))


def test_a_file_without_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"files ending in '\.csv' hold no rows; use \.jsonl"):
        list(conversations("t", dataset(kind="conversations", files=[str(tmp_path / "t.csv")])))


def test_names_among_files(tmp_path: Path) -> None:
    known = {
        "talks": dataset(kind="conversations", files=[written(tmp_path / "a.jsonl", TALKS[:2])]),
        "tales": dataset(kind="text", files=[written(tmp_path / "b.jsonl", [{"text": "Once."}])]),
    }
    more = written(tmp_path / "c.jsonl", TALKS[5:6])
    assert said(conversations_of(["dataset:talks", more], known)) == ["Ho 0", "Ho 1", "Ho 5"]
    assert [t.text for t in documents_of(["dataset:tales"], known)] == ["Once."]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.zst", "parquet"])
@pytest.mark.parametrize("kind", ["rows", "gsm8k", "conversations"])
def test_rows_as_they_are(tmp_path: Path, ending: str, kind: str) -> None:
    rows = [{"question": f"{i}?", "answer": f"#### {i}", "more": [{"deep": [i]}]} for i in range(12)]
    both = dataset(kind=kind, files=[written(tmp_path / f"a.{ending}", rows)])
    assert list(rows_as_they_are("x", both, lambda row, where: row)) == rows
    some = both.model_copy(update={"limit": 5, "seed": 3})
    assert list(rows_as_they_are("x", some, lambda row, where: row)) == [
        row for _, row in drawn((("", row) for row in rows), 5, 3)
    ]


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    def odd(row: dict[str, Any], where: str) -> int:
        if row["n"] % 2 == 0:
            raise DataError(f"{where}: {row['n']} is even")
        return int(row["n"])

    file = written(tmp_path / "a.jsonl", [{"n": n} for n in range(1, 6)])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: 2 is even"):
        list(rows_as_they_are("x", dataset(kind="rows", files=[file]), odd))
    told: list[str] = []
    skipping = dataset(kind="rows", files=[file], bad_rows="skip")
    assert list(rows_as_they_are("x", skipping, odd, told.append)) == [1, 3, 5]
    assert "datasets.x: 2 rows of 5 were skipped, such as" in told[0]
    none = dataset(kind="rows", files=[written(tmp_path / "b.jsonl", [{"n": 2}])], bad_rows="skip")
    with pytest.raises(DataError, match=r"datasets\.x holds no row; name files with rows in them"):
        list(rows_as_they_are("x", none, odd))


HASH = "740312add88f781978c0658806c59bc2815b9866"


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"a": {"kind": "text"}}, "datasets.a.files is missing: name at least one"),
        ({"a": {"kind": "spelling"}}, "datasets.a.limit is missing: spelling is made"),
        ({"a": {"kind": "identity", "files": ["x"]}}, "datasets.a.files: identity is made from name"),
        (
            {"a": {"kind": "text", "files": ["x"], "seed": 1}},
            "datasets.a.seed = 1 draws some of all rows, but",
        ),
        ({"a": {"kind": "text", "files": ["x"], "hub": "o/n"}}, "datasets.a.revision is missing, and"),
        (
            {"a": {"kind": "text", "files": ["x"], "hub": "o/n", "revision": "main"}},
            "datasets.a.revision = 'main' is no commit, and may mean other data tomorrow",
        ),
        ({"a": {"kind": "spelling", "limit": 9, "hub": "o/n"}}, "datasets.a.hub: spelling is made here, and"),
        ({"a": {"kind": "text", "files": ["x"], "bad_rows": "skip"}}, 'datasets.a.bad_rows = "skip" is for'),
        ({"a": {"kind": "identity", "about": " "}}, "datasets.a.about is empty, and would be an answer"),
        ({"text": {"kind": "identity"}}, "datasets.text: no data set can be named so"),
        ({"a": {"kind": "tex"}}, "datasets.a.kind = \"tex\" should be one of 'text', 'conversations'"),
    ],
)
def test_tables_that_contradict_themselves(tables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as error:
        build(Recipe, {"name": "x", "datasets": tables}, "x.toml")
    assert str(error.value).startswith(f"x.toml: {sentence}")


KNOWN = {
    "smalltalk": {"kind": "identity"},
    "asis": {"kind": "rows", "files": ["a.parquet"]},
    "tales": {"kind": "text", "files": ["t.txt"]},
}


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (
            {"midtrain": {"mixture": {"smaltalk": {"weight": 1}}}},
            "midtrain.mixture names smaltalk, but there is no [datasets.smaltalk]; did you mean smalltalk?",
        ),
        (
            {"midtrain": {"mixture": {"text": {"weight": -1}}}},
            "midtrain.mixture.text.weight = -1 should be greater than 0",
        ),
        (
            {"midtrain": {"mixture": {"text": {"weight": 1}}, "conversation_share": 0.5}},
            "midtrain.conversation_share = 0.5 says what midtrain.mixture says",
        ),
        ({"sft": {"mixture": {"conversations": {"weight": 1}}}}, "sft.steps is missing"),
        (
            {"sft": {"mixture": {"text": {"epochs": 1}}, "grow": {"rows": [[0.0, 2], [0.5, 4]]}}},
            "sft.mixture has epochs, which are counted in rows of one length, and sft.grow",
        ),
        ({"midtrain": {"context": 64}}, "midtrain.context = 64 is less than model.context = 512"),
        ({"data": {"train": ["dataset:talk"]}}, "[data] names dataset:talk, but there is no [datasets.talk]"),
        (
            {"data": {"train": ["dataset:smalltalk"]}},
            "[data] names dataset:smalltalk where text must stand, but its kind is identity",
        ),
        (
            {"data": {"conversations": ["dataset:asis"]}},
            "[data] names dataset:asis where conversations must stand, but its kind is rows",
        ),
        (
            {"midtrain": {"mixture": {"asis": {"weight": 1}}}},
            "midtrain.mixture names asis, but its kind is rows, which only [dpo] and [rl] read; say what",
        ),
        (
            {"dpo": {"steps": 9, "pairs": ["dataset:asos"]}},
            "dpo.pairs names dataset:asos, but there is no [datasets.asos]; did you mean asis?",
        ),
        (
            {"dpo": {"steps": 9, "pairs_val": ["dataset:tales"]}},
            'dpo.pairs_val names dataset:tales, but its kind is text, of which only "text" is read; write',
        ),
        (
            {"rl": {"steps": 9, "tasks": {"a": {"kind": "gsm8k", "prompts": "dataset:smalltalk"}}}},
            "rl.tasks.a.prompts names dataset:smalltalk, but its kind is identity, which is made here",
        ),
        (
            {
                "rl": {
                    "steps": 9,
                    "tasks": {"a": {"kind": "gsm8k", "prompts": "dataset:asis", "held_out": "dataset:b"}},
                }
            },
            "rl.tasks.a.held_out names dataset:b, but there is no [datasets.b]; there are",
        ),
    ],
)
def test_recipes_that_name_what_is_not_there(recipe: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as error:
        build(Recipe, {"name": "x", "datasets": KNOWN, **recipe}, "x.toml")
    assert str(error.value).startswith(f"x.toml: {sentence}")
