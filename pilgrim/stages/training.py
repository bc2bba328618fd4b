"""What the three trained stages share: assemble model, optimizers, rows and evaluation for the loop."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pilgrim.core.runlog import RunLog, read_rows
from pilgrim.data.loader import Batch, PackedRows, Rows, one_pass
from pilgrim.data.shards import TokenSet
from pilgrim.infer.engine import Engine
from pilgrim.infer.load import load_model
from pilgrim.infer.sampling import Sampling
from pilgrim.model.count import parameters
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers
from pilgrim.stages.journey import Journey, finished, refuse_older
from pilgrim.stages.shards import run_tokenizer, token_set
from pilgrim.stages.speed import shares_of_peak
from pilgrim.text.chat import Message, render_prompt
from pilgrim.text.tokenizer import Tokenizer
from pilgrim.train.loop import Loop, Parts, TrainSettings, load_weights
from pilgrim.train.step import compiled_token_losses
from pilgrim.train.validation import validate


def train_stage(
    journey: Journey,
    stage: str,
    settings: TrainSettings,
    rows: Callable[[Callable[[str], PackedRows]], Rows],
    begin: Callable[[Transformer], None],
    chat: bool,
) -> dict[str, Any]:
    """Train one stage and return its summary.

    `rows` gets a function from a token set's name to its packed rows, and makes the stage's rows of it.
    `begin` fills in the weights that the stage begins with.
    `chat` says that the stage teaches conversations: they are validated and sampled too.
    """
    recipe, runtime = journey.recipe, journey.runtime
    tokenizer, _ = run_tokenizer(journey)
    model = Transformer(recipe.model.config(tokenizer.vocab_size)).to(runtime.device)
    begin(model)

    def packed(name: str) -> PackedRows:
        return PackedRows(token_set(journey, name), recipe.model.context, tokenizer.eot_id, runtime)

    def once(tokens: TokenSet) -> Iterator[Batch]:
        assert settings.micro_rows is not None
        return one_pass(tokens, recipe.model.context, tokenizer.eot_id, settings.micro_rows)

    folder = journey.stage_folder(stage)
    log = RunLog(folder, journey.console)
    losses = compiled_token_losses(runtime)
    held_out = {"": token_set(journey, "val")} | ({"chat_": token_set(journey, "chat_val")} if chat else {})
    token_bytes = tokenizer.token_bytes()

    def evaluate(step: int) -> dict[str, float]:
        measures: dict[str, float] = {}
        for prefix, tokens in held_out.items():
            v = validate(model, once(tokens), token_bytes, losses, runtime)
            measures |= {f"{prefix}bpb": v.bpb, f"{prefix}loss": v.loss}
        if all(map(math.isfinite, measures.values())):  # else the weights are spoiled, and the loop stops
            _sample(journey, model, tokenizer, log, folder, step, chat)
        return measures

    optimizers = Optimizers(model, recipe.optim, runtime.dtype, runtime.compile)
    parts = Parts(
        model,
        optimizers,
        recipe.optim,
        rows(packed),
        losses,
        evaluate,
        runtime,
        settings,
        folder,
        log,
        journey.console,
        shares_of_peak(journey.folder, model.config, runtime),
    )
    state = Loop(parts).run()
    log.event("done", step=state.step)
    last = read_rows(folder / "metrics.jsonl")[-1]
    final = read_rows(folder / "evals.jsonl")[-1]
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "elapsed_s": state.elapsed_s,
        "train_s": state.train_s,
        "tokens_per_s": state.tokens / state.train_s,
        **parts.shares(state.tokens / state.train_s),
        "parameters": parameters(model.config).total,
        "train_loss": last["loss"],
        **{k: v for k, v in final.items() if k != "step"},
    }


def weights_of(journey: Journey, stage: str) -> Callable[[Transformer], None]:
    """A `begin` for `train_stage`: the weights that an earlier stage ended with."""
    finished(journey, stage)

    def begin(model: Transformer) -> None:
        place = journey.folder / stage
        before = load_model(place, refuse_older(journey, stage))
        load_weights(model, before.weights(), before.config.model_dump(), place)

    return begin


def _sample(
    journey: Journey,
    model: Transformer,
    tokenizer: Tokenizer,
    log: RunLog,
    folder: Path,
    step: int,
    chat: bool,
) -> None:
    """Write what the model makes of the fixed prompts: the reel of it growing up."""
    settings = journey.recipe.eval
    prompts = {p: [tokenizer.eot_id, *tokenizer.encode(p)] for p in settings.prompts}
    if chat:
        prompts |= {q: render_prompt([Message("user", q)], tokenizer) for q in settings.questions}
    written = {row["prompt"] for row in read_rows(folder / "samples.jsonl") if row["step"] == step}
    engine = Engine(model, journey.runtime)
    sampling = Sampling(
        temperature=settings.temperature,
        max_tokens=settings.sample_tokens,
        seed=journey.runtime.seed_for("samples"),
    )
    replies = engine.generate(
        list(prompts.values()), sampling, stop_ids=(tokenizer.eot_id, tokenizer.im_end_id)
    )
    for prompt, reply in zip(prompts, replies, strict=True):
        if prompt not in written:  # a run that was killed between samples and evaluation made them before
            log.sample(step, prompt, tokenizer.decode(reply.ids))
