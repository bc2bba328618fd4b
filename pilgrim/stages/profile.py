"""Profiling: some steps of a stage, looked at closely, without disturbing the run.

Needed are only the run's tokenizer and token sets; if they are missing, they are made as the run would. A
training stage begins with its last checkpoint if it has one, else with fresh weights, which take as long.
Written is one folder, runs/NAME/profile/STAGE:

    trace.json.gz               every call and kernel; open it in ui.perfetto.dev
    memory_snapshot.pickle      on CUDA: every allocation; open it in pytorch.org/memory_viz
    profile.json, index.html    what was found; recipe.toml and provenance.json say with what
"""

import sys
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

from pilgrim.core import peaks
from pilgrim.core import runtime as machine
from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.config import build, differences, dump_toml, load_toml
from pilgrim.core.console import Console
from pilgrim.core.errors import CheckpointError, SettingsError
from pilgrim.core.files import explained, read_json, write_atomic
from pilgrim.core.runlog import write_provenance
from pilgrim.core.runtime import Runtime
from pilgrim.core.stages import TRAINED
from pilgrim.infer.load import load_model, newest_stage
from pilgrim.lab.profile.analysis import Setting, analyse
from pilgrim.lab.profile.capture import capture
from pilgrim.lab.profile.findings import Findings
from pilgrim.lab.profile.steps import GenerationSteps, TrainingSteps, Work
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.stages.attention import ATTENTION
from pilgrim.stages.journey import Journey, console_of, only_writer, run_journey
from pilgrim.stages.recipe import Recipe, load_recipe
from pilgrim.stages.shards import run_tokenizer
from pilgrim.stages.training import Plan, assemble
from pilgrim.train.keeping import State, load_weights

GENERATE = "generate"
PROFILED = (*(stage for stage in TRAINED if stage != "rl"), GENERATE)
# How often a step is made beside the profiled ones: plain ones before and after, and three in eager mode.
TIMES_STEPS, EAGER_STEPS = 3, 3


def profile_stage(
    recipe_file: Path,
    overrides: list[str],
    *,
    stage: str = "pretrain",
    steps: int = 5,
    warmup: int = 3,
    out: Path | None = None,
    runs: Path = Path("runs"),
    console: Console | None = None,
) -> tuple[Findings, Path]:
    """Profile a stage and write `profile.json` and what it was made from; returns findings and folder.

    Several processes make the steps together, and the first looks at its own.

    Raises PilgrimError in one sentence for what the user can mend.
    """
    recipe = load_recipe(recipe_file, overrides)
    check(recipe, stage, steps, warmup)
    run = runs / recipe.name
    with machine.started(recipe.runtime, recipe.seed) as runtime:
        processes, console = runtime.processes, console_of(runtime, console)
        if not processes.by_first((run / "shards" / "DONE.json").exists):
            run_journey(recipe_file, overrides, until="shards", runs=runs, console=console)
        refuse_other_data(run, recipe)
        journey = Journey(recipe, run, runtime, console)
        folder = out or run / "profile" / stage
        with explained("made", folder):
            folder.mkdir(parents=True, exist_ok=True)
        with only_writer(run, processes):  # what else works in this run would be measured along
            console.stage("profile", f"{steps} steps of {stage}, after {warmup} to warm up")
            with TemporaryDirectory() as notes:  # what a stage would note in the run's folder
                made = TIMES_STEPS * steps + warmup + EAGER_STEPS
                work, beginning = _work(journey, stage, made, Path(notes))
                with closing(work):
                    captured = capture(work, runtime.device, steps, warmup, folder, processes.first)
                    setting = _setting(recipe, stage, work, runtime, beginning)

            def conclude() -> Findings:
                findings = analyse(captured, setting, peaks.measured(runtime.device, runtime.dtype))
                findings.save(folder / "profile.json")
                write_atomic(folder / "recipe.toml", dump_toml(recipe))  # for comparing with another profile
                hashes = read_json(run / "provenance.json")["data_sha256"]  # of the run: these token sets
                write_provenance(folder, command=sys.argv, seed=recipe.seed, data_hashes=hashes)
                return findings

            return processes.by_first(conclude), folder


