"""What the three trained stages share: assemble model, optimizers, rows and evaluation for the loop."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pilgrim.core import machine
from pilgrim.core.files import read_json, write_json_atomic
from pilgrim.core.runlog import RunLog, read_rows
from pilgrim.core.runtime import Runtime
from pilgrim.core.watchdog import Watchdog, stacks_file
from pilgrim.data.loader import Batch, PackedRows, Rows, one_pass
from pilgrim.data.shards import TokenSet
from pilgrim.infer.load import load_model
from pilgrim.model.attention_choice import Choice, activated, choose, trouble
from pilgrim.model.config import ModelConfig
from pilgrim.model.count import parameters
from pilgrim.model.lora import adapt, numbers
from pilgrim.model.precision import train_in_fp8
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers
from pilgrim.stages.journey import Journey, finished, refuse_older
from pilgrim.stages.shards import bits_by_source, run_tokenizer, token_set
from pilgrim.stages.speed import shares_of_peak
from pilgrim.stages.teaching import teacher_of
from pilgrim.stages.watching import Watching
from pilgrim.train.distillation import distilled
from pilgrim.train.fit import MicroBatch
from pilgrim.train.keeping import State, load_weights
from pilgrim.train.likelihood import token_logprobs
from pilgrim.train.loop import Loop, Parts
from pilgrim.train.objective import NEXT_TOKEN, Objective, with_sums
from pilgrim.train.parallel import in_parallel, losses_of
from pilgrim.train.settings import TrainSettings
from pilgrim.train.teacher import taught
from pilgrim.train.validation import ByDocument, validate

ATTENTION = "attention.json"  # which backend was the fastest


@dataclass(frozen=True)
class Given:
    """What a stage can ask once the network has the weights that it begins with."""

    model: Transformer
    logprobs: Callable[[TokenSet], NDArray[np.float32]]  # of each of a set's tokens, by the model as it is
    folder: Path  # the stage's; another one for who only looks on


@dataclass(frozen=True)
class Made:
    """Rows, and further measures of an evaluation."""

    rows: Rows
    measures: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Plan:
    """How one trained stage differs from the others."""

    stage: str
    settings: TrainSettings
    # From (a token set's name -> its packed rows); None: they are `made`.
    rows: Callable[[Callable[[str], PackedRows]], Rows] | None
    begin: Callable[[Transformer], None]  # fills in the weights that the stage begins with
    chat: bool  # it teaches conversations: they are validated and sampled too
    objective: Objective = NEXT_TOKEN
    ahead: bool = True  # batches may be made ahead of the step (train/loop.py)
    made: Callable[[Given], Made] | None = None  # where rows depend on the weights that the stage begins with
    # (the model as it is, step) -> more measures of an evaluation
    look: Callable[[Transformer, int], dict[str, Any]] | None = None


def assemble(journey: Journey, plan: Plan, begin: Callable[[Transformer], None], notes: Path) -> Parts:
    """Everything that the loop needs.

    `begin` is the plan's, or another one. `notes` is where the log is kept, in a folder with the stage's
    name, and what was chosen by timing: the run's folder, but for who only looks on.
    """
    recipe, runtime, settings = journey.recipe, journey.runtime, plan.settings
    assert settings.rows is not None
    tokenizer, _ = run_tokenizer(journey)
    network = recipe.model_of(plan.stage)
    model = Transformer(network.config(tokenizer.vocab_size))
    if runtime.parallel != "fsdp":  # else only slices of it will go there
        model = model.to(runtime.device)
    model.recompute = recipe.runtime.checkpoint_activations
    begin(model)
    if settings.lora:
        adapt(model, settings.lora, runtime.generator(f"lora of {plan.stage}"))
    if runtime.fp8:
        train_in_fp8(model.model.layers)

    def packed(name: str) -> PackedRows:
        return PackedRows(token_set(journey, name), network.context, tokenizer.eot_id, runtime)

    micro = MicroBatch(settings.micro_rows)

    def once(tokens: TokenSet) -> Iterator[Batch]:
        assert settings.rows is not None
        context = network.context
        return one_pass(tokens, context, tokenizer.eot_id, micro.rows(settings.rows, context))

    folder, log = (
        journey.folder / plan.stage,
        RunLog(notes / plan.stage, journey.fence, runtime.processes.first),
    )
    rows = micro.rows(runtime.processes.share(settings.rows), model.config.context)
    attention = chosen_attention(journey, model.config, rows, log, notes)
    teacher = teacher_of(
        journey, plan.stage, settings.teacher, model.config, attention.backend, notes / plan.stage
    )
    objective = plan.objective if settings.teacher is None else distilled(plan.objective, settings.teacher)
    losses, measured = losses_of(model, runtime, attention.backend, objective.head_loss)
    parallel = in_parallel(model, losses, runtime, measured)
    held_out = {"": token_set(journey, "val")}
    if plan.chat:
        held_out["chat_"] = token_set(journey, "chat_val")
    token_bytes = tokenizer.token_bytes()

    def logprobs(tokens: TokenSet) -> NDArray[np.float32]:
        nothing = {name: torch.zeros(1, network.context) for name in objective.extra}
        batches = (
            replace(batch, extra={name: x.expand(batch.inputs_bt.shape) for name, x in nothing.items()})
            for batch in once(tokens)
        )
        return token_logprobs(model, tokens, batches, parallel.unlearned, runtime)

    if plan.made:
        made = plan.made(Given(model, logprobs, notes / plan.stage))
    else:
        assert plan.rows is not None
        made = Made(plan.rows(packed))
    assert settings.steps is not None
    watching = Watching(journey, tokenizer, log, folder, settings.steps, settings.eval_every, plan.chat)

    def evaluate(step: int) -> dict[str, Any]:
        measures: dict[str, Any] = {}
        sources: dict[str, Any] = {}
        for prefix, tokens in held_out.items():
            each = ByDocument(tokens.documents)
            v = validate(model, once(tokens), token_bytes, parallel.measured, runtime, each)
            measures |= {f"{prefix}bpb": v.bpb, f"{prefix}loss": v.loss}
            sources[f"{prefix}sources"] = bits_by_source(tokens, each)
        measures |= made.measures()
        values = [value for value in measures.values() if isinstance(value, float)]
        if not all(map(math.isfinite, values)):  # the weights are spoiled, and the loop stops
            return measures
        looked = plan.look(model, step) if plan.look else {}
        return measures | sources | watching.look(model, step) | looked

    optimizers = Optimizers(
        model,
        recipe.optim,
        runtime.dtype,
        runtime.compile,
        runtime.parallel,
        settings.lora.lr if settings.lora else None,
    )
    return Parts(
        model,
        optimizers,
        recipe.optim,
        made.rows,
        taught(with_sums(parallel.losses, objective), teacher),
        micro,
        evaluate,
        runtime,
        settings,
        folder,
        log,
        journey.console,
        quietly=parallel.quietly,
        health=recipe.health,
        objective=objective,
        ahead=plan.ahead,
    )


def train_stage(journey: Journey, plan: Plan) -> dict[str, Any]:
    """Train one stage and return its summary."""
    parts = assemble(journey, plan, plan.begin, journey.folder)
    folder = journey.stage_folder(plan.stage)
    processes = journey.runtime.processes
    if processes.first:
        shares = shares_of_peak(journey.folder, parts.model.config, journey.runtime, numbers(parts.model))
        parts = replace(parts, shares=shares)
    if processes.count > 1:
        parts.log.event("processes", count=processes.count, parallel=journey.runtime.parallel)
    watchdog = Watchdog(stacks_file(journey.folder, processes.rank), journey.recipe.runtime.hang_s)
    parts = replace(parts, watchdog=watchdog)
    state = Loop(parts).run()
    parts.log.event("done", step=state.step)
    return processes.by_first(lambda: _summary(parts, folder, state))


def _summary(parts: Parts, folder: Path, state: State) -> dict[str, Any]:
    last = read_rows(folder / "metrics.jsonl")[-1]
    final = read_rows(folder / "evals.jsonl")[-1]
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "elapsed_s": state.elapsed_s,
        "train_s": state.train_s,
        "tokens_per_s": state.tokens / state.train_s,
        **parts.shares(state.tokens / state.train_s),
        "parameters": parameters(parts.model.config).total,
        **({"trained_parameters": trained} if (trained := numbers(parts.model)) else {}),
        "train_loss": last["loss"],
        **{k: v for k, v in final.items() if k != "step" and isinstance(v, float)},
    }


def chosen_attention(journey: Journey, config: ModelConfig, rows: int, log: RunLog, notes: Path) -> Choice:
    """The attention backend for microbatches of `rows` rows, timed once in a run for a machine and a shape.

    Several processes take what the first finds.

    It is remembered in `notes`, the run's folder, because two backends round differently: a resumed run shall
    go on with the one it began with, even if a second timing would prefer another.
    """
    found = journey.runtime.processes.by_first(lambda: _found_attention(journey, config, rows, log, notes))
    return activated(found)


def _found_attention(journey: Journey, config: ModelConfig, rows: int, log: RunLog, notes: Path) -> Choice:
    runtime, file = journey.runtime, notes / ATTENTION
    key = attention_key(runtime, config, rows)
    known: list[dict[str, Any]] = read_json(file) if file.exists() else []
    before = next((entry for entry in known if entry["for"] == key), None)
    if before is not None and trouble(before["backend"], runtime, config) is None:
        return Choice(before["backend"], before["milliseconds"], before["left_out"])
    choice = choose(runtime, config, rows)
    if runtime.device.type == "cuda" or runtime.attention != "auto":  # elsewhere there is nothing to choose
        log.event("attention", **asdict(choice))
        journey.console.say(choice.note)
    if choice.milliseconds:
        others = [entry for entry in known if entry["for"] != key]
        write_json_atomic(file, [*others, {"for": key, **asdict(choice)}])
    return choice


def attention_key(runtime: Runtime, config: ModelConfig, rows: int) -> dict[str, Any]:
    """All that a timing of attention depends on, as plain JSON."""
    return {
        "machine": (machine.gpu() or {}).get("name", runtime.device.type),
        "torch": str(torch.__version__),
        "asked": [runtime.attention, str(runtime.dtype), runtime.compile, runtime.deterministic],
        "shape": [rows, config.context, config.heads, config.kv_heads, config.head_size, *config.windows],
    }


def weights_of(journey: Journey, stage: str) -> Callable[[Transformer], None]:
    """A plan's `begin`: the weights that an earlier stage ended with."""

    def begin(model: Transformer) -> None:
        finished(journey, stage)
        place = journey.folder / stage
        before = load_model(place, refuse_older(journey, stage))
        load_weights(model, before.weights(), before.config.model_dump(), place)

    return begin
