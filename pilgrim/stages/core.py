"""`pilgrim eval --suite core`: the CORE tasks with a run's newest model.

Not a stage of the walk: it needs minutes, and a small model is at chance in most of it. The result with every
item's answer goes to RUN/evaluate/core.json.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pilgrim.core.console import Console
from pilgrim.evals.clean import with_clean
from pilgrim.evals.core import evaluate, read_exams, summary
from pilgrim.evals.core_tasks import BUNDLED, find_folder
from pilgrim.infer.engine import Engine
from pilgrim.stages.answers import Suite, ask_run, opened_run, table
from pilgrim.stages.contamination import overlap_lines, overlaps_of
from pilgrim.stages.journey import only_writer
from pilgrim.text.tokenizer import Tokenizer

CORE = Suite("core", "core.json", "core", "questions with known answers, many tasks")


def evaluate_core(
    folder: Path,
    data: Path | None = None,
    limit: int | None = None,
    console: Console | None = None,
    contamination: bool = True,
) -> dict[str, Any]:
    """Ask a run's newest model and write `evaluate/core.json`; returns what is in it.

    `data` is a folder of CORE's tasks; None: the recipe's `eval.core`. `limit`: of each task this
    many items; None: all. `contamination`: look for the items in the run's training text, and score those
    that are not in it by themselves. Raises DataError for items that can't be scored, CheckpointError
    without a trained model.
    """
    with opened_run(folder, console) as journey:
        processes = journey.runtime.processes
        data = data or find_folder(journey.recipe.eval.core)
        exams = read_exams(data, limit)
        with only_writer(folder, processes):
            files = {exam.sha256: exam.items for exam in exams}
            overlaps = processes.by_first(lambda: overlaps_of(journey, files)) if contamination else None

        def ask(engine: Engine, tokenizer: Tokenizer, done: Callable[[int], None]) -> dict[str, Any]:
            found = evaluate(engine, tokenizer, exams, done, processes)
            return found if overlaps is None else with_clean(found, overlaps, summary)

        items = sum(exam.asked for exam in exams)
        result = ask_run(journey, CORE, items, "bundled" if data == BUNDLED else str(data), ask)
        for line in [*table(result), *overlap_lines(result)]:
            journey.console.say(line)
        if result["missing"]:
            journey.console.say(f"no data for {', '.join(result['missing'])}: docs/evals.md says where it is")
    return result
