"""One dial, what follows from it, and what is refused with which cure."""

import re
import tomllib

import pytest

from pilgrim.core.config import build, dump_toml
from pilgrim.core.errors import SettingsError
from pilgrim.model.config import ModelConfig, ModelSettings


def sentence(**tree: object) -> str:
    """What a recipe with this [model] is told."""
    with pytest.raises(SettingsError) as refused:
        build(ModelSettings, tree, "recipes/x.toml")
    return str(refused.value)


@pytest.mark.parametrize(
    ("depth", "width", "head_size", "heads", "mlp_width"),
    [
        (1, 64, 64, 1, 192),
        (2, 128, 128, 1, 384),
        (3, 192, 64, 3, 576),
        (4, 256, 128, 2, 768),
        (12, 768, 128, 6, 2304),
    ],
)
def test_depth_sets_everything(depth: int, width: int, head_size: int, heads: int, mlp_width: int) -> None:
    full = ModelSettings(depth=depth).resolved()
    assert (full.width, full.head_size, full.heads, full.kv_heads) == (width, head_size, heads, heads)
    assert full.mlp_width == mlp_width


def test_the_dial_works_everywhere() -> None:
    for depth in range(1, 65):
        full = ModelSettings(depth=depth).resolved()
        assert full.heads and full.head_size and full.heads * full.head_size == full.width == 64 * depth


def test_what_is_given_is_kept_and_the_rest_follows_from_it() -> None:
    full = ModelSettings(depth=3, width=96, head_size=16, kv_heads=2).resolved()
    assert (full.width, full.head_size, full.heads, full.kv_heads, full.mlp_width) == (96, 16, 6, 2, 288)
    assert full.resolved() == full


def test_heads_may_be_wider_than_the_stream() -> None:
    full = ModelSettings(depth=1, width=40, head_size=16, heads=5).resolved()
    assert (full.heads, full.head_size, full.width) == (5, 16, 40)


def test_the_config_has_every_setting_and_the_vocabulary() -> None:
    settings = ModelSettings(depth=2, tied=True, rope_theta=500.0)
    config = settings.config(4096)
    assert config.vocab_size == 4096
    assert config.model_dump(exclude={"vocab_size"}) == settings.resolved().model_dump()
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_a_resolved_recipe_reads_back_as_itself() -> None:
    full = ModelSettings(depth=3).resolved()
    assert build(ModelSettings, tomllib.loads(dump_toml(full)), "saved recipe") == full


def test_head_size_must_divide_width() -> None:
    told = sentence(width=256, head_size=96)
    assert "recipes/x.toml: model.head_size = 96 must divide model.width = 256; try 64" in told


def test_kv_heads_must_divide_heads() -> None:
    told = sentence(width=192, head_size=32, kv_heads=4)
    assert "model.kv_heads = 4 must divide model.heads = 6; try 3" in told


def test_head_size_must_be_even() -> None:
    """Nine would divide the width."""
    told = sentence(width=36, head_size=9)
    assert "model.head_size = 9 must be even, because rotary positions turn pairs; try 6" in told


def test_an_odd_width_has_no_even_heads() -> None:
    told = sentence(width=97, head_size=16)
    assert "model.width = 97 must be even" in told
    assert "try 98, or set model.heads" in told


def test_a_mistyped_setting_is_told_the_right_one() -> None:
    assert "did you mean" in sentence(dpeth=4)
    assert "depth" in sentence(depth="four")
    assert "depth" in sentence(depth=0)


def test_the_cures_work() -> None:
    """Whoever does what the sentences say is soon done."""
    for width in range(8, 300):
        for head_size in (2, 3, 6, 16, 31, 48, 100, 128):
            tree = {"width": width, "head_size": head_size}
            for _ in range(3):
                try:
                    ModelSettings.model_validate(tree)
                    break
                except ValueError as refused:
                    told = re.search(r"model\.(\w+) = \d+ must .*try (\d+)", str(refused))
                    assert told, refused
                    tree[told[1]] = int(told[2])
            ModelSettings.model_validate(tree)


def test_heads_that_are_given_need_not_fit_the_width() -> None:
    ModelSettings(width=97, head_size=16, heads=5)
    assert "model.head_size = 9 must be even, because rotary positions turn pairs; try 10" in sentence(
        width=97, head_size=9, heads=5
    )


def test_windows_follow_the_pattern_and_the_last_layer_sees_all() -> None:
    def windows(depth: int, **shape: object) -> tuple[int | None, ...]:
        tree = {"depth": depth, "context": 256, **shape}
        return ModelSettings.model_validate(tree).config(300).windows

    assert windows(3) == (None, None, None)
    assert windows(6, window=64) == (64, 64, 64, None, 64, None)
    assert windows(5, window=64, window_pattern="LS") == (None, 64, None, 64, None)
    assert windows(4, window=64, window_pattern="S") == (64, 64, 64, None)
    assert windows(1, window=64) == (None,)


def test_a_model_from_before_windows_has_none() -> None:
    config = ModelSettings(depth=2).config(300)
    older = {k: v for k, v in config.model_dump().items() if not k.startswith("window")}
    assert ModelConfig.model_validate(older) == config


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"window": 512}, "model.window = 512 must be less than model.context = 512"),
        ({"window_pattern": "SL"}, 'model.window_pattern = "SL" needs a window; try model.window = 128'),
        ({"window": 64, "window_pattern": "SXL"}, "window_pattern"),
        ({"window": 0}, "window"),
    ],
)
def test_windows_that_make_no_sense_are_refused(tree: dict[str, object], said: str) -> None:
    assert said in sentence(**tree)
