"""`pilgrim eval --suite core`: the CORE tasks with a run's newest model.

Not a stage of the walk: it needs minutes, and a small model is at chance in most of it. The result with every
item's answer goes to RUN/evaluate/core.json.
"""

from pathlib import Path
from typing import Any

from pilgrim.core.console import Console
from pilgrim.evals.core import evaluate, read_exams
from pilgrim.evals.core_tasks import BUNDLED, find_folder
from pilgrim.stages.answers import Suite, ask_run, open_run, table

CORE = Suite("core", "core.json", "core", "questions with known answers, many tasks")


def evaluate_core(
    folder: Path, data: Path | None = None, limit: int | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Ask a run's newest model and write `evaluate/core.json`; returns what is in it.

    `data` is a folder of CORE's tasks; None: the recipe's `eval.core`. `limit`: of each task this
    many items; None: all. Raises DataError for items that can't be scored, CheckpointError
    without a trained model.
    """
    journey = open_run(folder, console)
    data = data or find_folder(journey.recipe.eval.core)
    exams = read_exams(data, limit)
    result = ask_run(
        journey,
        CORE,
        sum(exam.asked for exam in exams),
        "bundled" if data == BUNDLED else str(data),
        lambda engine, tokenizer, done: evaluate(engine, tokenizer, exams, done),
    )
    for line in table(result):
        journey.console.say(line)
    if result["missing"]:
        journey.console.say(f"no data for {', '.join(result['missing'])}: docs/evals.md says where it is")
    return result
