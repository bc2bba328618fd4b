"""A walk over a mixture: token sets, sources told in every step, epochs that end, a context that grows."""

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.console import Console
from pilgrim.core.errors import SettingsError
from pilgrim.core.files import read_json, read_jsonl_zst
from pilgrim.core.runlog import read_rows
from pilgrim.data.sources import ASSETS
from pilgrim.infer.load import load_model
from pilgrim.stages.journey import run_journey

Walk = Callable[..., Path]
EPOCHS = {"talks": 2, "sums": 3, "letters": 1, "who": 1.5}


@pytest.fixture(scope="module")
def mixed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with data sets of every kind in two mixtures, and rows twice as long from midtraining on."""
    folder = tmp_path_factory.mktemp("mixed")
    sums = [{"question": f"{n}*2?", "answer": f"<<{n}*2={2 * n}>>{2 * n}\n#### {2 * n}"} for n in range(9)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    talks = [row for _, row in islice(read_jsonl_zst(ASSETS / "conversations/train.jsonl.zst"), 30)]
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    tables = f"""
[datasets.talks]
kind = "conversations"
files = ["{folder}/talks.jsonl"]
[datasets.sums]
kind = "gsm8k"
files = ["{folder}/sums.jsonl"]
[datasets.letters]
kind = "spelling"
limit = 20
[datasets.who]
kind = "identity"
limit = 20
[midtrain.mixture]
text = {{ weight = 0.6 }}
talks = {{ weight = 0.2 }}
sums = {{ weight = 0.2 }}
[sft.mixture]
"""
    tables += "".join(f"{name} = {{ epochs = {n} }}\n" for name, n in EPOCHS.items())
    text = recipe.read_text().replace('name = "tiny"', 'name = "mixed"') + tables
    text = text.replace("[midtrain]\n", "[midtrain]\ncontext = 256\nrope_theta = 40000.0\n")
    text = text.replace("[sft]\nsteps = 6\n", "[sft]\ncheckpoint_every = 2\n")
    file = folder / "mixed.toml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def run_of_it(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_journey(mixed, [], runs=tmp_path_factory.mktemp("runs"), console=Console(quiet=True))


def test_each_data_set_is_a_token_set(run_of_it: Path) -> None:
    sets = {file.stem for file in (run_of_it / "shards").glob("*.json")} - {"DONE"}
    assert sets == {"train", "val", "chat_val", "talks", "sums", "letters", "who"}  # and no chat_train
    assert read_json(run_of_it / "shards" / "sums.json")["sources"] == {"sums": 9}


def test_every_step_tells_of_its_sources(run_of_it: Path) -> None:
    for row in read_rows(run_of_it / "midtrain" / "metrics.jsonl"):
        sources = row["sources"]
        assert sources.keys() <= {"text", "talks", "sums"}
        assert sum(source["share"] for source in sources.values()) == pytest.approx(1)
    first = read_rows(run_of_it / "sft" / "metrics.jsonl")[0]
    shares = [source["tokens"] for source in first["sources"].values()]
    assert sum(shares) == first["tokens"]  # of this step, which is the first


def test_epochs_say_how_many_steps_there_are_and_end_as_they_say(run_of_it: Path) -> None:
    rows = read_rows(run_of_it / "sft" / "metrics.jsonl")
    assert read_json(run_of_it / "sft" / "DONE.json")["summary"]["steps"] == len(rows) > 6
    tokens: dict[str, int] = dict.fromkeys(EPOCHS, 0)
    for row in rows:
        for name, source in row["sources"].items():
            tokens[name] += source["tokens"]
    for name, epochs in EPOCHS.items():
        whole = read_json(run_of_it / "shards" / f"{name}.json")["tokens"]
        # All of it so many times, to a row: where an epoch ends in the middle, and where the last step does.
        assert abs(tokens[name] - epochs * whole) <= 2 * 256, name


def test_the_context_has_grown_for_all_that_follow(
    run_of_it: Path, pilgrim: Callable[..., Any], tmp_path: Path
) -> None:
    for stage, context, theta in (("pretrain", 128, 1e4), ("midtrain", 256, 4e4), ("sft", 256, 4e4)):
        config = load_model(run_of_it / stage).config
        assert (config.context, config.rope_theta) == (context, theta)
    result = pilgrim("export", run_of_it, "--to", "hf", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert exported["max_position_embeddings"] == 256
    assert 40000.0 in (exported.get("rope_theta"), exported.get("rope_parameters", {}).get("rope_theta"))


def test_it_goes_on_in_the_middle_of_a_mixture_to_the_same_rows(
    run_of_it: Path, mixed: Path, tmp_path: Path
) -> None:
    """The last checkpoint and all that followed are taken away, and come again."""
    run = shutil.copytree(run_of_it, tmp_path / "mixed")
    before = (run / "sft" / "metrics.jsonl").read_bytes()
    (run / "sft" / "DONE.json").unlink()
    steps = sorted((run / "sft" / "checkpoints").glob("step_*"))
    shutil.rmtree(steps[-1])
    run_journey(mixed, [], runs=tmp_path, only="sft", console=Console(quiet=True))
    assert (run / "sft" / "metrics.jsonl").read_bytes() == before
    events = [row["kind"] for row in read_rows(run / "sft" / "events.jsonl")]
    assert "resume" in events


def test_token_sets_that_are_there_are_not_made_again(run_of_it: Path, mixed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_of_it, tmp_path / "mixed")
    (run / "shards" / "DONE.json").unlink()
    (run / "shards" / "who.json").unlink()  # as if it had been stopped before this one
    old = {name: (run / "shards" / f"{name}.json").stat().st_mtime_ns for name in ("sums", "talks")}
    run_journey(mixed, [], runs=tmp_path, only="shards", console=Console(quiet=True))
    assert old == {name: (run / "shards" / f"{name}.json").stat().st_mtime_ns for name in old}
    assert (run / "shards" / "who.json").exists()


def test_text_is_kept_apart_from_the_validation_of_now(recipe: Path, tmp_path: Path) -> None:
    """A set that was made before is made again if other documents are validation's since then."""
    texts = [f"Once there was number {n}, who liked to count." for n in range(8)]
    for name, some in {"more": texts, "other": texts[:3]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in some))
    more = ["datasets.more.kind=text", f'datasets.more.files=["{tmp_path}/more.jsonl"]']
    more += ["midtrain.mixture.more.weight=1.0"]
    quiet = Console(quiet=True)
    run = run_journey(recipe, more, runs=tmp_path, until="shards", console=quiet)
    assert read_json(run / "shards" / "more.json")["documents"] == 8
    (run / "shards" / "DONE.json").unlink()
    more += [f'data.val=["{tmp_path}/other.jsonl"]']
    run_journey(recipe, more, runs=tmp_path, until="shards", accept_changes=True, console=quiet)
    assert read_json(run / "shards" / "more.json")["documents"] == 5


def test_a_warmup_longer_than_the_epochs(mixed: Path, run_of_it: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_of_it, tmp_path / "mixed")
    shutil.rmtree(run / "sft")
    with pytest.raises(SettingsError, match=r"sft\.warmup = 999 must be less than .*the epochs of"):
        run_journey(
            mixed, ["sft.warmup=999"], runs=tmp_path, accept_changes=True, console=Console(quiet=True)
        )
