"""The page of a profile, and the console's text: complete, safe with hostile names, honest about what is
missing."""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from html_page import Page

from pilgrim.lab.profile import page, pictures, words
from pilgrim.lab.profile.findings import LOSSES, Findings, Loss
from pilgrim.lab.profile.page import summary, write_page
from pilgrim.lab.profile.terms import TERMS, identifier

Make = Callable[..., Findings]


def written(findings: Findings, folder: Path) -> Page:
    return Page(write_page(findings, folder).read_text(encoding="utf-8"))


def test_tells_the_whole_story(example: Make, tmp_path: Path) -> None:
    text = " ".join(written(example(), tmp_path).text.split())
    for expected in (
        "412 ms a step, 21% of what this machine multiplied at best; "
        "the largest loss is memory-bound work, 50%.",
        "NVIDIA GeForce RTX 5090",
        "−6.2% 412 ms → 386 ms",
        "pretrain.micro_rows=32",
        "exposed communication",
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>",
        "pilgrim/model/layers.py:28 in forward",
        "147 TFLOP/s",
        "72% of the peak",
        "1.27 TB/s",
        "13.8 GiB of 32.0 GiB",
        "16 rows; 36 would fit",
        "call to print, at pilgrim/train/losses.py:41",
        "rows changed from 16 to 9",
        "ui.perfetto.dev",
        "The profiler itself cost 3%",
    ):
        assert expected in text, expected


def test_is_one_file_that_loads_nothing(example: Make, tmp_path: Path) -> None:
    file = write_page(example(), tmp_path)
    assert file == tmp_path / "index.html"
    html = file.read_text(encoding="utf-8")
    found = Page(html)
    assert not re.search(r"url\((?!#)|@import|\bfetch\(|XMLHttpRequest|\bimport\(", html)
    for tag, attributes in found.tags:
        assert tag not in ("link", "img", "iframe", "object", "base"), tag
        assert "src" not in attributes
    outside = {way for way in found.having("href") if not way.startswith(("#", "./", "../"))}
    assert outside == {"https://ui.perfetto.dev"}  # followed only by who clicks on it


def test_policy_names_the_only_script_and_style(example: Make, tmp_path: Path) -> None:
    found = written(example(), tmp_path)
    (policy,) = [str(attrs["content"]) for tag, attrs in found.tags if "http-equiv" in attrs]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for kind in ("script", "style"):
        code = "".join(found.raw[kind])
        assert f"sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}" in policy
    # Under this policy neither style attributes nor event handlers would do anything.
    assert not any(name == "style" or name.startswith("on") for _, attrs in found.tags for name in attrs)


def test_hostile_text_stays_text(hostile: Findings, attack: str, tmp_path: Path) -> None:
    found = written(hostile, tmp_path)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not any("onload" in attrs for _, attrs in found.tags)
    assert "alert(1)" in found.text
    assert not any(way.startswith("javascript") for way in found.having("href"))
    for line in summary(hostile).splitlines():
        assert line.isprintable() and len(line) <= 80, line


def test_unknown_is_said_in_words(bare: Findings, tmp_path: Path) -> None:
    text = " ".join(written(bare, tmp_path).text.split())
    for expected in (
        "no loss was found",
        "the maker's figure is not known",
        "No rule found anything to change",
        "phases are not known",
        "No kernels were recorded",
        "Layers were not timed",
        "not known on this device",
        "over a step was not recorded",
        "torch.compile was off",
        "No trace was kept",
        "Versions and commit are not known",
    ):
        assert expected in text, expected
    told = summary(bare)
    assert "not known" in told and "none were recorded" in told and "off:" in told


