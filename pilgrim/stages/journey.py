"""The walk: a recipe's stages in order, each in a folder of its own.

    runs/NAME/  tokenizer/ -> shards/ -> pretrain/ -> midtrain/ -> sft/ -> dpo/ -> rl/ -> evaluate/

A stage reads the folders of those before it and writes its own; it is finished when DONE.json stands in
it. Stages never hand each other Python objects, so the walk can stop anywhere, and goes on from there.

Several processes (core/processes.py) walk through all of it together, and see one folder. The first writes,
and does by itself what can't be divided, tokenizer and shards among it; the others wait for it.
"""

import fcntl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from pilgrim.core import fence as fences
from pilgrim.core import runtime as machine
from pilgrim.core.config import build, differences, dump_toml, load_toml
from pilgrim.core.console import Console
from pilgrim.core.errors import ChangedRecipe, CheckpointError, PilgrimError, SettingsError
from pilgrim.core.fence import Fence
from pilgrim.core.files import explained, read_json, sha256_file, write_atomic, write_json_atomic
from pilgrim.core.processes import ALONE, Processes
from pilgrim.core.runlog import RunLog, write_provenance
from pilgrim.core.runtime import Runtime
from pilgrim.core.stages import TRAINED
from pilgrim.data.datasets import NAMED, local_files
from pilgrim.data.sources import find
from pilgrim.model.attention_choice import refuse_impossible
from pilgrim.model.precision import refuse_odd_sizes
from pilgrim.stages import fit
from pilgrim.stages.recipe import Recipe, load_recipe
from pilgrim.stages.rl_tasks import task_files

STAGES = {
    "tokenizer": "learn a vocabulary from the text",
    "shards": "turn text and conversations into token ids",
    "pretrain": "learn language from the text",
    "midtrain": "meet conversations while the learning rate falls",
    "sft": "learn to answer, and to stop",
    "dpo": "learn which of two replies is the better one",
    "rl": "learn from the rewards that its own replies earn",
    "evaluate": "measure what was reached",
}
BY_FIRST = ("tokenizer", "shards")  # what one process does while the others wait