def check(recipe: Recipe, stage: str, steps: int, warmup: int) -> None:
    """Raises SettingsError for what can't be profiled."""
    if stage == "rl":
        raise SettingsError(
            "--stage rl: its time goes into replies, written between steps; profile generate for that, and "
            "sft for a step"
        )
    if stage not in PROFILED:
        known = ", ".join(PROFILED)
        raise SettingsError(f"--stage {stage}: no stage of that name can be profiled; those are {known}")
    if stage != GENERATE and recipe.training(stage) is None:
        has = ", ".join(s for s in PROFILED if s == GENERATE or recipe.training(s))
        raise SettingsError(
            f"--stage {stage}: this recipe has no [{stage}] table; add one, or profile one of {has}"
        )
    if steps < 1:
        raise SettingsError(f"--steps {steps}: at least one step is needed to see anything; try 5")
    if warmup < 1:
        raise SettingsError(
            f"--warmup {warmup}: the first step is never like the others (it compiles); try 3"
        )


def refuse_other_data(run: Path, recipe: Recipe) -> None:
    """Raises SettingsError if the run's token sets are not those of this recipe."""
    file = run / "recipe.toml"
    made_with = build(Recipe, load_toml(file), str(file))
    everything = differences(made_with, recipe)
    for table in ("tokenizer", "data", "datasets"):
        if changes := [line for line in everything if line.startswith(f"{table}.")]:
            raise SettingsError(
                f"{file}: the run's token sets were made with another [{table}] ({'; '.join(changes)}); "
                "give this profile another name with name=…"
            )


def _work(journey: Journey, stage: str, steps: int, notes: Path) -> tuple[Work, str]:
    """What is to be profiled, and a sentence on what it begins with. `steps` is how many it has to be good
    for."""
    if stage == GENERATE:
        return _generation(journey, steps)
    remembered = journey.folder / ATTENTION
    if remembered.exists():
        copyfile(remembered, notes / ATTENTION)
    return _training(journey, import_module(f"pilgrim.stages.{stage}").plan(journey), notes)


def _setting(recipe: Recipe, stage: str, work: Work, runtime: Runtime, beginning: str) -> Setting:
    return Setting(
        recipe.name,
        stage,
        work.stage_steps,
        work.rows,
        work.all_rows,
        runtime,
        "runtime.checkpoint_activations=false" if recipe.runtime.checkpoint_activations else None,
        (beginning,),
    )


def _training(journey: Journey, plan: Plan, notes: Path) -> tuple[TrainingSteps, str]:
    """The stage's steps, from its last checkpoint if that is of this shape, and a sentence on which."""
    parts = assemble(journey, plan, _fresh(journey), notes)
    store = CheckpointStore(journey.folder / plan.stage / "checkpoints")
    found = store.load_latest(journey.console.say)
    if found is None or found.state["model_config"] != parts.model.config.model_dump():
        return TrainingSteps(parts, State()), "Steps began from fresh weights."
    load_weights(parts.model, found.tensors["model"], found.state["model_config"], found.folder)
    parts.optimizers.load(found.tensors["optimizer"])
    state = State(**{k: v for k, v in found.state.items() if k != "model_config"})
    if state.micro_rows == parts.micro.given:
        parts.micro.tokens = state.micro_tokens
    return TrainingSteps(parts, state), f"Steps began from the checkpoint of step {found.step}."


def _generation(journey: Journey, steps: int) -> tuple[GenerationSteps, str]:
    """Replies to the recipe's prompts, by the run's last model if that is of this shape."""
    recipe, runtime = journey.recipe, journey.runtime
    tokenizer, _ = run_tokenizer(journey)
    try:
        stage = newest_stage(journey.folder)
        trained = load_model(journey.folder / stage, journey.console.say)
    except CheckpointError:
        stage, trained = recipe.stage_before("evaluate"), None
    config, note = (
        recipe.model_of(stage).config(tokenizer.vocab_size),
        "Replies are written with fresh weights.",
    )
    model = Transformer(config)
    if trained is not None and trained.config == config:
        model, note = trained, f"Replies are written by the model of {stage}."
    else:
        _fresh(journey)(model)
    prompts = [[tokenizer.eot_id, *tokenizer.encode(prompt)] for prompt in recipe.eval.prompts]
    return GenerationSteps(model, runtime, prompts, steps), note


def _fresh(journey: Journey) -> Callable[[Transformer], None]:
    return lambda model: initialize(model, journey.runtime.generator("initialize"))
