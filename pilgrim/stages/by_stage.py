"""`pilgrim eval RUN --stages`: the last model of every trained stage, asked the same, and what each changed.

    bits per byte        of held-out text and of held-out conversations, all stages
    behaviour            does it end, loop, know its name: the stages that met conversations
    the chat suite       the same stages
    CORE's tasks         all stages, as one asks a model that continues texts

A model that pretraining leaves behind never saw a turn's marks, so it is asked to continue a text and nothing
else. Those after it are asked as chatbots, through the template that they were trained with. CORE's prompts
stay what they are also for chatbots: asked in another way they would be another test, and it would measure
the way of asking. How unsure the differences are is said in evals/by_stage.py.

The result goes to RUN/evaluate/stages.json. It keeps numbers and no replies: `pilgrim eval` without --stages
keeps every reply of the last model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pilgrim.core.console import Console
from pilgrim.core.errors import CheckpointError
from pilgrim.core.files import write_json_atomic
from pilgrim.core.stages import TRAINED
from pilgrim.data.loader import one_pass
from pilgrim.data.shards import TokenSet
from pilgrim.evals import chat, core
from pilgrim.evals.by_stage import Better, Measure, Read, bits_measures, share_measure, suite_measures
from pilgrim.evals.chat_tasks import BUNDLED
from pilgrim.evals.core_tasks import find_folder
from pilgrim.infer.engine import Engine
from pilgrim.infer.load import load_engine, load_model
from pilgrim.model.transformer import Transformer
from pilgrim.stages.answers import opened_run
from pilgrim.stages.evaluate import behaviour
from pilgrim.stages.journey import Journey, finished, only_writer, refuse_older
from pilgrim.stages.shards import run_tokenizer, token_set
from pilgrim.text.tokenizer import Tokenizer
from pilgrim.train.fit import MicroBatch
from pilgrim.train.step import compiled_token_losses
from pilgrim.train.validation import ByDocument, validate

FILE = "stages.json"
CONTINUES = ("pretrain",)  # it never met a turn
SUITES = ("behaviour", "core", "chat")  # behaviour brings bits per byte along
SETS = {"val": "text", "chat_val": "conversations"}  # token sets, and how they are called
BEHAVIOURS: dict[str, Better] = {"ended": "higher", "looped": "lower", "named": "higher"}
COLUMN = 19


def evaluate_stages(
    folder: Path,
    suites: Sequence[str] = SUITES,
    data: Path | None = None,
    limit: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure every finished stage of the run in `folder`, and write `evaluate/stages.json`.

    Returns what is in it: {"stages", "asked_as_chat", "items", "measures": […]}. `suites`: some of SUITES.
    `data`: a folder of the tasks of core or chat; None: what the recipe says, or is bundled. `limit`: of each
    task this many items. Raises CheckpointError if fewer than two stages are finished.
    """
    with opened_run(folder, console) as journey, only_writer(folder, journey.runtime.processes):
        stages = [stage for stage in TRAINED if (folder / stage / "DONE.json").exists()]
        if len(stages) < 2:
            raise CheckpointError(
                f"{folder}: {len(stages)} of its stages {'is' if len(stages) == 1 else 'are'} finished, and "
                "a change takes two; train on with `pilgrim run`, or leave out --stages"
            )
        measures = list(_measured(journey, stages, suites, data, limit))
        result = {
            "stages": stages,
            "asked_as_chat": [stage for stage in stages if stage not in CONTINUES],
            "items": limit,
            "dtype": str(journey.runtime.dtype).removeprefix("torch."),
            "measures": [asdict(measure) for measure in measures],
        }
        file = journey.folder / "evaluate" / FILE
        journey.runtime.processes.by_first(lambda: write_json_atomic(file, result))
        for line in [*table(stages, measures), *changes(stages, measures)]:
            journey.console.say(line)
    return result


def _measured(
    journey: Journey, stages: Sequence[str], suites: Sequence[str], data: Path | None, limit: int | None
) -> Iterator[Measure]:
    """Of all stages, measure after measure."""
    asked = Asked(journey)
    talking = [stage for stage in stages if stage not in CONTINUES]
    if "behaviour" in suites:
        for name, label in SETS.items():
            yield from asked.bits(stages, name, label)
        if talking:
            yield from asked.behaviours(talking)
    if "chat" in suites and talking:
        exams, missing = chat.read_chat_exams(data or BUNDLED, limit)
        for name, why in missing.items():
            journey.console.say(f"left out: {name}, as {why}")
        items = sum(len(exam.items) for exam in exams)
        processes = journey.runtime.processes
        chats = asked.suite(talking, items, lambda e, t, done: chat.evaluate(e, t, exams, done, processes))
        yield from suite_measures("chat", chats)
    if "core" in suites:
        texts = core.read_exams(data or find_folder(journey.recipe.eval.core), limit)
        items, processes = sum(exam.asked for exam in texts), journey.runtime.processes
        cores = asked.suite(stages, items, lambda e, t, done: core.evaluate(e, t, texts, done, processes))
        yield from suite_measures("core", cores)