def test_versions_come_from_the_provenance_beside_it(example: Make, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text('{"versions": {"torch": "2.13.0 <b>"}}')
    assert "2.13.0 <b>" in written(example(), tmp_path).text


def test_every_word_that_can_be_pressed_has_an_entry(example: Make, tmp_path: Path) -> None:
    found = written(example(), tmp_path)
    entries = {str(attrs["id"]) for tag, attrs in found.tags if tag == "article"}
    assert entries == {identifier(term) for term in TERMS}
    assert set(found.having("popovertarget")) == entries
    assert {way[1:] for way in found.having("href") if way[0] == "#"} <= set(found.having("id"))


def test_a_document_is_linked_where_it_exists(example: Make, tmp_path: Path) -> None:
    found = written(example(), tmp_path)
    ways = [way for way in found.having("href") if "docs/" in way]
    assert len(ways) == 2  # the third fix of the example names none that exists
    for way in ways:
        assert (tmp_path / way.partition("#")[0]).resolve().is_file()


# The waterfall


def test_stairs_sum_to_one_in_numbers_and_in_the_drawing(example: Make, tmp_path: Path) -> None:
    stairs = words.stairs(example())
    assert sum(stair.share for stair in stairs) == pytest.approx(1.0)
    assert stairs[-1].name == "achieved" and stairs[-1].share == pytest.approx(0.21)
    assert [stair.name for stair in stairs[:-1]] == list(LOSSES)  # a zero is shown, too: it was looked for
    html = write_page(example(), tmp_path).read_text(encoding="utf-8")
    bars = re.findall(r'<rect x="([\d.]+)%" y="12" width="([\d.]+)%"', html)
    assert sum(float(width) for _, width in bars) == pytest.approx(100, abs=0.01)
    ends = [float(x) for x, _ in bars]
    starts = [float(x) + float(width) for x, width in bars]
    assert starts[0] == pytest.approx(100, abs=0.01) and ends[-1] == 0
    for end, start in zip(ends, starts[1:], strict=False):  # each begins where the one before ended
        assert start == pytest.approx(end, abs=0.01)


def test_a_loss_of_another_version_is_not_dropped(example: Make) -> None:
    stairs = words.stairs(example(losses=(Loss("moonlight_wait", 0.4), Loss("idle", 0.1))))
    assert {stair.title: pytest.approx(stair.share) for stair in stairs if stair.share} == {
        "moonlight wait": 0.4,
        "idle": 0.1,
        "achieved": 0.5,
    }


def test_stairs_that_contradict_the_mfu_are_told(example: Make) -> None:
    assert words.disagreement(example()) is None
    assert "13%" in str(words.disagreement(example(mfu=0.13)))
    assert "wrong stair" in summary(example(mfu=0.13))


# Drawings


def test_dots_lie_where_the_roofline_says(example: Make) -> None:
    """A kernel that copies as fast as the machine lies on the slope, one at the peak on the flat roof."""
    findings = example()
    first = findings.kernels[0]
    flat = replace(first, flops=findings.peak_flops * first.seconds, bytes=1e6)
    moved = findings.copy_bytes_per_s * first.seconds
    slope = replace(first, flops=3 * moved, bytes=moved)  # an intensity of 3, left of the ridge
    drawn = pictures.roofline(example(kernels=(flat, slope)), 8)
    assert drawn is not None
    assert drawn.dots[0].y == pytest.approx(drawn.flat.y1)
    assert drawn.slope.x2 == drawn.flat.x1 and drawn.slope.y2 == drawn.flat.y1
    along = (drawn.dots[1].x - drawn.slope.x1) / (drawn.slope.x2 - drawn.slope.x1)
    assert drawn.dots[1].y == pytest.approx(drawn.slope.y1 + along * (drawn.slope.y2 - drawn.slope.y1))
    assert all(0 <= dot.x <= 100 and 0 <= dot.y <= drawn.height for dot in drawn.dots)


def test_memory_curve_reaches_its_peak_once(example: Make) -> None:
    memory = replace(
        example().memory, curve=((0.0, 100), (1.0, 400), (2.0, 200)), parameters=50, optimizer=50
    )
    curve = pictures.memory_curve(memory)
    assert curve is not None
    assert curve.peak == 400 and curve.peak_x == 50
    assert curve.steady_y == pytest.approx(pictures.CURVE * (1 - 100 / 420))
    assert curve.line.count("V") == 2
    assert pictures.memory_curve(replace(memory, curve=((0.0, 100),))) is None


@pytest.mark.parametrize("top", [0.0004, 0.412, 1.0, 3.7, 99.0, 2.5e9])
def test_ticks_are_few_and_round(top: float) -> None:
    ticks = pictures.even(top)
    assert 3 <= len(ticks) <= 6
    assert ticks[0] == 0 and ticks[-1] <= top * (1 + 1e-9)


def test_a_bar_of_nothing_is_empty() -> None:
    assert pictures.bar([("a", 0.0)]) == []
    assert [part.x for part in pictures.bar([("a", 1.0), ("b", 0.0), ("c", 3.0)])] == [0, 25]


# Text


def test_console_text_fits_a_terminal(example: Make) -> None:
    lines = summary(example()).splitlines()
    assert max(map(len, lines)) <= 80
    assert 20 <= len(lines) <= 40
    assert any(line.startswith("memory-bound work") and "50.0%" in line for line in lines)
    assert any("pretrain.micro_rows=32" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.4123, "412 ms"),
        (1.24, "1.24 s"),
        (85e-6, "85.0 µs"),
        (0.99996, "1.00 s"),
        (125, "2 min 5 s"),
        (0, "0 ms"),
        (None, "not known"),
    ],
)
def test_seconds(value: float | None, written: str) -> None:
    assert words.seconds(value) == written


@pytest.mark.parametrize(
    ("value", "written"), [(0.5, "50%"), (0.0312, "3.1%"), (0.0001, "<0.1%"), (0.0, "0%"), (0.0997, "10%")]
)
def test_share(value: float, written: str) -> None:
    assert words.share(value) == written


def test_settings_are_told_from_prose(example: Make, tmp_path: Path) -> None:
    settings = [words.settings_of(fix) for fix in example().fixes]
    assert settings == [{}, {"pretrain.micro_rows": "32"}, {"data.prefetch": "4"}]
    two = replace(example().fixes[1], setting="pretrain.rows=64 pretrain.steps=50, and patience")
    assert words.settings_of(two) == {"pretrain.rows": "64", "pretrain.steps": "50"}
    shown = page.fix(two, 1.0, tmp_path)
    assert shown["setting"] == "pretrain.rows=64 pretrain.steps=50" and shown["rest"] == "and patience"


def test_a_kernels_share_is_of_the_step_in_which_it_was_timed(example: Make) -> None:
    """Steps take longer under the profiler; divided by the plain time, shares could exceed 1."""
    found = example()
    kernel, half = found.kernels[0], found.kernels[0].seconds * 2
    assert replace(found, traced_step_s=half).share_of(kernel) == pytest.approx(0.5)
    assert replace(found, traced_step_s=None, step_s=half).share_of(kernel) == pytest.approx(0.5)
