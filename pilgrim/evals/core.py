"""The CORE metric: 22 tasks, each accuracy centered, and their mean.

    centered = (accuracy - chance) / (1 - chance)        0: guessing    1: everything right
    CORE     = the mean of the 22 centered accuracies

A base model of any size scores a little above 0 here, GPT-2 with 1.6 billion parameters 0.26 (nanochat). Only
all 22 tasks over all their items are CORE. Anything less is another measure, with a larger error and other
examples in its prompts, and says so in its name: "CORE-slice (21 of 22 tasks, up to 100 items each)".

Items are shuffled first (items.py), and `limit` takes the first ones; `Exam.only` takes others. Examples are
drawn from the whole file, whatever is asked, so an item's score does not depend on how many others are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from pilgrim.core.errors import DataError
from pilgrim.core.files import sha256_file
from pilgrim.core.processes import ALONE, Processes
from pilgrim.evals.behaviour import Share
from pilgrim.evals.core_tasks import BUNDLED, TASKS, Task, find_file
from pilgrim.evals.items import Item, read_items
from pilgrim.evals.prompts import Question, examples, question
from pilgrim.evals.scoring import TOKENS_PER_PASS, Score, pick, score
from pilgrim.evals.statistics import error_of_mean
from pilgrim.evals.to_read import to_read
from pilgrim.infer.engine import Engine
from pilgrim.text.foreign import Encoder

ITEMS_AT_ONCE = 128  # prompts held as ids; enough of them to find many of similar length


@dataclass(frozen=True)
class Exam:
    """A task with its items, all of them, in shuffled order, and the places among them that are asked."""

    task: Task
    items: list[Item]
    places: Sequence[int]
    sha256: str  # of the file

    @property
    def asked(self) -> int:
        """How many items are asked."""
        return len(self.places)

    def only(self, places: Sequence[int]) -> "Exam":
        """The same task, asking these items."""
        return replace(self, places=places)

    def question(self, place: int, tokenizer: Encoder, context: int) -> Question:
        """The item at `place`, with its examples, ready to be scored."""
        shots = examples(self.items, place, self.task.shots)
        return question(self.items[place], shots, self.task.kind, self.task.delimiter, tokenizer, context)


class Answer(NamedTuple):
    """What a model makes of an item."""

    scores: list[Score]  # of each option
    cut: bool  # the prompt was too long, and lost its beginning


def read_exams(folder: Path = BUNDLED, limit: int | None = None, tasks: Sequence[Task] = TASKS) -> list[Exam]:
    """Those of `tasks` whose files are in `folder`, of each the first `limit` items (None: all).

    Raises DataError if there is none, or an item is malformed, or there are too few for the examples.
    """
    exams = []
    for task in tasks:
        if (file := find_file(folder, task)) is not None:
            items = read_items(file, task.kind)
            if len(items) <= task.shots:
                raise DataError(
                    f"{file}: {len(items)} items, but {task.name} shows {task.shots} others before each; "
                    "give it more items"
                )
            asked = len(items) if limit is None else min(limit, len(items))
            exams.append(Exam(task, items, range(asked), sha256_file(file)))
    if not exams:
        raise DataError(
            f"{folder} holds no task of CORE, such as {TASKS[3].file}.jsonl; "
            "give the folder of the unpacked evaluation bundle (docs/evals.md)"
        )
    return exams


def evaluate(
    engine: Engine,
    tokenizer: Encoder,
    exams: Sequence[Exam],
    done: Callable[[int], None] = lambda items: None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Asks everything; the result is plain JSON, with each item's answer. `done(n)` counts finished items.

    Of several `processes`, which must all call this, each asks a part, and all have the whole result.
    """
    mine = [exam.only(processes.dealt(exam.places)) for exam in exams]
    answers = answered(engine, tokenizer, mine, lambda items: done(items * processes.count))
    return result_of(exams, [processes.collected(found) for found in answers])


def answered(
    engine: Engine,
    tokenizer: Encoder,
    exams: Sequence[Exam],
    done: Callable[[int], None] = lambda items: None,
    tokens_per_pass: int = TOKENS_PER_PASS,
) -> list[list[Answer]]:
    """Of each exam, the answer to each of its items."""
    found: list[list[Answer]] = [[] for _ in exams]
    for exam, answers in zip(exams, found, strict=True):
        for first in range(0, exam.asked, ITEMS_AT_ONCE):
            places = exam.places[first : first + ITEMS_AT_ONCE]
            asked = [exam.question(place, tokenizer, engine.config.context) for place in places]
            scores = score(engine, [q.rows for q in asked], tokens_per_pass)
            answers += [Answer(s, q.cut > 0) for s, q in zip(scores, asked, strict=True)]
            done(len(asked))
    return found


def result_of(exams: Sequence[Exam], answers: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """What the answers to all items of all exams amount to, as plain JSON."""
    return summary({e.task.name: _result(e, found) for e, found in zip(exams, answers, strict=True)})


def summary(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The mean of the centered accuracies with its standard error, its proper name, and the tasks."""
    centered = {
        name: {
            line: (right - task["chance"]) / (1 - task["chance"])
            for line, right in zip(task["lines"], task["right"], strict=True)
        }
        for name, task in tasks.items()
    }
    return {
        "name": name_of(tasks),
        "score": fmean(task["centered"] for task in tasks.values()),
        "standard_error": error_of_mean(centered, {name: task["sha256"] for name, task in tasks.items()}),
        "missing": [task.name for task in TASKS if task.name not in tasks],
        "tasks": tasks,
    }


def name_of(tasks: dict[str, dict[str, Any]]) -> str:
    """CORE only if it is: all tasks, and of each all items that were published."""
    n = {name: task["n"] for name, task in tasks.items()}
    if n == {task.name: task.items for task in TASKS}:
        return "CORE"
    most = max(n.values())
    items = f"{'up to ' if len(set(n.values())) > 1 else ''}{most:,} {'item' if most == 1 else 'items'}"
    return f"CORE-slice ({len(n)} of {len(TASKS)} tasks, {items} each)"


def _result(exam: Exam, answers: Sequence[Answer]) -> dict[str, Any]:
    task, items = exam.task, [exam.items[place] for place in exam.places]
    scores = [answer.scores for answer in answers]
    picks = [pick(found) for found in scores]
    if task.kind == "language_modeling":
        right = [found[0].greedy for found in scores]
    else:
        right = [option == item.gold for option, item in zip(picks, items, strict=True)]
    share = Share(sum(right), len(right))
    low, high = share.interval
    return {
        "kind": task.kind,
        "shots": task.shots,
        "n": share.n,
        "of": task.items,
        "accuracy": share.share,
        "standard_error": share.standard_error,
        "low": low,
        "high": high,
        "chance": task.chance,
        "guessing": fmean(1 / len(item.options) if len(item.options) > 1 else 0.0 for item in items),
        "centered": (share.share - task.chance) / (1 - task.chance),
        "cut": sum(answer.cut for answer in answers),
        "sha256": exam.sha256,
        "lines": [item.line for item in items],
        "right": right,
        "picks": picks,
        "golds": [item.gold for item in items],
        "mean_log_probs": [[round(s.mean, 6) for s in found] for found in scores],
        "to_read": to_read(items, [[s.mean for s in found] for found in scores]),
    }
