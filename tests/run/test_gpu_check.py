"""The one command for a GPU: it runs what it is to run, goes on after a failure, and says how each ended."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from pilgrim.core.config import apply_overrides, build, load_toml
from pilgrim.data.sources import find
from pilgrim.stages.recipe import Recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that writes into a folder of the test's."""
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks/gpu_check.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_one_that_fails_stops_none_of_the_others(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python = gpu_check.PYTHON
    checks = {
        "missing": ["no-such-program-at-all"],
        "fails": [python, "-c", "raise SystemExit(3)"],
        "works": [python, "-c", "print('hello')"],
    }
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    monkeypatch.setattr("sys.argv", ["gpu_check.py"])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code
    folder = tmp_path / gpu_check.FOLDER
    missing, fails, works = (folder / "summary.txt").read_text().splitlines()
    assert "failed (127)" in missing and "failed (3)" in fails and " ok " in works
    assert (folder / "works.txt").read_text() == "hello\n"
    assert "no-such-program-at-all is not installed" in (folder / "missing.txt").read_text()


def test_the_runs_have_all_their_text(gpu_check: ModuleType) -> None:
    """The recipes want files of the user's; the check replaces each of them with a bundled one."""
    command = gpu_check.CHECKS["run-d12"]
    overrides = [word for word in command if "=" in word]
    tree = apply_overrides(load_toml(ROOT / "recipes/d12.toml"), overrides)
    recipe = build(Recipe, tree, "d12").resolved()
    data = recipe.data
    for name in (*data.train, *data.val, *data.conversations, *data.conversations_val):
        assert find(name).is_file()
    assert recipe.pretrain.steps == 60


def test_what_the_checks_start_is_there(gpu_check: ModuleType) -> None:
    for command in gpu_check.CHECKS.values():
        for word in command:
            if word.endswith((".py", ".toml")):
                assert (ROOT / word).is_file(), word
