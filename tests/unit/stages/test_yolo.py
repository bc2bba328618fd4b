"""The recipe for 8 rented GPUs keeps what its head promises, and SkyPilot can read how it is to be rented."""

from pathlib import Path

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from pilgrim.core.stages import TRAINED
from pilgrim.launch.torchrun import refuse_more_than_rows
from pilgrim.model.count import flops_conventional, parameters
from pilgrim.model.memory import rows_that_fit, training_bytes
from pilgrim.stages.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[3]
YOLO = ROOT / "recipes" / "yolo.toml"
GPUS, H100_FLOPS = 8, 989.5e12  # dense bf16, NVIDIA's data sheet


@pytest.fixture(scope="module")
def yolo() -> Recipe:
    return load_recipe(YOLO, [])


def tokens(recipe: Recipe) -> int:
    stages = [settings for name in TRAINED if (settings := recipe.training(name))]
    return sum((stage.steps or 0) * (stage.rows or 0) * recipe.model.context for stage in stages)


def test_its_head_is_right_about_size_and_cost(yolo: Recipe) -> None:
    config, head = yolo.model.config(yolo.tokenizer.vocab_size), YOLO.read_text()
    assert f"{parameters(config).total / 1e9:.1f} billion parameters" in head
    assert yolo.pretrain.steps and yolo.pretrain.rows
    assert f"{yolo.pretrain.steps * yolo.pretrain.rows * 2048 / 1e9:.1f} billion tokens" in head
    operations = flops_conventional(config, 2048).training * tokens(yolo)
    hours = operations / (GPUS * 0.4 * H100_FLOPS) / 3600
    assert f"{operations:.1e} operations".replace("e+", "e") in head
    assert f"{hours:.1f} hours" in head and f"{GPUS * hours:.0f} GPU-hours" in head


def test_a_smaller_one_costs_what_is_said(yolo: Recipe) -> None:
    smaller = load_recipe(YOLO, ["model.depth=30"])
    costs = [flops_conventional(r.model.config(32768), 2048).training * tokens(r) for r in (yolo, smaller)]
    assert 0.65 < costs[1] / costs[0] < 0.75


def test_it_fits_cards_of_80_gb(yolo: Recipe) -> None:
    """By the estimate for one process: eight share the optimizers' state."""
    config = yolo.model.config(yolo.tokenizer.vocab_size)
    assert rows_that_fit(config, 0.9 * 80e9, torch.bfloat16) >= 7
    one, two = (training_bytes(config, rows, torch.bfloat16).total / 1e9 for rows in (1, 2))
    assert f"{one:.0f} GB with one row" in YOLO.read_text()
    assert f"{two - one:.1f} GB" in YOLO.read_text()


def test_there_is_a_row_for_each_gpu_and_they_divide_evenly(yolo: Recipe) -> None:
    refuse_more_than_rows(yolo, GPUS)
    stages = [settings for name in TRAINED if (settings := yolo.training(name))]
    assert all(stage.rows and stage.rows % GPUS == 0 for stage in stages)


def test_a_step_is_far_shorter_than_what_counts_as_hung(yolo: Recipe) -> None:
    assert yolo.pretrain.rows
    per_token = flops_conventional(yolo.model.config(32768), 2048).training
    step_s = per_token * yolo.pretrain.rows * 2048 / (GPUS * 0.4 * H100_FLOPS)
    assert 3 < step_s < 5
    assert 20 * step_s < yolo.runtime.hang_s


# SkyPilot -----------------------------------------------------------------------------------------


def test_skypilot_reads_the_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # it keeps a folder there
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    sky = pytest.importorskip("sky", reason="pip install 'pilgrim[cloud]'")
    schemas = pytest.importorskip("sky.utils.schemas")
    monkeypatch.chdir(ROOT)
    task = sky.Task.from_yaml("skypilot/yolo.yaml")
    (resources,) = task.resources
    assert (str(resources.cloud), resources.accelerators, resources.use_spot) == ("Nebius", {"H100": 8}, True)
    assert resources.job_recovery["recover_on_exit_codes"] == [143]
    config = yaml.safe_load((ROOT / "skypilot/config.yaml").read_text())
    sky.utils.common_utils.validate_schema(config, schemas.get_config_schema(), "config.yaml: ")


def test_the_task_runs_what_is_here() -> None:
    """What can be said of it without SkyPilot."""
    task = yaml.safe_load((ROOT / "skypilot/yolo.yaml").read_text())
    config = yaml.safe_load((ROOT / "skypilot/config.yaml").read_text())
    assert (ROOT / task["envs"]["RECIPE"]).exists()
    assert task["resources"]["accelerators"] == f"H100:{GPUS}"
    (region,) = config["nebius"]["region_configs"].values()
    assert region["filesystems"][0]["mount_path"] == task["envs"]["PILGRIM_HOME"]
    assert task["run"].rstrip().splitlines()[-1].endswith('exec ~/pilgrim-env/bin/pilgrim run "$RECIPE"')
