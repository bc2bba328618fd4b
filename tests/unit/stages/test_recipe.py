"""Recipes: everything derived is written out, sensible, and reads back equal."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.config import build, dump_toml
from pilgrim.core.errors import SettingsError
from pilgrim.core.stages import TRAINED
from pilgrim.model.count import parameters
from pilgrim.stages.recipe import Recipe, load_recipe

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))


def recipe(**tables: Any) -> Recipe:
    return build(Recipe, {"name": "x", **tables}, "x.toml")


@pytest.mark.parametrize(
    "given",
    [
        recipe(),
        recipe(midtrain={}, sft={"steps": 200}),
        recipe(model={"depth": 12, "kv_heads": 2, "tied": True}, optim={"norm_lr": 0.5}, seed=7),
        recipe(pretrain={"begin": "bigram", "rows": 6, "micro_rows": 3, "steps": 40}),
        recipe(pretrain={"grow": {"context": [[0, 64], [0.3, 512]], "rows": [[0.0, 2], [0.5, 6]]}}),
        recipe(data={"val": [], "val_share": 0.02}, runtime={"threads": 2}, eval={"prompts": ["Über"]}),
        *(load_recipe(file, []) for file in RECIPES),
    ],
)
def test_a_resolved_recipe_reads_back_equal(given: Recipe, tmp_path: Path) -> None:
    """The run's recipe.toml is the recipe: loaded, resolved again, dumped again, nothing changes."""
    resolved = given.resolved()
    file = tmp_path / "recipe.toml"
    file.write_text(dump_toml(resolved))
    assert build(Recipe, tomllib.loads(file.read_text()), str(file)) == resolved
    assert resolved.resolved() == resolved
    assert load_recipe(file, []) == resolved
    assert dump_toml(load_recipe(file, [])) == file.read_text()


@pytest.mark.parametrize("depth", [4, 12, 20])
def test_one_dial_sets_everything(depth: int) -> None:
    found = recipe(model={"depth": depth}, midtrain={}, sft={"steps": 100}).resolved()
    model, optim, pretrain = found.model, found.optim, found.pretrain
    assert model.width == 64 * depth
    assert model.head_size == 128 and model.heads == model.kv_heads == depth // 2
    assert model.mlp_width == 3 * model.width
    assert pretrain.rows and pretrain.steps

    count = parameters(model.config(found.tokenizer.vocab_size))
    tokens = pretrain.rows * pretrain.steps * model.context
    assert tokens / (count.matrices + count.head) == pytest.approx(12, rel=0.01)
    assert 500 < pretrain.steps < 20_000
    rates = (optim.matrix_lr, optim.embedding_lr, optim.head_lr, optim.norm_lr)
    assert all(rate is not None and 0.001 < rate < 1 for rate in rates)
    assert found.midtrain and found.midtrain.steps == round(0.15 * pretrain.steps)
    for stage in (found.pretrain, found.midtrain, found.sft):
        assert stage and stage.rows == pretrain.rows
        assert stage.micro_rows is None  # found when it trains: train/fit.py


def test_deeper_is_more_of_everything() -> None:
    small, middle, large = (recipe(model={"depth": depth}).resolved() for depth in (4, 12, 20))
    for a, b in ((small, middle), (middle, large)):
        assert a.pretrain.rows and b.pretrain.rows and a.pretrain.rows < b.pretrain.rows
        assert a.optim.embedding_lr and b.optim.embedding_lr
        assert a.optim.embedding_lr > b.optim.embedding_lr


def test_what_is_derived_is_shown() -> None:
    """No setting that training depends on is left to be guessed from the dial."""
    shown = tomllib.loads(dump_toml(recipe(midtrain={}, sft={"steps": 9}).resolved()))
    assert shown["model"]["width"] == 256
    assert shown["optim"].keys() >= {"matrix_lr", "embedding_lr", "head_lr", "norm_lr"}
    trained = [stage for stage in TRAINED if stage in shown]
    assert trained == ["pretrain", "midtrain", "sft"]
    for stage in trained:
        assert shown[stage].keys() >= {"steps", "rows"}
    hidden = {
        (name, setting)
        for name, table in recipe(midtrain={}, sft={"steps": 9}).resolved()
        if hasattr(table, "model_dump")
        for setting, value in table.model_dump().items()
        if value is None
    }
    found_later = {(stage, "micro_rows") for stage in trained}  # when it trains: train/fit.py
    nothing_grows = {(stage, "grow") for stage in trained}
    all_weights = {(stage, name) for stage in trained for name in ("lora", "teacher")}
    no_windows = {("model", "window"), ("model", "window_pattern")}
    unbounded = {("model", "softcap")}
    as_in_pretraining = {("midtrain", "context"), ("midtrain", "rope_theta")}
    of_data = {("midtrain", "mixture"), ("sft", "mixture")}
    # threads: as many as torch chooses on the machine at hand
    as_it_was = nothing_grows | all_weights | no_windows | unbounded | as_in_pretraining | of_data
    assert hidden == {("runtime", "threads")} | found_later | as_it_was


def test_windows_are_shown_layer_by_layer() -> None:
    resolved = recipe(model={"depth": 6, "window": 64}).resolved()
    assert tomllib.loads(dump_toml(resolved))["model"]["window_pattern"] == "SSSLSL"
    assert recipe(model=resolved.model.model_dump()).resolved().model == resolved.model