@dataclass(frozen=True)
class Journey:
    """What every stage is given."""

    recipe: Recipe  # resolved
    folder: Path
    runtime: Runtime
    console: Console
    fence: Fence | None = None  # None for who only looks on

    def may_write(self) -> None:
        """Raises Fenced if the run was started again meanwhile."""
        if self.fence:
            self.fence.check()

    def stage_folder(self, stage: str) -> Path:
        """Where a stage writes; made if it is not there."""
        folder = self.folder / stage
        with explained("made", folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder


def run_journey(
    recipe_file: Path,
    overrides: list[str],
    *,
    only: str | None = None,
    until: str | None = None,
    accept_changes: bool = False,
    runs: Path = Path("runs"),
    console: Console | None = None,
) -> Path:
    """Walk through the recipe's stages, skipping those that are done; returns the run's folder.

    Raises PilgrimError in one sentence for whatever the user can mend.
    """
    from pilgrim.lab.report import write_report

    recipe = load_recipe(recipe_file, overrides)
    stages = chosen(recipe, only, until)
    if not begun(runs / recipe.name):
        _data_files(recipe)  # what is missing is told before anything else is done
    with machine.started(recipe.runtime, recipe.seed) as runtime:
        refuse_impossible_training(recipe, runtime)
        journey = Journey(recipe, runs / recipe.name, runtime, console_of(runtime, console))
        notes = list(runtime.notes)
        if any(stage in TRAINED and not _done(journey.folder, stage) for stage in stages):
            notes += fit.check(recipe, runtime)
        with only_writer(journey.folder, runtime.processes):
            fence = runtime.processes.by_first(lambda: fences.take(journey.folder))
            journey = replace(journey, fence=fence)
            runtime.processes.by_first(lambda: _begin(journey, accept_changes))
            for note in notes:
                journey.console.say(note)
            for stage in stages:
                run_stage(journey, stage, again=stage == only)
            report = runtime.processes.by_first(lambda: write_report(journey.folder))
            journey.console.say(f"report: {report}")
    return journey.folder


def _begin(journey: Journey, accept_changes: bool) -> None:
    """Leave recipe and provenance in the run's folder, or refuse to go on with another recipe."""
    recipe, folder = journey.recipe, journey.folder
    if begun(folder):
        refuse_changes(folder, recipe, accept_changes, journey.fence)
    else:
        hashes = {name: sha256_file(file) for name, file in _data_files(recipe).items()}
        write_provenance(folder, command=sys.argv, seed=recipe.seed, data_hashes=hashes)
    write_atomic(folder / "recipe.toml", dump_toml(recipe))


def console_of(runtime: Runtime, console: Console | None) -> Console:
    """Of several processes one talks to the person."""
    return (console or Console()) if runtime.processes.first else Console(quiet=True)


def refuse_impossible_training(recipe: Recipe, runtime: Runtime) -> None:
    """Raises SettingsError, before anything is done, for kernels that this machine or network can't have."""
    trained = {stage: settings for stage in TRAINED if (settings := recipe.training(stage))}
    configs = {stage: recipe.model_of(stage).config(recipe.tokenizer.vocab_size) for stage in trained}
    for config in configs.values():
        refuse_impossible(runtime, config)
    if runtime.parallel == "fsdp" and recipe.optim.state == "8bit":
        raise SettingsError(
            'optim.state = "8bit" keeps blocks of 256 numbers, which runtime.parallel = "fsdp" cuts up; '
            'write optim.state = "bf16", or runtime.parallel = "zero"'
        )
    if runtime.fp8:
        for stage, settings in trained.items():
            grown = [context for _, context in (settings.grow and settings.grow.context) or ()]
            for context in (*grown, configs[stage].context):
                refuse_odd_sizes(configs[stage], (settings.micro_rows or 1) * context)


def chosen(recipe: Recipe, only: str | None, until: str | None) -> list[str]:
    """The stages to walk through. Raises SettingsError for one that the recipe does not have."""
    stages = [s for s in STAGES if getattr(recipe, s, True) is not None]
    if only and until:
        raise SettingsError(f"--only {only} and --until {until} contradict each other; leave one of them out")
    for option, stage in (("--only", only), ("--until", until)):
        if stage is not None and stage not in stages:
            raise SettingsError(
                f"{option} {stage}: this journey has no such stage; it has {', '.join(stages)}"
            )
    if only:
        return [only]
    return stages[: stages.index(until) + 1] if until else stages


def run_stage(journey: Journey, stage: str, again: bool = False) -> None:
    """Run one stage unless it is done, and note that it is. `again` evaluates a second time when asked."""
    processes = journey.runtime.processes
    done_before = processes.by_first(lambda: _done(journey.folder, stage))
    if done_before and not (again and stage == "evaluate"):
        journey.console.say(f"{stage}: done before")
        return
    done = journey.stage_folder(stage) / "DONE.json"
    journey.console.stage(stage, STAGES[stage])
    began = time.perf_counter()
    work: Callable[[Journey], dict[str, Any]] = import_module(f"pilgrim.stages.{stage}").run
    summary = processes.by_first(lambda: work(journey)) if stage in BY_FIRST else work(journey)
    # A stage that goes on where it was stopped counts for itself, with the time before it was stopped.
    elapsed_s = summary.pop("elapsed_s", time.perf_counter() - began)
    row = {"stage": stage, "elapsed_s": elapsed_s, "summary": summary}
    processes.by_first(lambda: write_json_atomic(done, row, journey.may_write))


def _done(run: Path, stage: str) -> bool:
    return (run / stage / "DONE.json").exists()


def finished(journey: Journey, stage: str) -> dict[str, Any]:
    """The summary of a stage that this one builds on. Raises PilgrimError if it is not done."""
    done = journey.folder / stage / "DONE.json"
    if not done.exists():
        raise PilgrimError(
            f"{done.parent} is not finished, and what comes after builds on it; run --until {stage} first"
        )
    summary: dict[str, Any] = read_json(done)["summary"]
    return summary


def refuse_older(journey: Journey, stage: str) -> Callable[[str], None]:
    """What to do when the last checkpoint of a finished stage is damaged, and an older one is whole.

    The older one is not what the stage ended with, so it must not be taken for that in silence.
    """

    def refuse(damage: str) -> None:
        raise CheckpointError(
            f"{damage}, but {stage} had ended with the damaged one; "
            f"delete {journey.folder / stage / 'DONE.json'} and run again to train its end anew"
        )

    return refuse


def begun(folder: Path) -> bool:
    """Whether a run has anything that was made with its recipe: a finished stage, or a checkpoint."""
    return any(folder.glob("*/DONE.json")) or any(folder.glob("*/checkpoints/step_*"))


def refuse_changes(folder: Path, recipe: Recipe, accept_changes: bool, fence: Fence | None = None) -> None:
    """Refuse a resolved recipe that differs from the run's, unless that is accepted."""
    file = folder / "recipe.toml"
    changes = differences(build(Recipe, load_toml(file), str(file)), recipe)
    if changes and not accept_changes:
        raise ChangedRecipe(
            f"{file}: this run was started with other settings ({'; '.join(changes)}); "
            "give it another name with name=…, or go on with the new ones by --accept-changes, "
            "which leaves finished stages as they are"
        )
    if changes:  # what the run was before is not forgotten
        RunLog(folder, fence).event("changed_recipe", changes=changes)


@contextmanager
def only_writer(folder: Path, processes: Processes = ALONE) -> Iterator[None]:
    """Hold the run's folder, which is made if it is not there; a process that was killed holds nothing.

    This keeps out another process of this machine. What a lock does not reach is kept out by a fence.

    Of the processes of a run, the first does that for all.

    Raises PilgrimError if another run holds it, or if it can't be written to.
    """
    with ExitStack() as held:

        def hold() -> None:
            held.enter_context(_locked(folder))

        processes.by_first(hold)
        yield


def _locked(folder: Path) -> IO[str]:
    """The lock, held as long as this is open."""
    with explained("made", folder):
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".lock"
    with explained("written", file):
        lock = file.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise PilgrimError(
            f"{folder}: another process is at work in this run; "
            "wait for it, or give this one another name with name=…"
        ) from error
    return lock


def _data_files(recipe: Recipe) -> dict[str, Path]:
    """The files that the recipe reads, by their names in it. Raises DataError for one that is missing."""
    data, sets = recipe.data, recipe.token_sets()
    names = [*data.train, *data.val]
    names += data.conversations if "chat_train" in sets else ()
    names += data.conversations_val if recipe.chats else ()
    pairs = (*recipe.dpo.pairs, *recipe.dpo.pairs_val) if recipe.dpo else ()
    named = (name.removeprefix(NAMED) for name in names if name.startswith(NAMED))
    used = {*sets, *named, *recipe.rows_read()}
    found = {
        name: find(name, place)
        for place, files in (("[data]", names), ("[dpo]", pairs))
        for name in files
        if not name.startswith(NAMED)
    }
    for name, settings in recipe.datasets.items():
        if name in used:
            found |= {file: find(file, f"datasets.{name}") for file in local_files(settings)}
    return found | (task_files(recipe.rl) if recipe.rl else {})
