"""A run teaches another: by what it writes, and by what it foresees."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from odd_endpoint import odd_endpoint, words

from pilgrim.core.files import read_jsonl_zst
from pilgrim.core.runlog import read_rows
from pilgrim.data.conversations import read_conversations
from pilgrim.export.huggingface import export

Walk = Callable[..., Path]
Essence = Callable[[Path], dict[str, str]]
Pilgrim = Callable[..., Any]  # ("run", recipe) -> a result with exit_code, output and stderr


# By what it writes --------------------------------------------------------------------------------


def rejecting(folder: Path, run: Path) -> Path:
    """A recipe of questions that a model of 24 steps can answer now and then."""
    questions = folder / "letters.jsonl"
    lines = [{"id": f"q{n}", "prompt": f"Say something, {n}!", "regex": "[aeiou]"} for n in range(4)]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = folder / "letters.toml"
    file.write_text(
        f'out = "{folder / "letters"}"\nsamples = 4\nkeep = 2\nquestions = ["{questions}"]\n'
        f'[run]\npath = "{run}"\nmax_tokens = 12\nrows = 16\n[filters]\nends = false\n'
    )
    return file


def test_what_a_run_says_right_is_kept_to_learn_from(walked: Path, tmp_path: Path, pilgrim: Pilgrim) -> None:
    result = pilgrim("synth", rejecting(tmp_path, walked))
    assert result.exit_code == 0, result.output
    file = tmp_path / "letters" / "conversations.jsonl"
    before = file.read_bytes()
    talks = read_conversations([str(file)])
    assert 2 <= len(talks) <= 8
    for row in (row for _, row in read_jsonl_zst(file)):
        assert any(vowel in row["messages"][1]["content"] for vowel in "aeiou")
        assert row["synth"]["model"].endswith("sft, step 6")
    again = pilgrim("synth", tmp_path / "letters.toml")
    assert "16 answers are there from before" in again.output
    assert file.read_bytes() == before

    shutil.copytree(walked, tmp_path / "run", ignore=shutil.ignore_patterns("sft", "evaluate"))
    shutil.copytree(walked / "midtrain", tmp_path / "run" / "sft")  # trained anew, to the same step
    (tmp_path / "anew").mkdir()
    renamed = shutil.move(tmp_path / "run", tmp_path / "anew" / walked.name)
    (tmp_path / "letters.toml").write_text(
        (tmp_path / "letters.toml").read_text().replace(str(walked), str(renamed))
    )
    others = pilgrim("synth", tmp_path / "letters.toml")
    assert "its weights are others than when this folder was begun" in " ".join(others.output.split())
    assert file.read_bytes() != before

    other = tmp_path / "other"  # drawn anew, it is the same, however many are written at once
    other.mkdir()
    assert pilgrim("synth", rejecting(other, walked), "run.rows=3", f"out={other / 'letters'}").exit_code == 0
    assert (other / "letters" / "conversations.jsonl").read_bytes() == before


def test_what_a_run_has_written_trains_another(
    walked: Path, tmp_path: Path, pilgrim: Pilgrim, walk: Walk
) -> None:
    assert pilgrim("synth", rejecting(tmp_path, walked)).exit_code == 0
    file = json.dumps([str(tmp_path / "letters" / "conversations.jsonl")])
    pupil = walk(tmp_path / "runs", "name=pupil", f"data.conversations={file}", until="sft")
    assert read_rows(pupil / "sft" / "metrics.jsonl")[-1]["step"] == 6


def test_without_a_person_nothing_leaves_this_machine(tmp_path: Path, pilgrim: Pilgrim) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'out = "out"\nwanted = 1\n[endpoint]\nurl = "http://api.example/v1"\nmodel = "m"\n'
        '[[prompts]]\nid = "a"\nturns = ["b"]\n'
    )
    result = pilgrim("synth", recipe)
    assert result.exit_code == 2 and "they go to http://api.example/v1 (m), unencrypted" in result.output
    assert "nobody is here to be asked; give --yes" in result.stderr


def test_a_server_on_this_machine_needs_no_yes(tmp_path: Path, pilgrim: Pilgrim) -> None:
    with odd_endpoint(lambda request, number: words(request)) as server:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(
            f'out = "out"\nwanted = 3\n[endpoint]\nurl = "{server.url}"\nmodel = "m"\nprice_out = 5.0\n'
            '[slots.a]\nvalues = ["x", "y"]\n[[prompts]]\nid = "a"\nturns = ["b {a}"]\n'
        )
        result = pilgrim("synth", recipe)
    assert result.exit_code == 0, result.output
    assert f"prompts go to {server.url} (m), which is this machine" in result.output
    assert "3/3 conversations" in result.output and "cost" in result.output


# By what it foresees ------------------------------------------------------------------------------


def taught_by(teacher: Path) -> list[str]:
    return [
        "name=pupil",
        "seed=2",
        "model.width=32",
        "model.depth=1",
        f"pretrain.teacher.run={teacher}",
        "pretrain.teacher.top_k=8",
        f"sft.teacher.run={teacher}",
        "sft.teacher.weight=1.0",
        "sft.teacher.temperature=2.0",
    ]


@pytest.fixture(scope="module")
def pupil(walk: Walk, walked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller run that has learned from the other. To be looked at only."""
    return walk(tmp_path_factory.mktemp("pupil"), *taught_by(walked), until="sft")


