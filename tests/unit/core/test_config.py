"""Recipes: each kind of bad setting gets its sentence, and what is written reads back equal."""

import tomllib
from pathlib import Path
from typing import Literal, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, computed_field, model_validator

from pilgrim.core.config import Settings, apply_overrides, build, differences, dump_toml, load_toml
from pilgrim.core.errors import SettingsError


class Model(Settings):
    depth: int = Field(default=4, ge=1)
    width: int = 256
    heads: int = 4
    rate: float = 0.5
    tied: bool = True
    kind: Literal["plain", "gated"] = "plain"

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"model.heads = {self.heads} must divide model.width = {self.width}; try 4")
        return self

    @computed_field
    def head_size(self) -> int:
        return self.width // self.heads


class Source(Settings):
    path: Path
    weight: float = 1.0


class Recipe(Settings):
    name: str = Field(description="what the run is called")
    seed: int = 0
    model: Model = Model()
    tail: Model | None = None
    sources: tuple[Source, ...] = ()
    stops: tuple[int, ...] = (1, 2)
    threads: int | None = None


def complaint(toml: str, *overrides: str) -> str:
    with pytest.raises(SettingsError) as error:
        build(Recipe, apply_overrides(tomllib.loads(toml), overrides), "recipes/x.toml")
    return str(error.value)


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("name='a'\nmodel.dpeth=3", "model.dpeth is not a setting; did you mean model.depth?"),
        ("name='a'\ntail.dpeth=3", "tail.dpeth is not a setting; did you mean tail.depth?"),
        ("nmae='a'", "nmae is not a setting; did you mean name?"),
        ("name='a'\ndepth=3", "depth is not a setting; did you mean model.depth?"),
        ("name='a'\nmodle.depth=3", "modle is not a setting; did you mean model?"),
        (
            "name='a'\n[[sources]]\npath='x'\nwieght=2",
            "sources.0.wieght is not a setting; did you mean sources.0.weight?",
        ),
        (
            "name='a'\nmodel.qqqqq=3",
            "model.qqqqq is not a setting; known here: depth, width, heads, rate, tied, kind",
        ),
        ("seed=1", "name is missing (what the run is called); add it"),
        ("name=3", "name = 3 should be text in quotes"),
        ("name='a'\nmodel.depth='four'", 'model.depth = "four" should be a whole number'),
        ("name='a'\nmodel.depth='4'", 'model.depth = "4" should be a whole number; write 4'),
        ("name='a'\nmodel.depth=true", "model.depth = true should be a whole number"),
        ("name='a'\nmodel.depth=4.5", "model.depth = 4.5 should be a whole number"),
        ("name='a'\nmodel.depth=4.0", "model.depth = 4.0 should be a whole number"),
        ("name='a'\nmodel.depth=0", "model.depth = 0 should be greater than or equal to 1"),
        ("name='a'\nmodel.rate='0.5'", 'model.rate = "0.5" should be a number; write 0.5'),
        ("name='a'\nmodel.rate=true", "model.rate = true should be a number"),
        ("name='a'\nmodel.tied=1", "model.tied = 1 should be true or false"),
        ("name='a'\nmodel.kind='odd'", "model.kind = \"odd\" should be one of 'plain' or 'gated'"),
        ("name='a'\nmodel=3", "model = 3 should be a table of settings"),
        ("name='a'\nstops=1", "stops = 1 should be a list such as [1, 2]"),
        ("name='a'\nstops=[1, 'x']", 'stops.1 = "x" should be a whole number'),
        ("name='a'\nthreads='x'", 'threads = "x" should be a whole number'),
        ("name='a'\nmodel.heads=5", "model.heads = 5 must divide model.width = 256; try 4"),
    ],
)
def test_bad_settings_are_told_in_one_sentence(toml: str, sentence: str) -> None:
    assert complaint(toml) == f"recipes/x.toml: {sentence}"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.dpeth=6", "command line: model.dpeth is not a setting; did you mean model.depth?"),
        ("sede=6", "command line: sede is not a setting; did you mean seed?"),
        ("modle.depth=6", "command line: modle is not a setting; did you mean model?"),
        ("model.depth=six", 'command line: model.depth = "six" should be a whole number'),
        ("model.depth=none", 'command line: model.depth = "none" should be a whole number'),
        ("model.depth=[1,", 'command line: model.depth = "[1," should be a whole number'),
        ("model.tied=True", 'command line: model.tied = "True" should be true or false'),
        ("model=6", "command line: model = 6 should be a table of settings"),
        (
            "model.depth.x=6",
            "command line: model.depth.x can't be set, as model.depth = 3 is a value, no table; "
            "write model.depth=...",
        ),
        ("depth", "command line: 'depth' is not of the form key=value, as in model.depth=6"),
        ("=6", "command line: '=6' is not of the form key=value, as in model.depth=6"),
        ("a..b=6", "command line: 'a..b=6' is not of the form key=value, as in model.depth=6"),
        (
            "model.heads=5",
            "recipes/x.toml with the command line: model.heads = 5 must divide model.width = 256; try 4",
        ),
    ],
)
def test_bad_overrides_name_the_command_line(override: str, sentence: str) -> None:
    assert complaint("name='a'\nmodel.depth=3", override) == sentence


