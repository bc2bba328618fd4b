"""The problems of a recipe's `[rl.tasks]`: read, checked, and dealt out in an order that the seed decides.

Which task comes next is drawn by weight; within a task, every problem comes once before any comes again. Both
are functions of the seed and of how many were drawn, so a position says all (data/loader.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pilgrim.core.errors import DataError
from pilgrim.core.runtime import Runtime
from pilgrim.data.datasets import NAMED
from pilgrim.data.sources import find
from pilgrim.evals.rewards.own import OwnReward
from pilgrim.evals.rewards.problems import Problem, held_out_of, read_problems
from pilgrim.stages.rl_settings import RlSettings, RlTask

BLOCK = 1024  # draws made at once


@dataclass(frozen=True)
class Posed:
    """A task's problems."""

    name: str
    settings: RlTask
    learned: list[Problem]
    held_out: list[Problem]


def read_tasks(settings: RlSettings, runtime: Runtime, rows: Mapping[str, Path]) -> list[Posed]:
    """All tasks. `rows` are the files of data sets, by "dataset:NAME" (stages/rows.py).

    Raises DataError, with file and line, for what is wrong with a file of theirs.
    """
    return [_task(name, task, settings, runtime, rows) for name, task in settings.tasks.items()]


def _task(name: str, task: RlTask, settings: RlSettings, runtime: Runtime, rows: Mapping[str, Path]) -> Posed:
    place = f"rl.tasks.{name}"
    own = OwnReward(find(task.reward, place), settings.reward_s).grade if task.reward else None
    problems = read_problems(rows.get(task.prompts) or find(task.prompts, place), task.kind, own)
    if task.held_out:
        held_out = read_problems(rows.get(task.held_out) or find(task.held_out, place), task.kind, own)
        asked = {problem.messages for problem in held_out}
        problems = [problem for problem in problems if problem.messages not in asked]
    else:
        problems, held_out = held_out_of(problems, task.held_out_share)
    for found, what in ((problems, "to learn from"), (held_out, "held out")):
        if not found:
            raise DataError(
                f"{place}: of {task.prompts} no problem is left {what}; give more, or a file "
                "of others as held_out"
            )
    order = torch.randperm(len(held_out), generator=runtime.generator(f"rl held out {name}")).tolist()
    return Posed(name, task, problems, [held_out[i] for i in order[: settings.held_out_prompts]])


def task_files(settings: RlSettings) -> dict[str, Path]:
    """All files that the tasks name, by their names in the recipe; data sets are no files. Raises DataError
    for one that is missing."""
    return {
        named: find(named, f"rl.tasks.{name}")
        for name, task in settings.tasks.items()
        for named in (task.prompts, task.reward, task.held_out)
        if named is not None and not named.startswith(NAMED)
    }


def task_names(settings: RlSettings) -> list[str | None]:
    """What all tasks name as their problems."""
    return [named for task in settings.tasks.values() for named in (task.prompts, task.held_out)]


class Prompts:
    """Problems in their order, forever; `position` is how many of each task were taken."""

    def __init__(self, tasks: list[Posed], runtime: Runtime) -> None:
        self._tasks, self._runtime = tasks, runtime
        self._weights = torch.tensor([task.settings.weight for task in tasks], dtype=torch.float64)

    def after(self, position: list[int]) -> Iterator[tuple[Posed, Problem]]:
        """The problems behind `position`, which is moved along."""
        while True:
            number = sum(position)
            draws = self._draws(number // BLOCK)[number % BLOCK :]
            for i in draws:
                task = self._tasks[i]
                epoch, place = divmod(position[i], len(task.learned))
                position[i] += 1
                yield task, task.learned[self._order(task, epoch)[place]]

    def _draws(self, block: int) -> list[int]:
        generator = self._runtime.generator("rl tasks", block)
        drawn: list[int] = torch.multinomial(
            self._weights, BLOCK, replacement=True, generator=generator
        ).tolist()
        return drawn

    def _order(self, task: Posed, epoch: int) -> list[int]:
        generator = self._runtime.generator(f"rl prompts {task.name}", epoch)
        order: list[int] = torch.randperm(len(task.learned), generator=generator).tolist()
        return order
