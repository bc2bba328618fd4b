"""The command line: help that works, errors in one sentence, the right run folder."""

import inspect
import os
import shlex
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from pilgrim.cli import app
from pilgrim.cli.base import Bits, find_run, guarded
from pilgrim.cli.chat import chat
from pilgrim.core.errors import PilgrimError
from pilgrim.infer.quantized import Weights
from pilgrim.infer.sampling import Sampling

COMMANDS = ["run", "chat", "serve", "eval", "report", "profile", "bench", "synth", "export", "doctor"]

runner = CliRunner()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(name: str, trained_at: float | None = None) -> Path:
    """A run folder; with `trained_at` (seconds since 1970) it has a checkpoint of that time."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(f'name = "{name}"\n')
    if trained_at is not None:
        latest = folder / "pretrain" / "checkpoints" / "LATEST"
        latest.parent.mkdir(parents=True)
        latest.write_text("step_000001\n")
        os.utime(latest, (trained_at, trained_at))
    return folder


def one_sentence(*arguments: str) -> str:
    """The error that `pilgrim *arguments` ends with; checks that it is one line and the exit code 2."""
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr.strip()


# Help ---------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.output
    assert "pilgrim run recipes/pocket.toml" in result.output


def test_no_command_shows_help() -> None:
    assert "A first walk" in runner.invoke(app, []).output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Usage: pilgrim {command}" in result.output


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("pilgrim 0.")


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["chat", "serve", "eval", "report"])
def test_unknown_run(command: str, here: Path) -> None:
    sentence = one_sentence(command, "pocket")
    assert sentence.startswith("pocket is no run")
    assert sentence.endswith("make one: pilgrim run recipes/pocket.toml")


def test_unknown_run_to_export(here: Path) -> None:
    assert one_sentence("export", "pocket", "--to", "hf", "--out", "x").startswith("pocket is no run")


def test_missing_recipe(here: Path) -> None:
    assert one_sentence("run", "pocket.toml") == "pocket.toml does not exist; check the path"


def test_bad_sampling(here: Path) -> None:
    make_run("pocket", trained_at=1.0)
    assert "temperature" in one_sentence("chat", "pocket", "--temperature", "-1")


def test_chat_has_the_defaults_of_sampling() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(chat).parameters.items()}
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens"):
        assert defaults[name] == Sampling.model_fields[name].default, name


def test_markup_in_an_error_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = (
        "x.toml: [red] and :smile: stay, even in a sentence that is longer than eighty characters are wide"
    )

    def fails() -> None:
        raise PilgrimError(sentence)

    with pytest.raises(typer.Exit) as exit_:
        guarded()(fails)()
    assert exit_.value.exit_code == 2
    assert capsys.readouterr().err == sentence + "\n"


def test_ctrl_c_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pilgrim", "run", "my recipe.toml", "name=try2"])

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as exit_:
        guarded(after_stop="go on with")(interrupted)()
    assert exit_.value.exit_code == 130
    words = shlex.split(capsys.readouterr().err)
    assert words[:3] == ["stopped;", "go", "on"]
    assert words[-3:] == ["run", "my recipe.toml", "name=try2"]


def test_a_bug_keeps_its_traceback() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded()(broken)()


# Which run is meant -------------------------------------------------------------------------------


def test_a_bare_name_means_a_run_below_runs(here: Path) -> None:
    make_run("other")
    folder = make_run("pocket")
    assert find_run("pocket") == folder


def test_a_path_means_that_folder(here: Path) -> None:
    folder = make_run("pocket")
    assert find_run(str(folder)) == folder
    assert find_run(str(folder.resolve())) == folder.resolve()


def test_a_folder_that_is_no_run_is_refused(here: Path) -> None:
    Path("docs").mkdir()
    with pytest.raises(PilgrimError, match="docs is no run"):
        find_run("docs")


def test_a_mistyped_name_gets_the_nearest(here: Path) -> None:
    make_run("pocket")
    with pytest.raises(PilgrimError, match="did you mean pocket"):
        find_run("poket")


def test_without_a_name_the_last_trained_run_is_taken(here: Path) -> None:
    make_run("a", trained_at=100.0)
    newest = make_run("b", trained_at=300.0)
    make_run("c", trained_at=200.0)
    make_run("d")
    assert find_run(None) == newest


def test_without_a_trained_run_it_says_how_to_get_one(here: Path) -> None:
    make_run("begun")
    with pytest.raises(PilgrimError, match="train one: pilgrim run"):
        find_run(None)


# doctor -------------------------------------------------------------------------------------------


def test_doctor_tells_what_will_be_used() -> None:
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0
    for word in ("processor", "memory", "verdict", "A run computes on"):
        assert word in result.output


def test_weights_have_the_same_names_as_in_the_engine() -> None:
    assert get_args(Bits) == get_args(Weights)
