"""The comparison of two profiles: noise is told from change, and promises are held against what was
measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pilgrim.core.errors import PilgrimError
from pilgrim.lab.profile.diff import (
    Change,
    compare,
    compare_folders,
    differences,
    independent,
    kept,
    settings,
    step_change,
    t_quantile,
)
from pilgrim.lab.profile.findings import Findings

Make = Callable[..., Findings]


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.706), (2, 4.303), (4.5, 2.659), (10, 2.228), (30, 2.042), (1000, 1.962)]
)
def test_quantiles_are_those_of_the_tables(freedom: float, t: float) -> None:
    assert t_quantile(freedom) == pytest.approx(t, abs=1e-3)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 1000 pairs with the same true time and unlike scatter, 95% find no difference."""
    random = np.random.default_rng(1)
    found = [
        step_change(
            np.exp(random.normal(0, 0.02, 6)).tolist(), np.exp(random.normal(0, 0.05, 9)).tolist()
        ).real
        for _ in range(1000)
    ]
    assert 0.015 < np.mean(found) < 0.06


def test_slow_steps_in_a_row_are_not_many_witnesses() -> None:
    """Two profiles of the same program on a machine whose speed wanders. Taken as independent, their steps
    would show a difference in a quarter of all pairs."""
    random = np.random.default_rng(2)

    def wandering() -> list[float]:
        log = [random.normal()]
        while len(log) < 20:
            log.append(0.5 * log[-1] + 0.75**0.5 * random.normal())
        return [float(time) for time in np.exp(0.05 * np.asarray(log))]

    assert np.mean([step_change(wandering(), wandering()).real for _ in range(500)]) < 0.08
    assert independent(np.asarray([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0])) == 2
    assert independent(np.asarray([1.0, 2.0, 1.0, 2.0, 1.0, 2.0])) == 6


def test_noise_is_not_called_a_difference(example: Make) -> None:
    noisy = (0.41, 0.43, 0.40, 0.42)
    text = compare(example(step_s_each=noisy), example(step_s_each=tuple(0.99 * s for s in noisy[::-1])))
    assert "within the noise: no difference was shown" in flat(text)


def test_a_real_difference_is_told_with_its_interval(example: Make) -> None:
    a = example()
    text = compare(a, example(step_s_each=tuple(0.9 * s for s in a.step_s_each)))
    assert "10.0% less" in text and "beyond the noise" in flat(text) and "95% interval" in text
    assert "within the noise" not in flat(text)


def test_single_steps_have_no_interval(example: Make) -> None:
    text = compare(example(step_s_each=(0.4,)), example(step_s_each=(0.3,)))
    assert "25.0% less" in text and "noise is not known" in flat(text)


def test_the_same_profile_twice(example: Make) -> None:
    text = compare(example(), example(), {"a": 1}, {"a": 1})
    assert "Settings: the same in both." in text
    assert "Kernels that moved" not in text
    assert "Memory: the same in both" in text
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("changes", [{"machine": "An abacus"}, {"stage": "sft"}])
def test_what_says_nothing_about_each_other_is_refused(example: Make, changes: dict[str, str]) -> None:
    (value,) = changes.values()
    with pytest.raises(PilgrimError, match=rf"can't be compared with \w+ '{value}'"):
        compare(example(), example(**changes))


def test_other_tokens_are_warned_of_and_times_are_told_for_as_many(example: Make) -> None:
    a = example()
    text = compare(a, example(tokens=2 * a.tokens, step_s_each=tuple(2 * s for s in a.step_s_each)))
    assert "Careful" in text and "0.0% less" in text


def test_another_peak_is_warned_of(example: Make) -> None:
    assert "different peaks" in flat(compare(example(), example(dtype="fp32", peak_flops=1e14)))


def test_what_moved_most_comes_first(example: Make) -> None:
    a = example()
    first, second, *rest = a.kernels
    b = example(kernels=(replace(first, seconds=0.031), replace(second, seconds=0.092), *rest))
    lines = compare(a, b).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("Kernels that moved"))
    assert "nvjet" in lines[start + 1] and "-100 ms" in lines[start + 1]
    assert "triton_poi" in lines[start + 2] and "+10.0 ms" in lines[start + 2]
    assert lines[start + 3] == ""  # the others stayed


# Promises


@pytest.mark.parametrize(
    ("predicted", "change", "said"),
    [
        (0.10, Change(1.0, 0.90, 0.88, 0.92), "as promised"),
        (0.10, Change(1.0, 0.80, 0.78, 0.82), "more than promised"),
        (0.10, Change(1.0, 0.96, 0.95, 0.97), "less than promised"),
        (0.10, Change(1.0, 1.05, 1.03, 1.07), "the opposite"),
        (0.10, Change(1.0, 1.0, 0.97, 1.03), "no difference beyond the noise"),
        (0.10, Change(1.0, 0.95, 0.85, 1.05), "too noisy to tell"),
        (0.10, Change(1.0, 0.9, None, None), "not known"),
    ],
)
def test_promise_and_measurement(predicted: float, change: Change, said: str) -> None:
    assert said in kept(predicted, change)


def test_a_promise_counts_where_its_setting_was_changed(example: Make) -> None:
    a = example()
    b = example(step_s_each=tuple(0.938 * s for s in a.step_s_each))
    rows = {"pretrain.micro_rows": 16, "runtime.compile": "on", "name": "a"}
    text = flat(compare(a, b, rows, {**rows, "pretrain.micro_rows": 32, "name": "b"}))
    assert "pretrain.micro_rows: 16 -> 32" in text and "name:" not in text
    assert "predicted 6.2% less, measured 6.2% less (5.6% less to 6.8% less): as promised" in text
    assert "not tried (data.prefetch: the same in both)" in text
    assert "as it is no setting" in text
    both = flat(compare(a, b, rows, {**rows, "pretrain.micro_rows": 24, "runtime.compile": "off"}))
    assert "The advice was pretrain.micro_rows=32; B has 24." in both
    assert "But runtime.compile changed, too" in both
    assert "whether it was done is not known" in flat(compare(a, b))


def test_settings_are_read_from_the_recipes_beside_the_profiles(example: Make, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, rows in ((a, 16), (b, 32)):
        folder.mkdir()
        example().save(folder / "profile.json")
        (folder / "recipe.toml").write_text(f'name = "x"\n[pretrain]\nmicro_rows = {rows}\n')
    of_a, of_b = settings(a), settings(b)
    assert of_a is not None and of_b is not None
    assert differences(of_a, of_b) == {"pretrain.micro_rows": (16, 32)}
    assert "pretrain.micro_rows: 16 -> 32" in compare_folders(a, b / "profile.json")
    with pytest.raises(PilgrimError, match=r"holds no profile\.json"):
        compare_folders(a, tmp_path)
    (b / "recipe.toml").write_text("[")
    with pytest.raises(PilgrimError, match="can't be read as a recipe"):
        compare_folders(a, b)


def test_what_is_missing_does_not_stop_it(example: Make, bare: Findings) -> None:
    assert "A 412 ms, B 412 ms" in compare(bare, bare)
    assert compare(example(), bare) and compare(bare, example())


def test_hostile_names_are_made_printable(hostile: Findings) -> None:
    text = compare(hostile, hostile, {"a\x1b": "\x1b"}, {})
    assert all(line.isprintable() for line in text.splitlines())


def flat(text: str) -> str:
    return " ".join(text.split())
