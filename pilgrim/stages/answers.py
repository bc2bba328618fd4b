"""What evaluations with known answers have in common: a file in RUN/evaluate, a table, two runs side by side.

Each suite leaves one file: core.json, chat.json, and own-NAME.json for questions of the user's. It has every
item's answer, so that a later comparison can pair the items.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilgrim.core import runtime as machine
from pilgrim.core.config import build, load_toml
from pilgrim.core.console import Console
from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import read_json, write_atomic
from pilgrim.core.processes import ALONE, Processes
from pilgrim.evals.compare import compare
from pilgrim.evals.statistics import Z95
from pilgrim.infer.engine import Engine
from pilgrim.infer.load import load_engine, load_tokenizer, newest_stage
from pilgrim.stages.journey import Journey, console_of, only_writer, refuse_older
from pilgrim.stages.recipe import Recipe
from pilgrim.text.tokenizer import Tokenizer

Evaluate = Callable[[Engine, Tokenizer, Callable[[int], None]], dict[str, Any]]


@dataclass(frozen=True)
class Suite:
    """Which questions: `file` keeps the result, `option` is how the command line names them."""

    name: str
    file: str
    option: str
    about: str = ""  # for the console


@contextmanager
def opened_run(folder: Path, console: Console | None) -> Iterator[Journey]:
    """The run in `folder`, to be asked; by several processes, if torchrun has started this."""
    recipe = build(Recipe, load_toml(folder / "recipe.toml"), str(folder / "recipe.toml"))
    with machine.started(recipe.runtime, recipe.seed) as runtime:
        yield Journey(recipe, folder, runtime, console_of(runtime, console))


def ask_run(journey: Journey, suite: Suite, items: int, data: str, evaluate: Evaluate) -> dict[str, Any]:
    """Ask the run's newest model `items` items, and write the suite's file; returns what is in it.

    Raises CheckpointError without a trained model, and what `evaluate` raises.
    """
    with only_writer(journey.folder, journey.runtime.processes):
        stage = newest_stage(journey.folder)
        tokenizer = load_tokenizer(journey.folder)
        engine = load_engine(
            journey.folder / stage, tokenizer, journey.runtime, on_damage=refuse_older(journey, stage)
        )
        return ask(
            engine,
            suite,
            items,
            {"stage": stage, "data": data},
            journey.folder,
            journey.console,
            lambda done: evaluate(engine, tokenizer, done),
            journey.runtime.processes,
        )


def ask(
    engine: Engine,
    suite: Suite,
    items: int,
    source: Mapping[str, str],
    folder: Path,
    console: Console,
    evaluate: Callable[[Callable[[int], None]], dict[str, Any]],
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Ask a model, and write the suite's file below `folder`; `source` says which model, and what data.

    Of several processes, the first writes.
    """
    console.stage(suite.name, suite.about)
    with console.progress(items, "items") as progress:
        found = evaluate(progress.advance)
    result = {
        **source,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "context": engine.config.context,
        **found,
    }
    # On one line: with indentation, the answers of all items would be a tall file.
    text = json.dumps(result) + "\n"
    processes.by_first(lambda: write_atomic(folder / "evaluate" / suite.file, text))
    return result


def read_result(folder: Path, suite: Suite) -> dict[str, Any]:
    """What `ask_run` left. Raises PilgrimError with the cure if it did not."""
    file, cure = folder / "evaluate" / suite.file, f"pilgrim eval {folder.name} --suite {suite.option}"
    if not file.exists():
        raise PilgrimError(f"{file} is missing, and there is nothing to compare without it; make it: {cure}")
    result: dict[str, Any] = read_json(file)
    if not isinstance(result, dict) or not isinstance(result.get("tasks"), dict):
        raise PilgrimError(f"{file} is damaged; make it anew: {cure}")
    return result


# Tables -------------------------------------------------------------------------------------------


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for a person: a line for each task, the mean, and what was cut."""
    lines = [f"{'task':32} {'items':>6} {'accuracy':>15} {'chance':>7} {'centered':>9}"]
    for name, task in result["tasks"].items():
        accuracy = f"{task['accuracy']:7.1%} ± {task['standard_error']:5.1%}"
        lines.append(
            f"{name:32} {task['n']:6,} {accuracy:>15} {task['chance']:7.1%} {task['centered']:+9.3f}"
        )
        for reading, parts in task.get("readings", {}).items():
            for what, share in parts.items():
                accuracy = f"{share['accuracy']:7.1%} ± {share['standard_error']:5.1%}"
                lines.append(f"{f'  {what}, {reading}':32} {share['n']:6,} {accuracy:>15}")
    if "score" in result:
        lines.append(
            f"{result['name']}: {result['score']:.4f} ± {result['standard_error']:.4f} (standard error), "
            f"0 is guessing; model of {result['stage']}"
        )
    return [*lines, *_cut(result)]


def _cut(result: Mapping[str, Any]) -> list[str]:
    tasks, context = result["tasks"].values(), result["context"]
    told = []
    cut, asked = sum(task["cut"] for task in tasks), sum(task["n"] for task in tasks)
    if cut:
        told.append(
            f"{cut:,} of {asked:,} prompts were longer than the context of {context} tokens "
            "and lost their beginning"
        )
    cramped = sum(task.get("cramped", 0) for task in tasks)
    if cramped:
        told.append(f"{cramped:,} replies ended where the context of {context} tokens was full")
    return told


def compare_runs(folder: Path, other: Path, suite: Suite, console: Console | None = None) -> None:
    """Print what `folder` has more than `other`, item by item, from the files that the two have.

    Raises PilgrimError if one of them is missing or they share no items.
    """
    console = console or Console()
    found = compare(read_result(other, suite), read_result(folder, suite))
    console.say(f"{folder.name} minus {other.name}, over the items that both were asked")
    console.say(f"{'task':32} {'items':>6} {'difference':>11}  {'95% interval':20} {'p':>6}")
    for name, task in found.tasks.items():
        reach = Z95 * task.standard_error
        interval = f"{task.difference - reach:+.1%} to {task.difference + reach:+.1%}"
        console.say(f"{name:32} {task.n:6,} {task.difference:+11.1%}  {interval:20} {task.p_value:6.3f}")
    reach = Z95 * found.standard_error
    low, high = found.difference - reach, found.difference + reach
    verdict = "0 lies within: not told apart" if low <= 0 <= high else "0 lies outside"
    of = "" if len(found.members) == len(found.tasks) else f" of {', '.join(found.members)}"
    console.say(
        f"mean of the centered accuracies{of}: {found.difference:+.4f} "
        f"(95% interval {low:+.4f} to {high:+.4f}; {verdict})"
    )
    for name, why in found.left_out.items():
        console.say(f"left out: {name}, as {why}")