def test_a_mistake_in_the_file_is_not_blamed_on_an_override_elsewhere() -> None:
    assert complaint("name='a'\nmodel.depth='x'", "model.width=512").startswith("recipes/x.toml: model.depth")


def test_overrides_are_read_as_toml_and_bare_words_as_text() -> None:
    tree = {"name": "a", "model": {"depth": 3}}
    overrides = ["model.depth=6", "model.rate=1e-3", "name=try2", "stops=[5, 6]", "model.tied=false"]
    recipe = build(Recipe, apply_overrides(tree, overrides), "x")
    assert (recipe.model.depth, recipe.model.rate, recipe.name) == (6, 1e-3, "try2")
    assert (recipe.stops, recipe.model.tied) == ((5, 6), False)
    assert tree == {"name": "a", "model": {"depth": 3}}, "the tree handed in stays as it was"


def test_an_override_may_itself_hold_an_equals_sign_quotes_or_nothing() -> None:
    for text, value in (
        ("a=b", "a=b"),
        ('"6"', "6"),
        ("", ""),
        ("1\nseed=5", "1\nseed=5"),
        ("2026-01-01", "2026-01-01"),
    ):
        assert build(Recipe, apply_overrides({}, [f"name={text}"]), "x").name == value


def test_overrides_add_up_over_calls() -> None:
    tree = apply_overrides(apply_overrides({"name": "a"}, ["model.dpeth=1"]), ["seed=3"])
    with pytest.raises(SettingsError, match=r"^command line: model.dpeth"):
        build(Recipe, tree, "x")


def test_a_built_recipe_can_not_change() -> None:
    recipe = Recipe(name="a")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_a_field_that_may_be_none_must_have_none_as_default() -> None:
    with pytest.raises(TypeError, match=r"Bad.threads may be None, so None must be its default"):

        class Bad(Settings):
            threads: int | None = 4


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_number_must_be_finite(value: str) -> None:
    with pytest.raises(SettingsError, match=r"model.rate = \S+ should be a finite number"):
        build(Recipe, tomllib.loads(f'name = "a"\nmodel.rate = {value}'), "x.toml")


models = st.builds(
    Model,
    depth=st.integers(min_value=1, max_value=2**62),
    width=st.integers(1, 64).map(lambda n: n * 12),
    heads=st.sampled_from([1, 2, 3, 4, 6]),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    tied=st.booleans(),
    kind=st.sampled_from(["plain", "gated"]),
)
paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(Path)
recipes = st.builds(
    Recipe,
    name=st.text(st.characters(exclude_categories=["Cs"])),
    seed=st.integers(-(2**63), 2**63 - 1),
    model=models,
    tail=st.none() | models,
    sources=st.lists(
        st.builds(Source, path=paths, weight=st.floats(allow_nan=False, allow_infinity=False))
    ).map(tuple),
    stops=st.lists(st.integers(-(2**63), 2**63 - 1)).map(tuple),
    threads=st.none() | st.integers(1, 1000),
)


@settings(deadline=None)
@given(recipe=recipes)
def test_a_dumped_recipe_reads_back_equal(recipe: Recipe) -> None:
    again = build(Recipe, tomllib.loads(dump_toml(recipe)), "x")
    assert again == recipe
    assert differences(recipe, again) == []


def test_the_dump_shows_defaults_and_what_is_derived_from_them() -> None:
    text = dump_toml(Recipe(name="a"))
    assert "depth = 4\n" in text
    assert "# model.head_size = 64\n" in text
    assert "threads" not in text


def test_differences_name_each_setting() -> None:
    old = Recipe(name="a", threads=2)
    new = Recipe(name="a", model=Model(depth=6), stops=(1,), tail=Model())
    assert differences(old, new)[:3] == [
        "model.depth: 4 -> 6",
        "stops: [1, 2] -> [1]",
        "threads: 2 -> not set",
    ]
    assert "tail.width: not set -> 256" in differences(old, new)


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "pocket.toml").write_text("name = 'a'\nmodel = {depth = }\n")
    (tmp_path / "open.toml").write_text("name = 'a'\nstops = [1,\n2")
    (tmp_path / "latin.toml").write_bytes(b"a = 1\nname = '\xe9'\n")
    for name, expected in (
        ("poket.toml", f"does not exist; did you mean {tmp_path / 'pocket.toml'}?"),
        ("zzz.toml", "does not exist; check the path"),
        ("pocket.toml", "pocket.toml, line 2, column 18: not valid TOML (Invalid value)"),
        ("open.toml", "open.toml, line 3: not valid TOML"),
        ("latin.toml", "latin.toml, line 2: not UTF-8 text; save the file as UTF-8"),
        ("", "can't be read: Is a directory"),
    ):
        with pytest.raises(SettingsError) as error:
            load_toml(tmp_path / name)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)