class Asked:
    """A run whose stages are asked one after the other."""

    def __init__(self, journey: Journey) -> None:
        self.journey, self.tokenizer = journey, run_tokenizer(journey)[0]
        for stage in ("shards", "pretrain"):
            finished(journey, stage)

    def bits(self, stages: Sequence[str], name: str, label: str) -> list[Measure]:
        """Bits per byte of the token set `name`, if the run has it."""
        if not (self.journey.folder / "shards" / f"{name}.json").exists():
            return []
        tokens = token_set(self.journey, name)
        assert tokens.source_d is not None
        self.journey.console.stage(label, "bits per byte of every stage")
        read = {stage: self._read(stage, tokens) for stage in stages}
        return bits_measures(label, read, tokens.source_names, tokens.source_d)

    def behaviours(self, stages: Sequence[str]) -> list[Measure]:
        """Does it end, loop, give its name?"""
        hits = {}
        for stage in stages:
            self.journey.console.stage("behaviour", f"how the model of {stage} replies")
            hits[stage] = behaviour(self.journey, self._engine(stage), self.tokenizer).each
        return [
            share_measure(name, better, {stage: hits[stage][name] for stage in hits})
            for name, better in BEHAVIOURS.items()
        ]

    def suite(
        self,
        stages: Sequence[str],
        items: int,
        evaluate: Callable[[Engine, Tokenizer, Callable[[int], None]], dict[str, Any]],
    ) -> dict[str, dict[str, Any]]:
        """The result of a suite's `items` items, by stage."""
        results = {}
        for stage in stages:
            engine = self._engine(stage)
            self.journey.console.stage("questions", f"with known answers, for the model of {stage}")
            with self.journey.console.progress(items, "items") as progress:
                found = evaluate(engine, self.tokenizer, progress.advance)
            results[stage] = {"context": engine.config.context, **found}
        return results

    def _engine(self, stage: str) -> Engine:
        journey = self.journey
        refuse = refuse_older(journey, stage)
        return load_engine(journey.folder / stage, self.tokenizer, journey.runtime, on_damage=refuse)

    def _read(self, stage: str, tokens: TokenSet) -> Read:
        recipe, runtime = self.journey.recipe, self.journey.runtime
        model: Transformer = load_model(self.journey.folder / stage, refuse_older(self.journey, stage))
        assert recipe.pretrain.rows is not None
        context = model.config.context
        rows = MicroBatch(recipe.pretrain.micro_rows).rows(recipe.pretrain.rows, context)
        each = ByDocument(tokens.documents)
        batches = one_pass(tokens, context, self.tokenizer.eot_id, rows)
        losses = compiled_token_losses(runtime)
        validate(model.to(runtime.device), batches, self.tokenizer.token_bytes(), losses, runtime, each)
        return Read(each.nats_d.numpy(), each.bytes_d.numpy())


# Tables -------------------------------------------------------------------------------------------


def shown(value: float, kind: str, sign: str = "") -> str:
    """A value or a difference as its kind is written: 1.2345, 45.6%, +0.012."""
    if kind == "share":
        return f"{value:{sign}.1%}"
    return f"{value:{sign}.4f}" if kind == "bits" else f"{value:{sign}.3f}"


def table(stages: Sequence[str], measures: Sequence[Measure]) -> list[str]:
    """A line for each measure: what each stage's model reached, ± its standard error."""
    lines = [f"{'':34} {'n':>6}" + "".join(f"{stage:>{COLUMN}}" for stage in stages)]
    for measure in measures:
        cells = []
        for stage in stages:
            found, cell = measure.values.get(stage), "–"
            if found is not None:
                error = "–" if found.standard_error is None else shown(found.standard_error, measure.kind)
                cell = f"{shown(found.value, measure.kind)} ± {error}"
            cells.append(f"{cell:>{COLUMN}}")
        n = next(iter(measure.values.values())).n
        lines.append(f"{_short(measure.name):34} {n:6,}{''.join(cells)}")
    chatbots = ", ".join(stage for stage in stages if stage not in CONTINUES)
    return [*lines, f"± is the standard error; asked as chatbots: {chatbots}, and as one that continues: all"]


def changes(stages: Sequence[str], measures: Sequence[Measure]) -> list[str]:
    """What each stage changed, item by item."""
    lines = []
    for stage in stages[1:]:
        changed = [measure for measure in measures if stage in measure.changes]
        for since in dict.fromkeys(measure.changes[stage].since for measure in changed):
            lines.append(f"{f'{stage} minus {since}':34} {'difference':>11}  95% interval")
            for measure in changed:
                change = measure.changes[stage]
                if change.since == since:
                    low, high = (shown(end, measure.kind, "+") for end in (change.low, change.high))
                    lines.append(
                        f"{_short(measure.name):34} {shown(change.difference, measure.kind, '+'):>11}  "
                        f"{f'{low} to {high}':24} {measure.verdict(stage)}"
                    )
    return lines


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:33]}…"
