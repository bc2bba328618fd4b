"""What is looked at, besides bits per byte, at every evaluation while a stage trains.

**Samples.** What the model makes of fixed prompts: the reel of it growing up.

**Accuracy.** `eval.watch` names tasks (evals/core_tasks.py) of which some items are asked: which ones, the
run's seed decides, and they stay the same from the first step to the last, so that what changes is the model.
Items that stand in the training text are left out and counted (stages/contamination.py). Every accuracy has
its number of items and its error, and with 32 items that error is large: bits per byte decide, accuracy
reports. With `eval.watch_full` a stage's last evaluation asks all items.

None of it may cost the run. The checkpoint of the step was saved before; and if memory does not suffice, that
is told, tried once more in smaller parts, which gives the same answers, and then done without.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from pilgrim.core.errors import DataError
from pilgrim.core.runlog import RunLog, read_rows
from pilgrim.evals.core import Answer, Exam, answered, read_exams, result_of
from pilgrim.evals.core_tasks import TASKS, find_folder
from pilgrim.evals.scoring import TOKENS_PER_PASS
from pilgrim.infer.engine import Engine, Reply
from pilgrim.infer.sampling import Sampling
from pilgrim.model.transformer import Transformer
from pilgrim.stages.contamination import in_training_text
from pilgrim.stages.journey import Journey
from pilgrim.text.chat import Message, render_prompt
from pilgrim.text.tokenizer import Tokenizer
from pilgrim.train.parallel import plain_copy

T = TypeVar("T")

ROWS = (32, 4)  # samples written together: at first, and if memory did not suffice
TOKENS = (TOKENS_PER_PASS, 512)  # of questions read together, likewise; on a CPU it is 1024 at first
KEPT = ("accuracy", "standard_error", "low", "high", "n", "chance")  # of a task's result


class Watching:
    """The looks at one stage's model, from its first step to its last."""

    def __init__(
        self,
        journey: Journey,
        tokenizer: Tokenizer,
        log: RunLog,
        stage: Path,
        steps: int,
        every: int,
        chat: bool,
    ) -> None:
        """`stage` is the stage's folder. It makes `steps` steps and evaluates every `every` of them; `chat`:
        it teaches conversations, so questions are sampled, too.
        """
        self.journey, self.tokenizer, self.log, self.stage = journey, tokenizer, log, stage
        self.steps, self.every, self.chat = steps, every, chat
        self.exams: list[Exam] | None = None  # all clean items; read when they are first needed
        self.left_out: dict[str, int] = {}

    def look(self, model: Transformer, step: int) -> dict[str, Any]:
        """Sample, ask what is due, and return what was measured: {} or {"watch": {task: its accuracy, …}}.

        Several processes each write some of the samples, and ask some of the items.
        """
        runtime = self.journey.runtime
        model = plain_copy(model, runtime)
        self._sample(model, step)
        if not self._due(step):
            return {}
        asked = self._accuracies(model, step)
        return {} if asked is None else {"watch": asked}

    def _accuracies(self, model: Transformer, step: int) -> dict[str, Any] | None:
        """{task: {"accuracy", "standard_error", "low", "high", "n", "chance", "left_out"}}."""
        processes = self.journey.runtime.processes
        exams = processes.by_first(lambda: self._chosen(step))
        mine = [exam.only(processes.dealt(exam.places)) for exam in exams]

        def ask(tokens_per_pass: int) -> list[list[Answer]]:
            engine = Engine(model, self.journey.runtime)
            return answered(engine, self.tokenizer, mine, tokens_per_pass=tokens_per_pass)

        answers = self._within_memory("watch", step, TOKENS, ask)
        if answers is None:
            return None
        result = result_of(exams, [processes.collected(found) for found in answers])
        return {
            name: {key: task[key] for key in KEPT} | {"left_out": self.left_out.get(name, 0)}
            for name, task in result["tasks"].items()
        }

    def _within_memory(
        self, what: str, step: int, sizes: tuple[int, int], attempt: Callable[[int], T]
    ) -> T | None:
        """`attempt` at the first size or, if memory does not suffice, at the second; else None.

        What one of several processes has no memory for, none does; so `attempt` must not talk to the others.
        """
        for size in sizes:
            found: T | None = None
            with suppress(torch.OutOfMemoryError):
                found = attempt(size)
            # Outside of there, as the error holds on to all that was computed.
            if self.journey.runtime.processes.least(int(found is not None)):
                return found
            if self.journey.runtime.device.type == "cuda":
                torch.cuda.empty_cache()
            skipped = size == sizes[-1]
            self.log.event("eval_out_of_memory", step=step, what=what, at_once=size, skipped=skipped)
            self.journey.console.say(
                f"out of memory in an evaluation ({what}, step {step}): "
                + ("left out, and training goes on" if skipped else "tried again in smaller parts")
            )
        return None

    # Samples --------------------------------------------------------------------------------------

    def _sample(self, model: Transformer, step: int) -> None:
        """Write what the model makes of the fixed prompts."""
        settings, tokenizer = self.journey.recipe.eval, self.tokenizer
        prompts = {p: [tokenizer.eot_id, *tokenizer.encode(p)] for p in settings.prompts}
        if self.chat:
            prompts |= {q: render_prompt([Message("user", q)], tokenizer) for q in settings.questions}
        written = {row["prompt"] for row in read_rows(self.stage / "samples.jsonl") if row["step"] == step}
        sampling = Sampling(
            temperature=settings.temperature,
            max_tokens=settings.sample_tokens,
            seed=self.journey.runtime.seed_for("samples"),
        )
        processes = self.journey.runtime.processes
        numbers = processes.dealt(range(len(prompts)))
        some = [ids for number, ids in enumerate(prompts.values()) if number in numbers]

        def replies(rows: int) -> list[Reply]:
            """Of this process, so many at a time."""
            engine = Engine(model, self.journey.runtime, rows)
            return engine.generate(some, sampling, (tokenizer.eot_id, tokenizer.im_end_id), indices=numbers)

        mine = self._within_memory("samples", step, ROWS, replies)
        if mine is None:
            return
        for prompt, reply in zip(prompts, processes.collected(mine), strict=True):
            # A run that was killed between samples and evaluation made them before.
            if prompt not in written:
                self.log.sample(step, prompt, tokenizer.decode(reply.ids))

    # Accuracy -------------------------------------------------------------------------------------

    def _due(self, step: int) -> bool:
        settings = self.journey.recipe.eval
        return bool(settings.watch) and (step == self.steps or step // self.every % settings.watch_every == 0)

    def _chosen(self, step: int) -> list[Exam]:
        """What is asked at this step: the same items every time, and all of them at the end if so wished."""
        settings = self.journey.recipe.eval
        if self.exams is None:
            self.exams = self._clean_exams()
        if settings.watch_full and step == self.steps:
            return self.exams
        return [self._some(exam, settings.watch_items) for exam in self.exams]

    def _some(self, exam: Exam, count: int) -> Exam:
        dice = random.Random(self.journey.runtime.seed_for(f"watch {exam.task.name}"))
        return exam.only(sorted(dice.sample(exam.places, min(count, exam.asked))))

    def _clean_exams(self) -> list[Exam]:
        """The watched tasks with all items that are not in the training text.

        Raises DataError for a task without a file, or of which no item is left.
        """
        settings = self.journey.recipe.eval
        folder = find_folder(settings.core)
        exams = read_exams(folder, tasks=[task for task in TASKS if task.name in settings.watch])
        if absent := set(settings.watch) - {exam.task.name for exam in exams}:
            raise DataError(
                f"{folder} has no file of {', '.join(sorted(absent))}, which eval.watch names; "
                "take it out of the recipe, or give a folder that has it as eval.core"
            )
        found = in_training_text(self.journey, {exam.sha256: exam.items for exam in exams})
        clean = []
        for exam in exams:
            read = found[exam.sha256].overlapping
            places = [place for place in exam.places if exam.items[place].line not in read]
            if not places:
                raise DataError(
                    f"{exam.task.name}: all {exam.asked} items are in the training text, so none is left; "
                    "take it out of eval.watch"
                )
            clean.append(exam.only(places))
            self.left_out[exam.task.name] = exam.asked - len(places)
        return clean