def test_both_parts_of_the_loss_are_told(pupil: Path) -> None:
    for stage, weight, factor in (("pretrain", 0.5, 1.0), ("sft", 1.0, 4.0)):
        for row in read_rows(pupil / stage / "metrics.jsonl"):
            mixed = (1 - weight) * row["cross_entropy"] + weight * factor * row["teacher_kl"]
            assert row["loss"] == pytest.approx(mixed, rel=1e-5) and row["teacher_kl"] > 0
    divergences = [row["teacher_kl"] for row in read_rows(pupil / "pretrain" / "metrics.jsonl")]
    assert divergences[-1] < divergences[0]
    assert "teacher_kl" not in read_rows(pupil / "midtrain" / "metrics.jsonl")[0]


def test_a_taught_run_goes_on_to_the_same_bits(
    pupil: Path, walk: Walk, walked: Path, tmp_path: Path, essence: Essence
) -> None:
    run = shutil.copytree(pupil, tmp_path / "pupil")
    for stage in ("midtrain", "sft"):
        shutil.rmtree(run / stage)
    (run / "pretrain" / "DONE.json").unlink()
    checkpoints = run / "pretrain" / "checkpoints"
    shutil.rmtree(checkpoints / "step_000012")
    (checkpoints / "LATEST").write_text("step_000008")
    assert essence(run) != essence(pupil)
    assert essence(walk(tmp_path, *taught_by(walked), until="sft")) == essence(pupil)


def test_an_exported_folder_teaches_the_same(pupil: Path, walk: Walk, walked: Path, tmp_path: Path) -> None:
    """The tokenizer's file differs there; what it is made of does not."""
    folder = export(walked, tmp_path / "hf", say=lambda sentence: None)
    overrides = [one for one in taught_by(folder) if not one.startswith("sft")]
    other = walk(tmp_path / "runs", *overrides, until="pretrain")
    ours = [row["loss"] for row in read_rows(pupil / "pretrain" / "metrics.jsonl")]
    assert [row["loss"] for row in read_rows(other / "pretrain" / "metrics.jsonl")] == pytest.approx(ours)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            ["pretrain.teacher.run=nowhere"],
            "pretrain.teacher.run = nowhere: there is neither a run (recipe.toml)",
        ),
        (["tokenizer.vocab_size=500"], "its tokenizer is not this run's, so its tokens have other numbers"),
        (["model.context=256"], "was made for 128 tokens, and model.context = 256; lower that"),
        (["pretrain.teacher.top_k=512"], "pretrain.teacher.top_k = 512 must be less than the 512 tokens"),
        (["pretrain.teacher.weight=0"], "pretrain.teacher.weight = 0 should be greater than 0"),
        (["pretrain.teacher.stage=rl"], "rl holds no checkpoint"),
    ],
)
def test_a_teacher_that_can_not_teach(
    walked: Path, recipe: Path, pilgrim: Pilgrim, changes: list[str], sentence: str
) -> None:
    result = pilgrim("run", recipe, *taught_by(walked), *changes, "--until", "pretrain")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
    assert sentence in result.stderr


def test_another_teacher_in_the_middle_is_refused(
    pupil: Path, walked: Path, recipe: Path, tmp_path: Path, pilgrim: Pilgrim, walk: Walk
) -> None:
    teacher = shutil.copytree(walked, tmp_path / "teacher")
    walk(tmp_path / "runs", *taught_by(teacher), until="pretrain")
    (tmp_path / "runs" / "pupil" / "pretrain" / "DONE.json").unlink()
    shutil.rmtree(teacher / "sft")  # so the last of its stages is another one
    result = pilgrim("run", recipe, *taught_by(teacher), "--until", "pretrain")
    assert result.exit_code == 2
    assert "these are not the weights that this stage has begun to learn from" in result.stderr
