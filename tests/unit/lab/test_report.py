"""The report: self-contained, safe with hostile text, honest about what is missing, small for long runs."""

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from html_page import Page

from pilgrim.core.errors import PilgrimError
from pilgrim.lab.report import write_report
from pilgrim.lab.report_charts import CURVE_POINTS
from pilgrim.lab.report_curves import curve, downsample, smooth, spread
from pilgrim.lab.report_text import clock, compact, duration, highlight_toml, moment, number, percent, plain

ATTACK = "</script><script>alert(1)</script><!--<b onload=x>\"'&"

Row = dict[str, Any]


def report(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def write_rows(file: Path, rows: list[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_object(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def train(stage: Path, steps: int, prompt: str = "Once upon a time", text: str = " there was a fox") -> None:
    write_rows(
        stage / "metrics.jsonl",
        [
            {"step": n, "loss": 8 / n, "learning_rate": 0.02, "grad_norm": 1.0, "tokens": 100 * n}
            for n in range(1, steps + 1)
        ],
    )
    write_rows(stage / "timings.jsonl", [{"step": steps, "elapsed_s": float(steps), "tokens_per_s": 100.0}])
    write_rows(stage / "evals.jsonl", [{"step": n, "bpb": 3.0 - n / steps, "loss": 4.0} for n in (0, steps)])
    write_rows(stage / "samples.jsonl", [{"step": n, "prompt": prompt, "text": text} for n in (0, steps)])
    write_rows(stage / "events.jsonl", [{"time": "2026-05-03T14:05:09.123+00:00", "kind": "start"}])


def finish(stage: Path, elapsed_s: float, **summary: object) -> None:
    write_object(stage / "DONE.json", {"stage": stage.name, "elapsed_s": elapsed_s, "summary": summary})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A tiny finished run."""
    folder = tmp_path / "tiny"
    finish(folder / "tokenizer", 2.0, vocab_size=4096, bytes_per_token=3.914)
    finish(folder / "shards", 3.0, train_documents=10, train_tokens=7_340_000, val_documents=2, val_bytes=800)
    for stage, elapsed_s in (("pretrain", 60.0), ("midtrain", 20.0), ("sft", 10.0)):
        train(folder / stage, 4)
        finish(
            folder / stage,
            elapsed_s,
            steps=4,
            tokens=400,
            loss=2.0,
            bpb=1.5,
            train_s=elapsed_s - 1,
            tokens_per_s=9352.2,
            mfu=0.613,
            mfu_spec=0.5,
            parameters=4_327_936,
        )
    finish(folder / "evaluate", 5.0)
    write_object(
        folder / "evaluate" / "result.json",
        {
            "bpb": {"val": {"bpb": 0.9431, "bytes": 591634, "targets": 154820}},
            "behaviour": {"ended": {"share": 0.985, "n": 200, "low": 0.957, "high": 0.995}},
            "examples": [
                {"kind": "story", "prompt": "A story, please", "reply": "Once.", "ended": True},
                {"kind": "story", "prompt": "Another", "reply": "and then and then", "ended": False},
            ],
        },
    )
    (folder / "recipe.toml").write_text('name = "tiny"\n[midtrain]\nsteps = 4\n[sft]\nsteps = 4\n')
    write_object(
        folder / "provenance.json",
        {
            "time": "2026-05-03T14:05:09+00:00",
            "command": ["pilgrim", "run", "recipes/tiny.toml"],
            "seed": 1,
            "code": None,
            "hardware": {"processor": "An abacus", "cores": 2, "memory_bytes": 2**34, "gpu": None},
        },
    )
    return folder


def test_shows_what_the_run_reached(run: Path) -> None:
    text = report(run).text
    for expected in (
        "tiny",
        "0.943",
        "4.33 M",
        "1 min 40 s",
        "98.5%",
        "9,352",
        "61.3%",
        "50% of what its maker promises",
        "An abacus, 2 cores",
        "16.0 GiB",
    ):
        assert expected in text, expected
    for expected in (
        "there was a fox",
        "A story, please",
        "cut off at the limit",
        "pilgrim run recipes/tiny.toml",
    ):
        assert expected in text, expected


def test_is_one_file_that_loads_nothing(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert not re.search(r"(?:https?:)?//[\w.]+\.\w", re.sub(r"http://www\.w3\.org/2000/svg", "", html))
    assert not re.search(r"url\((?!#)|@import|\bfetch\(|XMLHttpRequest|\bimport\(", html)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base"), tag
        assert "src" not in attributes
        assert str(attributes.get("href", "#")).startswith("#")


def test_policy_forbids_the_network_and_names_the_only_script_and_style(run: Path) -> None:
    page = report(run)
    (policy,) = [str(attrs["content"]) for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for code in (page.raw["script"][1], page.raw["style"][0]):
        assert f"sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}" in policy
    # Under this policy neither style attributes nor event handlers would do anything.
    assert not any(name == "style" or name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_hostile_text_stays_text(run: Path) -> None:
    train(run / "pretrain", 4, prompt="Say " + ATTACK, text=ATTACK)
    train(run / ATTACK.replace("/", "\\"), 4)
    finish(run / "tokenizer", 2.0, vocab_size=ATTACK)
    write_rows(run / "pretrain" / "events.jsonl", [{"time": ATTACK, "kind": ATTACK, "what": ATTACK}])
    write_object(
        run / "evaluate" / "result.json",
        {
            "bpb": {ATTACK: {"bpb": ATTACK}},
            "behaviour": {ATTACK: {"share": ATTACK}},
            "examples": [{"kind": ATTACK, "prompt": ATTACK, "reply": ATTACK}],
        },
    )
    write_object(run / "provenance.json", {"time": ATTACK, ATTACK: {ATTACK: ATTACK}})
    (run / "recipe.toml").write_text(f"name = '''{ATTACK}'''\n# {ATTACK}\n")
    page = report(run)
    assert len(page.raw["script"]) == 2  # the numbers and our code
    assert "<" not in page.raw["script"][0]
    assert page.payload["stages"][-1]["name"] == ATTACK.replace("/", "\\")  # and it is still JSON
    assert not any(tag == "b" and "onload" in attrs for tag, attrs in page.tags)
    assert page.text.count(ATTACK) >= 10


CORE = {
    "name": "CORE-slice (1 of 22 tasks, 40 items each)",
    "score": 0.0333,
    "standard_error": 0.0912,
    "stage": "sft",
    "missing": ["coqa"],
    "tasks": {
        "arc_easy": {
            "n": 40, "shots": 10, "accuracy": 0.275, "standard_error": 0.0706, "low": 0.161, "high": 0.428,
            "chance": 0.25, "right": [True, False],
        },
    },
}  # fmt: skip


def test_questions_with_known_answers(run: Path) -> None:
    assert "Questions with known answers" not in report(run).text
    write_object(run / "evaluate" / "core.json", CORE)
    page = report(run)
    for expected in ("1 of 22 tasks", "0.033", "± 0.091", "arc easy", "27.5%", "n = 40", "No data for coqa"):
        assert expected in page.text, expected
    chance = [attrs for tag, attrs in page.tags if tag == "line" and attrs.get("class") == "chance"]
    assert [(line["x1"], line["x2"]) for line in chance] == [("25.00%", "25.00%")]
    assert "arc easy: 27.5%, between 16.1% and 42.8%, chance 25%" in page.having("aria-label", "svg")


def test_questions_whose_answers_are_spoiled(run: Path) -> None:
    write_object(run / "evaluate" / "core.json", {"tasks": {ATTACK: {"n": ATTACK, "low": None}}, "name": 1})
    page = report(run)
    assert page.text.count(ATTACK.replace("_", " ")) == 1
    assert "±" in page.text
    write_object(run / "evaluate" / "core.json", {"tasks": None})
    assert "Questions with known answers" not in report(run).text


# Accuracy while it trains, sources, contamination, items to read

WATCHED = {"accuracy": 0.275, "low": 0.161, "high": 0.428, "n": 40, "chance": 0.25, "left_out": 3}


def test_accuracy_over_training(run: Path) -> None:
    assert "asked along the way" not in report(run).text
    for stage, steps in (("pretrain", (0, 4)), ("sft", (4,))):
        rows = [{"step": step, "bpb": 1.5, "watch": {"arc_easy": WATCHED, "copa": {}}} for step in steps]
        write_rows(run / stage / "evals.jsonl", rows)
    page = report(run)
    assert "asked along the way" in page.text
    [chart] = [chart for chart in page.payload["charts"] if chart["id"].startswith("accuracy")]
    assert (chart["title"], chart["chance"]) == ("arc easy", 25)
    assert [(series["stage"], series["x"]) for series in chart["series"]] == [(0, [0, 4]), (2, [4])]
    assert [chart["series"][0][key] for key in ("low", "y", "high")] == [[16.1] * 2, [27.5] * 2, [42.8] * 2]
    assert chart["id"] in page.having("data-chart", "figure")
    [words] = [words for words in page.having("aria-label", "div") if words.startswith("arc easy")]
    assert words == (
        "arc easy: from 27.5% at first to 27.5% at last, between 16.1% and 42.8% of 40 items; "
        "chance 25%; 3 items of the training text are left out."
    )


def test_loss_by_source(run: Path) -> None:
    assert "Loss by source" not in report(run).text
    text = {"loss": 2.0, "tokens": 300, "share": 0.75, "epoch": 1.5}
    rows: list[Row] = [
        {"step": 1, "loss": 2.5, "sources": {"text": text, ATTACK: {"loss": 4.0, "tokens": 100, "epoch": 0}}},
        {"step": 2, "loss": 2.0, "sources": {"text": {**text, "loss": 1.5, "epoch": 2.0}, "x": ATTACK}},
    ]
    write_rows(run / "sft" / "metrics.jsonl", rows)
    page = report(run)
    found = {chart["title"]: chart for chart in page.payload["charts"] if chart["id"].startswith("source")}
    assert [(s["kind"], s["x"], s["y"]) for s in found["text"]["series"]] == [
        ("raw", [1, 2], [2.0, 1.5]),
        ("line", [1, 2], [2.0, 1.5]),
    ]
    assert "x" not in found and len(found) == 2
    assert "Loss of text: sft from 2 to 1.5." in page.having("aria-label", "div")
    cells = ["text", "600", "85.7%", "2.0"]
    assert all(cell in page.text for cell in cells)


def test_more_tasks_than_a_page_can_hold(run: Path) -> None:
    rows = [{"step": 4, "bpb": 1.5, "watch": {f"task_{n}": WATCHED for n in range(40)}}]
    write_rows(run / "sft" / "evals.jsonl", rows)
    page = report(run)
    assert "Of 40 tasks asked while it trained, the first 24 are drawn." in page.text
    assert len([chart for chart in page.payload["charts"] if chart["id"].startswith("accuracy")]) == 24


def source(bpb: float, error: float | None) -> Row:
    return {"bpb": bpb, "standard_error": error, "bytes": 1500, "documents": 7}


def test_bits_per_byte_by_source(run: Path) -> None:
    assert "by source" not in report(run).text
    parts = {"stories": source(0.9, 0.012), "letters": source(1.4321, None)}
    result = {"pretrain": {"bpb": 0.943, "sources": {}}, "sft": {"bpb": 1.0, "sources": parts}}
    write_object(run / "evaluate" / "result.json", {"bpb": result})
    files = {
        "mine.txt": source(2.5, None) | {"sources": {"mine": source(2.5, None)}},
        "b": {"sources": parts},
    }
    write_object(run / "evaluate" / "text.json", {"stage": "sft", "files": files})
    text = " ".join(report(run).text.split())
    assert "stories71,500– ± –0.9000 ± 0.0120" in text
    assert "Bits per byte of other text" in text
    assert "mine.txt71,5002.5000 ± –" in text
    assert text.count("letters") == 2


READ = {"line": 12, "margin": -3.456, "context": "Why <b>?", "options": ["Because", "So"], "gold": 1}


def test_what_was_in_the_training_text_and_items_to_read(run: Path) -> None:
    task = CORE["tasks"]["arc_easy"] | {  # type: ignore[index]
        "contamination": {"overlapping": 2, "whole": 1},
        "clean": {"n": 38, "accuracy": 0.25, "standard_error": 0.07},
        "to_read": {"worst": [READ | {"mean_log_probs": [-1.0, -4.456]}], "best": [READ]},
    }
    clean = {"score": 0.01, "standard_error": 0.02, "tasks": 1}
    result = CORE | {"tasks": {"arc_easy": task}, "rule": "thirteen words", "clean": clean}
    write_object(run / "evaluate" / "core.json", result)
    text = " ".join(report(run).text.split())
    for expected in (
        "2 items overlap the training text (thirteen words); without them the mean is 0.010 ± 0.020.",
        "2 in the training text: 25% ± 7% without them",
        "worst line 12, margin -3.46 Why <b>? Because -1.00, the model's choice So -4.46, right",
        "best line 12",
    ):
        assert expected in text, expected
    task["contamination"] = {"overlapping": 0}
    write_object(run / "evaluate" / "core.json", result)
    assert "No item is in the training text (thirteen words)." in report(run).text


def test_evaluations_that_are_spoiled(run: Path) -> None:
    rows: list[Row] = [
        {"step": 4, "watch": {ATTACK: WATCHED, "b": 3, "c": {"accuracy": "nan"}}},
        {"watch": []},
    ]
    write_rows(run / "pretrain" / "evals.jsonl", rows)
    task = {
        "contamination": 3,
        "clean": "no",
        "to_read": {"best": 1, "worst": [3, {"options": [ATTACK], "gold": ATTACK}]},
    }
    write_object(run / "evaluate" / "core.json", {"tasks": {ATTACK: task, "x": 1}})
    write_object(
        run / "evaluate" / "text.json", {"files": {ATTACK: {"bpb": ATTACK, "sources": {ATTACK: 1, "b": {}}}}}
    )
    spoiled = {"bpb": {ATTACK: {"sources": {ATTACK: {"bpb": ATTACK}, "b": None}}}}
    write_object(run / "evaluate" / "result.json", spoiled)
    page = report(run)
    assert len(page.raw["script"]) == 2
    assert not any(tag == "b" and "onload" in attrs for tag, attrs in page.tags)


def test_a_reel_names_its_stages_where_they_are(run: Path) -> None:
    page = report(run)  # two frames of each of three stages
    legs = [(attrs["data-stage"], attrs["x"]) for tag, attrs in page.tags if tag == "text"]
    assert legs == [("pretrain", "10.00%"), ("midtrain", "50.00%"), ("sft", "90.00%")]
    assert [b for b in page.having("data-hop", "button")] == ["-1", "1"]


CHAT = {
    "name": "chat mean over arc_easy (up to 40 items each)",
    "score": 0.0333,
    "standard_error": 0.0912,
    "stage": "sft",
    "missing": {"humaneval": "programs can't be run here"},
    "tasks": {
        "arc_easy": CORE["tasks"]["arc_easy"] | {"way": "likelihood"},  # type: ignore[index]
        "ifeval": {
            "way": "words", "n": 3, "accuracy": 0.5, "standard_error": 0.1, "low": 0.2, "high": 0.8,
            "chance": 0,
            "readings": {"loose": {"instructions": {"n": 5, "accuracy": 0.6, "low": 0.3, "high": 0.8}}},
            "samples": [
                {"line": 1, "prompt": "Why?", "expected": "no commas", "reply": ATTACK, "right": False},
                {"line": 2, "prompt": "Who?", "expected": "no commas", "reply": "I", "right": False},
                {"line": 3, "prompt": "What?", "expected": "no commas", "reply": "It", "right": True},
            ],
        },
    },
}  # fmt: skip


def test_the_chat_suite_and_questions_of_ones_own(run: Path) -> None:
    assert "The chat suite" not in report(run).text
    write_object(run / "evaluate" / "chat.json", CHAT)
    write_object(run / "evaluate" / "own-mine.json", CHAT | {"missing": None})
    page = report(run)
    for expected in (
        "The chat suite", "Your questions: mine", "chat mean over arc_easy", "humaneval is left out: prog",
        "by likelihood, chance 25%", "in its own words", "ifeval: instructions, loose", "60%", "Why?",
        "What?", "right would be: no commas", "chat.json has every one",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "Who?" not in page.text
    assert page.text.count(ATTACK) == 2  # as text, and not as tags
    chance = [attrs for tag, attrs in page.tags if tag == "line" and attrs.get("class") == "chance"]
    assert len(chance) == 2


def test_chat_answers_that_are_spoiled(run: Path) -> None:
    task = {"n": ATTACK, "samples": [3, {"right": "yes"}, {"right": True}], "readings": {"loose": 3}}
    write_object(
        run / "evaluate" / "chat.json", {"tasks": {ATTACK: task, "b": None}, "name": 1, "missing": 3}
    )
    assert "The chat suite" in report(run).text
    write_object(run / "evaluate" / "chat.json", {"tasks": None})
    assert "The chat suite" not in report(run).text


def test_text_that_html_or_utf8_cannot_hold(run: Path) -> None:
    train(run / "pretrain", 4, text="nul \0 bell \a half \ud83d tab\there")
    assert "nul ␀ bell ␇ half ? tab\there" in report(run).text


def test_an_empty_folder_has_a_report_of_dashes(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert page.payload["stages"] == []
    assert "No stage has trained yet" in page.text
    assert not re.search(r"\b(?:nan|None|Undefined|null)\b", page.text)


def test_a_run_under_way(tmp_path: Path) -> None:
    finish(tmp_path / "tokenizer", 2.0, vocab_size=None)
    train(tmp_path / "pretrain", 3)
    with (tmp_path / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    (tmp_path / "pretrain" / "samples.jsonl").write_text('{"step"')
    page = report(tmp_path)
    assert page.payload["stages"] == [
        {"name": "pretrain", "first": 0, "last": 3, "resumed": [], "faults": []}
    ]
    assert "under way" in page.text
    assert "– tokens in the vocabulary" in page.text
    assert "2.000" in page.text  # the newest bits per byte that there are
    assert "No samples yet" in page.text


def test_bad_steps_are_marked_and_told(run: Path) -> None:
    """One that was met again after a kill counts once."""
    spike = {"kind": "spike", "step": 2, "loss": 9.25, "grad_norm": 1.0, "loss_limit": 5.5}
    write_rows(
        run / "pretrain" / "events.jsonl",
        [
            {**spike, "done": "first time"},
            {"kind": "non_finite_loss", "step": 3, "loss": "nan", "grad_norm": "inf", "done": ATTACK},
            {**spike, "done": "its batch is skipped"},
            {"kind": "non_finite_loss", "step": 4, "bpb": "nan", "done": "back to step 1"},
        ],
    )
    page = report(run)
    marks = page.payload["stages"][0]["faults"]
    assert [mark["step"] for mark in marks] == [2, 3, 4]
    told = "step 2, a spike: loss 9.25 (limit 5.5) and gradient norm 1; its batch is skipped"
    assert marks[0]["text"] == told and told in page.text
    assert "step 3, not finite: loss nan and gradient norm inf; " in page.text
    assert "step 4, not finite: weights that give no number in evaluation; back to step 1" in page.text
    assert page.payload["stages"][1]["faults"] == []

    many = [{**spike, "step": step, "done": "skipped"} for step in range(1, 12)]
    write_rows(run / "pretrain" / "events.jsonl", many)
    assert "step 6, a spike" in (text := report(run).text.split("and 5 more")[0].split("Bad steps in")[1])
    assert "step 7, a spike" not in text


def test_a_stage_that_the_recipe_leaves_out_is_not_missing(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('name = "short"\n[sft]\nsteps = 3\n')
    stages = [
        attrs["data-stage"] for tag, attrs in report(tmp_path).tags if tag == "li" and "data-stage" in attrs
    ]
    assert stages == ["tokenizer", "shards", "pretrain", "sft", "evaluate"]


def test_values_that_are_not_finite_are_counted_and_not_drawn(run: Path) -> None:
    rows: list[Row] = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": "nan"},
        {"step": 3, "loss": None},
        {"step": 4},
    ]
    write_rows(run / "pretrain" / "metrics.jsonl", rows)
    page = report(run)
    loss = page.payload["charts"][0]["series"][0]
    assert (loss["x"], loss["y"]) == ([1], [3.0])
    assert "1 values were not finite" in page.text


def test_damaged_file_is_named(run: Path) -> None:
    (run / "sft" / "DONE.json").write_text("{")
    with pytest.raises(PilgrimError, match=r"DONE\.json"):
        write_report(run)


def test_a_long_run_stays_small_and_keeps_its_spike(tmp_path: Path) -> None:
    steps = 100_000
    folder = tmp_path / "pretrain"
    train(folder, 1)
    losses = [math.exp(-n / 30_000) + (70.0 if n == 77_777 else 0.0) for n in range(steps)]
    write_rows(folder / "metrics.jsonl", [{"step": n, "loss": loss} for n, loss in enumerate(losses)])
    sample = "<&>" * 500
    write_rows(
        folder / "samples.jsonl",
        [{"step": n, "prompt": f"prompt {n % 8}", "text": sample} for n in range(1600)],
    )
    html = write_report(tmp_path).read_text(encoding="utf-8")
    page = Page(html)
    loss = page.payload["charts"][0]["series"][0]
    assert len(html.encode()) < 3_000_000
    assert len(loss["x"]) <= CURVE_POINTS
    assert loss["y"][loss["x"].index(77_777)] == max(loss["y"]) > 70
    assert "The longest curve has 100,000 measurements" in page.text
    assert "Of 8 prompts with up to 200 samples each" in page.text


def test_downsampling_keeps_ends_order_and_every_buckets_extremes() -> None:
    points = [(n, math.sin(n * n)) for n in range(1000)]
    kept = downsample(points, 102)
    assert len(kept) <= 102
    assert kept == sorted(kept)
    assert set(kept) <= set(points)
    assert {points[0], points[-1]} <= set(kept)
    inner = points[1:-1]
    for bucket in range(50):
        values = [value for _, value in inner[bucket * 998 // 50 : (bucket + 1) * 998 // 50]]
        assert {min(values), max(values)} <= {value for _, value in kept}
    assert downsample(points[:100], 102) == points[:100]


def test_smoothing_has_no_bias_and_no_lag() -> None:
    constant = smooth([(n, 5.0) for n in range(50)], window=10)
    assert all(math.isclose(value, 5.0) for _, value in constant)
    line = [(n, float(n)) for n in range(200)]
    step, value = smooth(line, window=10)[100]
    assert step == 100
    assert math.isclose(value, 100.0)  # a mean that looked back only would be several steps behind
    assert smooth(line, window=1.0) == line


def test_curve_ignores_rows_without_the_value() -> None:
    rows: list[Row] = [
        {"step": 2, "bpb": 1},
        {"step": 1, "bpb": 2.5},
        {"step": 3},
        {"bpb": 9.0},
        {"step": 4, "bpb": "inf"},
    ]
    made = curve(rows, "bpb", limit=10)
    assert made.points == [(1, 2.5), (2, 1.0)]
    assert (made.measured, made.not_finite) == (2, 1)


def test_spread_is_even_and_keeps_the_ends() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(11, 3) == [0, 5, 10]
    assert spread(0, 3) == []


def test_how_values_are_written() -> None:
    assert [number(1234567), number(0.94312, 3), number(None), number(True)] == [
        "1,234,567",
        "0.943",
        "–",
        "–",
    ]
    assert [compact(n) for n in (7, 999, 999_999, 4_327_936, 51e6, 2e9)] == [
        "7",
        "999",
        "1.00 M",
        "4.33 M",
        "51.0 M",
        "2.00 B",
    ]
    assert [duration(s) for s in (0.42, 9.96, 59.6, 462, 11_520, 200_000, math.nan)] == [
        "0.4 s",
        "10 s",
        "1 min 0 s",
        "7 min 42 s",
        "3 h 12 min",
        "2 d 7 h",
        "–",
    ]
    assert [percent(share) for share in (0.985, 1, 0.0, None)] == ["98.5%", "100%", "0%", "–"]
    assert moment("2026-05-03T16:05:09+02:00") == "3 May 2026, 14:05 UTC"
    assert clock(0) == "1970-01-01 00:00:00"
    assert [moment(value) for value in (None, "yesterday", 1e30)] == ["–", "yesterday", "1e+30"]
    assert plain(None) == "–"


def test_recipe_is_highlighted_table_by_table() -> None:
    first, second = highlight_toml('name = "a # b"  # <note>\n\n[model]\ndepth = 4\ntied = true\n')
    assert '<span class="t-string">&#34;a # b&#34;</span>' in first
    assert '<span class="t-comment"># &lt;note&gt;</span>' in first
    assert second.startswith('<span class="t-table">[model]</span>')
    assert '<span class="t-key">depth</span> = <span class="t-number">4</span>' in second
    assert '<span class="t-number">true</span>' in second


def measure(name: str, **more: object) -> Row:
    values: Row = {"midtrain": {"value": 0.5, "standard_error": 0.05, "n": 100}}
    values |= {"sft": {"value": 0.75, "standard_error": None, "n": 100}}
    change = {"since": "midtrain", "difference": 0.25, "low": 0.1, "high": 0.4}
    return {
        "name": name, "suite": "behaviour", "kind": "share", "better": "higher", "main": True,
        "values": values, "changes": {"sft": change}, **more,
    }  # fmt: skip


def test_what_each_stage_changed(run: Path) -> None:
    assert "What each stage changed" not in report(run).text
    measures = [measure("ended"), measure("looped", better="lower"), measure(ATTACK, main=False)]
    result = {"stages": ["midtrain", "sft"], "asked_as_chat": ["midtrain", "sft"], "measures": measures}
    write_object(run / "evaluate" / "stages.json", result)
    page = report(run)
    text = " ".join(page.text.split())
    assert "What each stage changed" in text
    assert "midtrain, sft were asked as chatbots" in text
    assert text.count("+25.0% +10.0% to +40.0%") == 2
    assert "75.0% ± –+25.0% (+10.0% to +40.0%)" in text  # in the table
    html = (run / "report.html").read_text()
    assert 'class="tone-good">+25.0%' in html and 'class="tone-bad">+25.0%' in html


def test_stages_that_are_spoiled(run: Path) -> None:
    for spoiled in (
        {"measures": "none"},
        {"stages": 5, "measures": [measure("ended")]},
        {"stages": ["sft"], "measures": [measure("ended", values=None, changes=[])]},
    ):
        write_object(run / "evaluate" / "stages.json", spoiled)
        assert "What each stage changed" not in report(run).text
    odd = measure("ended", changes={"sft": {"difference": "x"}}, better=None, kind=7)
    write_object(run / "evaluate" / "stages.json", {"stages": ["midtrain", "sft"], "measures": [odd, 3]})
    assert "What each stage changed" in report(run).text


def test_rewards_are_drawn_and_rollouts_shown_as_text(tmp_path: Path) -> None:
    train(tmp_path / "rl", 4)
    keys = ("reward", "reply_tokens", "groups_dropped", "cut_off", "entropy", "drift", "drift_kl", "clipped")
    write_rows(
        tmp_path / "rl" / "metrics.jsonl",
        [{"step": n, "loss": 0.1, "tokens": n, **dict.fromkeys(keys, n / 10)} for n in range(1, 5)],
    )
    for step in (0, 2, 3):
        rows = [
            {"prompt": ATTACK, "reply": f"reply {step} {n}", "reward": n / 8, "ended": True} for n in range(8)
        ]
        rows.append({"prompt": "?", "reply": "no reward", "reward": None, "ended": False})
        write_rows(tmp_path / "rl" / "rollouts" / f"step-{step:06d}.jsonl", rows)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Reward: reward from 0.1 to 0.4." in page
    shown = set(re.findall(r"reply \d \d", page))
    assert shown == {f"reply {step} {n}" for step in (0, 3) for n in (0, 1, 2, 5, 6, 7)}
    assert "no reward" not in page
    assert "<script>alert(1)" not in page
