"""What all stages that train share: assemble model, optimizers, rows and evaluation for the loop."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pilgrim.core.runlog import RunLog, read_rows
from pilgrim.core.runtime import Runtime
from pilgrim.core.watchdog import Watchdog, stacks_file
from pilgrim.data.loader import Batch, PackedRows, Rows, one_pass
from pilgrim.data.shards import TokenSet
from pilgrim.infer.load import load_model
from pilgrim.model.count import parameters
from pilgrim.model.lora import adapt, numbers
from pilgrim.model.precision import train_in_fp8
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers
from pilgrim.stages.attention import chosen_attention
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
from pilgrim.train.validation import ByDocument, Validation, validate


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
    # (a token set's name -> its packed rows) -> the stage's rows; None: they are `made`.
    rows: Callable[[Callable[[str], PackedRows]], Rows] | None
    begin: Callable[[Transformer], None]  # fills in the weights that the stage begins with
    chat: bool  # it teaches conversations: they are validated and sampled too
    objective: Objective = NEXT_TOKEN
    ahead: bool = True  # batches may be made ahead of the step (train/loop.py)
    compiled: bool = True  # where the runtime compiles: False where the stage is too short to be worth it
    made: Callable[[Given], Made] | None = None  # where rows depend on the weights that the stage begins with
    # (the model as it is, step) -> more measures of an evaluation
    look: Callable[[Transformer, int], dict[str, Any]] | None = None


def assemble(journey: Journey, plan: Plan, begin: Callable[[Transformer], None], notes: Path) -> Parts:
    """Everything that the loop needs.

    `begin` is the plan's, or another one. `notes` is where the log is kept, in a folder with the stage's
    name, and what was chosen by timing: the run's folder, but for who only looks on.
    """
    recipe, settings, own_notes = journey.recipe, plan.settings, notes / plan.stage
    assert settings.rows is not None and settings.steps is not None
    runtime = replace(journey.runtime, compile=journey.runtime.compile and plan.compiled)
    tokenizer, _ = run_tokenizer(journey)
    model = _network(journey, plan, begin, runtime, tokenizer.vocab_size)
    context, micro = model.config.context, MicroBatch(settings.micro_rows)
    folder, log = journey.folder / plan.stage, RunLog(own_notes, journey.fence, runtime.processes.first)
    rows = micro.rows(runtime.processes.share(settings.rows), context)
    attention = chosen_attention(journey, model.config, rows, log, notes)
    teacher = teacher_of(journey, plan.stage, settings.teacher, model.config, attention.backend, own_notes)
    objective = plan.objective if settings.teacher is None else distilled(plan.objective, settings.teacher)
    losses, measured = losses_of(model, runtime, attention.backend, objective.head_loss)
    parallel = in_parallel(model, losses, runtime, measured)
    all_rows = settings.rows

    def once(tokens: TokenSet) -> Iterator[Batch]:
        return one_pass(tokens, context, tokenizer.eot_id, micro.rows(all_rows, context))

    def logprobs(tokens: TokenSet) -> NDArray[np.float32]:
        batches = (_with_zeros(batch, objective.extra) for batch in once(tokens))
        return token_logprobs(model, tokens, batches, parallel.unlearned, runtime)

    if plan.made:
        made = plan.made(Given(model, logprobs, own_notes))
    else:
        assert plan.rows is not None
        made = Made(
            plan.rows(lambda name: PackedRows(token_set(journey, name), context, tokenizer.eot_id, runtime))
        )
    token_bytes = tokenizer.token_bytes()
    held_out = {"": "val", "chat_": "chat_val"} if plan.chat else {"": "val"}
    evaluation = Evaluation(
        {prefix: token_set(journey, name) for prefix, name in held_out.items()},
        lambda tokens, each: validate(model, once(tokens), token_bytes, parallel.measured, runtime, each),
        made.measures,
        Watching(journey, tokenizer, log, folder, settings.steps, settings.eval_every, plan.chat),
        plan.look,
    )
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
        lambda step: evaluation.of(model, step),
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


def _network(
    journey: Journey, plan: Plan, begin: Callable[[Transformer], None], runtime: Runtime, vocab_size: int
) -> Transformer:
    """The stage's network with its first weights, adapters beside them if the recipe wants some."""
    settings, config = plan.settings, journey.recipe.model_of(plan.stage).config(vocab_size)
    model = Transformer(config)
    if runtime.parallel != "fsdp":  # else only slices of it will go there
        model = model.to(runtime.device)
    model.recompute = journey.recipe.runtime.checkpoint_activations
    begin(model)
    if settings.lora:
        adapt(model, settings.lora, runtime.generator(f"lora of {plan.stage}"))
    if runtime.fp8:
        train_in_fp8(model.model.layers)
    return model


def _with_zeros(batch: Batch, extra: Sequence[str]) -> Batch:
    """The batch with the `extra` numbers of its loss as 0, where only log-probabilities are wanted."""
    zeros_bt = torch.zeros(batch.inputs_bt.shape)
    return replace(batch, extra=dict.fromkeys(extra, zeros_bt))


@dataclass(frozen=True)
class Evaluation:
    """What is measured at every evaluation: held-out sets, what the stage adds, samples and questions."""

    held_out: Mapping[str, TokenSet]  # by the prefix of their measures
    validate: Callable[[TokenSet, ByDocument], Validation]
    measures: Callable[[], dict[str, Any]]
    watching: Watching
    look: Callable[[Transformer, int], dict[str, Any]] | None

    def of(self, model: Transformer, step: int) -> dict[str, Any]:
        """The measures by name, "bpb" among them. Of spoiled weights only the first, so the loop stops."""
        measures: dict[str, Any] = {}
        sources: dict[str, Any] = {}
        for prefix, tokens in self.held_out.items():
            each = ByDocument(tokens.documents)
            found = self.validate(tokens, each)
            measures |= {f"{prefix}bpb": found.bpb, f"{prefix}loss": found.loss}
            sources[f"{prefix}sources"] = bits_by_source(tokens, each)
        measures |= self.measures()
        if not all(math.isfinite(value) for value in measures.values() if isinstance(value, float)):
            return measures
        looked = self.look(model, step) if self.look else {}
        return measures | sources | self.watching.look(model, step) | looked


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


def weights_of(journey: Journey, stage: str) -> Callable[[Transformer], None]:
    """A plan's `begin`: the weights that an earlier stage ended with."""

    def begin(model: Transformer) -> None:
        finished(journey, stage)
        place = journey.folder / stage
        before = load_model(place, refuse_older(journey, stage))
        load_weights(model, before.weights(), before.config.model_dump(), place)

    return begin
