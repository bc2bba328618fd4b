"""`pilgrim eval RUN --harness TASKS`: the harness's tasks with a run's newest model, or a folder's.

Prompts, data and judgement are the harness's (pilgrim/evals/harness.py is only the model); it fetches each
task's data set from Hugging Face's hub. The result, without the single answers, goes to
RUN/evaluate/harness.json.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilgrim.core.console import Console
from pilgrim.core.errors import DataError
from pilgrim.core.files import write_json_atomic
from pilgrim.evals.harness import Answers, lm_class, open_model
from pilgrim.stages.journey import only_writer

Table = dict[str, dict[str, Any]]


def evaluate_with_harness(
    folder: Path,
    hf: Path | None,
    tasks: Sequence[str],
    limit: int | None = None,
    context: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Ask `tasks`, of each the first `limit` items, and write `folder/evaluate/harness.json`.

    `hf`: a Hugging Face folder whose model is asked instead of the run's. Raises PilgrimError if the
    harness isn't installed, DataError for tasks that it doesn't know or can't fetch.
    """
    console = console or Console()
    model = lm_class()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # else it tells of every attempt
    manager = TaskManager()
    for task in tasks:
        if task not in manager.all_tasks:
            raise DataError(f"--harness {task}: the harness has no such task; `lm_eval ls tasks` lists them")
    answers = Answers(*open_model(None if hf else folder, hf, context))
    console.stage("harness", "EleutherAI's tasks, prompts and judgement")
    try:
        found = simple_evaluate(
            model(answers), tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False
        )
    except OSError as error:  # ConnectionError and DatasetNotFoundError are such
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            f"the harness could not fetch the data of {', '.join(tasks)} ({reason}); it needs the network, "
            "or what an earlier call left in Hugging Face's cache"
        ) from error
    result = {
        "tasks": {name: _numbers(row) for name, row in found["results"].items()},
        "shots": found["n-shot"],
        "versions": found["versions"],
        "cut": answers.cut,
    }
    (folder / "evaluate").mkdir(parents=True, exist_ok=True)
    if hf is None:
        with only_writer(folder):
            write_json_atomic(folder / "evaluate" / "harness.json", result)
    else:
        write_json_atomic(folder / "evaluate" / "harness.json", result)
    for line in table(result["tasks"]):
        console.say(line)
    if answers.cut:
        console.say(f"{answers.cut:,} prompts were longer than the context and lost their beginning")
    return result


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """The metrics: the harness names each with its filter, as in "acc,none"."""
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def table(tasks: Table) -> list[str]:
    """A line for each metric of each task, with its standard error."""
    lines = [f"{'task':32} {'metric':24} {'value':>10}"]
    for task, numbers in tasks.items():
        for name, value in numbers.items():
            metric, _, kind = name.partition(",")
            if metric.endswith("_stderr") or not kind:
                continue
            error = numbers.get(f"{metric}_stderr,{kind}")
            lines.append(f"{task:32} {metric:24} {value:10.4f}" + (f" ± {error:.4f}" if error else ""))
    return lines