def test_what_is_given_is_kept() -> None:
    found = recipe(
        model={"depth": 4, "width": 96, "head_size": 32, "mlp_width": 200},
        optim={"matrix_lr": 0.5},
        pretrain={"rows": 6, "micro_rows": 2, "steps": 30},
        midtrain={"rows": 2, "steps": 7},
        sft={"steps": 8, "micro_rows": 3},
    ).resolved()
    assert (found.model.width, found.model.heads, found.model.mlp_width) == (96, 3, 200)
    assert found.optim.matrix_lr == 0.5
    trained = [(s.rows, s.micro_rows, s.steps) for s in (found.pretrain, found.midtrain, found.sft) if s]
    assert trained == [(6, 2, 30), (2, None, 7), (6, 3, 8)]


def test_what_grows_ends_with_the_whole() -> None:
    """Rows follow from the list; steps are as many as the horizon needs at the mean size of a step."""
    grow = {"context": [[0, 128], [0.25, 512]], "rows": [[0, 4], [0.5, 8]]}
    found, plain = recipe(pretrain={"grow": grow}).resolved(), recipe(pretrain={"rows": 8}).resolved()
    assert found.pretrain.rows == 8
    mean = 0.25 * 4 * 128 + 0.25 * 4 * 512 + 0.5 * 8 * 512
    assert found.pretrain.steps and plain.pretrain.steps
    assert found.pretrain.steps * mean == pytest.approx(plain.pretrain.steps * 8 * 512, rel=1e-3)


def test_beta_follows_from_the_loss() -> None:
    for loss, beta in (("dpo", 0.1), ("apo_zero", 0.1), ("dpo_norm", 5.0)):
        found = recipe(dpo={"steps": 9, "loss": loss}).resolved()
        assert found.dpo and found.dpo.beta == beta and found.dpo.rows == found.pretrain.rows
    given = recipe(dpo={"steps": 9, "loss": "dpo_norm", "beta": 2}).resolved()
    assert given.dpo and given.dpo.beta == 2


def test_a_stage_without_a_table_is_not_there() -> None:
    found = recipe().resolved()
    assert (found.midtrain, found.sft, found.dpo) == (None, None, None)
    assert "[midtrain]" not in dump_toml(found)


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"sft": {}}, "x.toml: sft.steps is missing"),
        ({"dpo": {}}, "x.toml: dpo.steps is missing"),
        ({"dpo": {"steps": 9, "pairs_val": []}}, "held-out pairs need exactly one of them"),
        ({"dpo": {"steps": 9, "val_share": 0.1}}, "held-out pairs need exactly one of them"),
        (
            {"dpo": {"steps": 9, "loss": "apo_zero", "label_smoothing": 0.1}},
            "dpo.label_smoothing = 0.1 swaps chosen and rejected, which apo_zero does not compare",
        ),
        (
            {"dpo": {"steps": 9, "grow": {"context": [[0, 128], [0.5, 512]]}}},
            "dpo.grow.context would cut pairs in two",
        ),
        ({"dpo": {"steps": 9, "beta": 0}}, "dpo.beta = 0"),
        (
            {"pretrain": {"steps": 3}},
            "x.toml: pretrain.warmup = 5 must be less than pretrain.steps = 3; try 0",
        ),
        (
            {"sft": {"steps": 9, "rows": 6, "micro_rows": 4}},
            "x.toml: sft.micro_rows = 4 must divide sft.rows = 6; try 2",
        ),
        (
            {"midtrain": {"conversation_share": 1.5}},
            "x.toml: midtrain.conversation_share = 1.5 should be less than 1",
        ),
        (
            {"pretrain": {"grow": {"context": [[0, 128], [0.5, 256]]}}},
            "x.toml: pretrain.grow.context = … [128, 256] must end with model.context = 512",
        ),
        (
            {"pretrain": {"grow": {"window": [[0, 64], [0.5, 128]]}}},
            "x.toml: pretrain.grow.window = … [64, 128] needs layers that have a window",
        ),
        (
            {"model": {"window": 256}, "pretrain": {"grow": {"window": [[0, 64], [0.5, 128]]}}},
            "x.toml: pretrain.grow.window = … [64, 128] must end with model.window = 256, and go no higher",
        ),
        (
            {"pretrain": {"rows": 4, "grow": {"rows": [[0, 2], [0.5, 8]]}}},
            "x.toml: pretrain.grow.rows ends with 8, but pretrain.rows = 4; leave pretrain.rows out",
        ),
        (
            {"pretrain": {"grow": {"rows": [[0.1, 2], [0.5, 8]]}}},
            "x.toml: pretrain.grow.rows: the shares [0.1, 0.5] must begin with 0, rise, and stay below 1",
        ),
        (
            {"sft": {"steps": 9, "micro_rows": 4, "grow": {"rows": [[0, 6], [0.5, 8]]}}},
            "x.toml: sft.micro_rows = 4 must divide sft.rows = 6; try 2",
        ),
        ({"pretrain": {"grow": {"rows": []}}}, "x.toml: pretrain.grow.rows: the shares [] must begin with 0"),
        ({"pretrain": {"grow": {"context": [[0, 4]]}}}, "x.toml: pretrain.grow.context has 4 in it; 8 is"),
        ({"pretrain": {"grow": {"rows": [[0, "4"]]}}}, "x.toml: pretrain.grow.rows.0.1 = "),
        ({"name": "../x"}, 'x.toml: name = "../x": it names a folder'),
        ({"name": ""}, 'x.toml: name = "": it names a folder'),
        ({"evals": {}}, "x.toml: evals is not a setting; did you mean eval?"),
    ],
)
def test_what_can_not_be(tables: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as error:
        recipe(**tables)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
