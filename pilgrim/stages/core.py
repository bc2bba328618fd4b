"""`pilgrim eval --suite core`: the CORE tasks with a run's newest model, and two runs side by side.

Not a stage of the walk: it needs minutes, and a small model is at chance in most of it. The result with every
item's answer goes to RUN/evaluate/core.json, so that a later comparison can pair the items.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilgrim.core import runtime as machine
from pilgrim.core.config import build, load_toml
from pilgrim.core.console import Console
from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import read_json, write_atomic
from pilgrim.evals.compare import compare
from pilgrim.evals.core import evaluate, read_exams
from pilgrim.evals.core_tasks import BUNDLED, find_folder
from pilgrim.evals.statistics import Z95
from pilgrim.infer.load import load_engine, load_tokenizer, newest_stage
from pilgrim.stages.journey import Journey, only_writer, refuse_older
from pilgrim.stages.recipe import Recipe


def evaluate_core(
    folder: Path, data: Path | None = None, limit: int | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Ask a run's newest model and write `evaluate/core.json`; returns what is in it.

    `data` is a folder of CORE's tasks; None: the recipe's `eval.core`. `limit`: of each task this
    many items; None: all. Raises DataError for items that can't be scored, CheckpointError
    without a trained model.
    """
    recipe = build(Recipe, load_toml(folder / "recipe.toml"), str(folder / "recipe.toml"))
    journey = Journey(recipe, folder, machine.start(recipe.runtime, recipe.seed), console or Console())
    data = data or find_folder(recipe.eval.core)
    exams = read_exams(data, limit)
    with only_writer(folder):
        stage = newest_stage(folder)
        tokenizer = load_tokenizer(folder)
        engine = load_engine(
            folder / stage, tokenizer, journey.runtime, on_damage=refuse_older(journey, stage)
        )
        journey.console.stage("core", "questions with known answers, many tasks")
        with journey.console.progress(sum(exam.asked for exam in exams), "items") as progress:
            found = evaluate(engine, tokenizer, exams, progress.advance)
        result = {
            "stage": stage,
            "data": "bundled" if data == BUNDLED else str(data),
            "dtype": str(engine.dtype).removeprefix("torch."),
            "context": engine.config.context,
            **found,
        }
        # On one line: with indentation, the answers of all items would be a tall file.
        write_atomic(journey.stage_folder("evaluate") / "core.json", json.dumps(result) + "\n")
    for line in table(result):
        journey.console.say(line)
    return result


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for a person: a line for each task, and the mean."""
    lines = [f"{'task':32} {'items':>6} {'accuracy':>15} {'chance':>7} {'centered':>9}"]
    for name, task in result["tasks"].items():
        accuracy = f"{task['accuracy']:7.1%} ± {task['standard_error']:5.1%}"
        lines.append(
            f"{name:32} {task['n']:6,} {accuracy:>15} {task['chance']:7.1%} {task['centered']:+9.3f}"
        )
    lines.append(
        f"{result['name']}: {result['score']:.4f} ± {result['standard_error']:.4f} (standard error), "
        f"0 is guessing; model of {result['stage']}"
    )
    if result["missing"]:
        lines.append(f"no data for {', '.join(result['missing'])}: docs/evals.md says where it is")
    cut, asked = (sum(task[key] for task in result["tasks"].values()) for key in ("cut", "n"))
    if cut:
        lines.append(
            f"{cut:,} of {asked:,} prompts were longer than the context of {result['context']} tokens "
            "and lost their beginning"
        )
    return lines


def compare_core(folder: Path, other: Path, console: Console | None = None) -> None:
    """Print what `folder` has more than `other`, item by item, from the two runs' `core.json`.

    Raises PilgrimError if one of them is missing or they share no items.
    """
    console = console or Console()
    found = compare(read_result(other), read_result(folder))
    console.say(f"{folder.name} minus {other.name}, over the items that both were asked")
    console.say(f"{'task':32} {'items':>6} {'difference':>11}  {'95% interval':20} {'p':>6}")
    for name, task in found.tasks.items():
        reach = Z95 * task.standard_error
        interval = f"{task.difference - reach:+.1%} to {task.difference + reach:+.1%}"
        console.say(f"{name:32} {task.n:6,} {task.difference:+11.1%}  {interval:20} {task.p_value:6.3f}")
    reach = Z95 * found.standard_error
    low, high = found.difference - reach, found.difference + reach
    verdict = "0 lies within: not told apart" if low <= 0 <= high else "0 lies outside"
    console.say(
        f"mean of the centered accuracies: {found.difference:+.4f} "
        f"(95% interval {low:+.4f} to {high:+.4f}; {verdict})"
    )
    if found.left_out:
        console.say(f"left out, as they were not asked the same items: {', '.join(found.left_out)}")


def read_result(folder: Path) -> dict[str, Any]:
    """What `evaluate_core` left of a run. Raises PilgrimError with the cure if it did not."""
    file = folder / "evaluate" / "core.json"
    if not file.exists():
        raise PilgrimError(
            f"{file} is missing, and there is nothing to compare without it; "
            f"make it: pilgrim eval {folder.name} --suite core"
        )
    result: dict[str, Any] = read_json(file)
    if not isinstance(result, dict) or not isinstance(result.get("tasks"), dict):
        raise PilgrimError(f"{file} is damaged; make it anew: pilgrim eval {folder.name} --suite core")
    return result
