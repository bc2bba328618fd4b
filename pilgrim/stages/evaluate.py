"""Stage 8: what was reached. Bits per byte of every trained stage, and how the chatbot behaves."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pilgrim.core import runtime as machine
from pilgrim.core.config import build, load_toml
from pilgrim.core.console import Console
from pilgrim.core.errors import DataError
from pilgrim.core.files import write_json_atomic
from pilgrim.core.stages import CHAT, TRAINED
from pilgrim.data.conversations import Prompt, read_prompts
from pilgrim.data.loader import one_pass
from pilgrim.evals.behaviour import Behaviour, Reply, measure
from pilgrim.evals.compression import bits
from pilgrim.infer.dealing import dealt_replies
from pilgrim.infer.engine import Engine
from pilgrim.infer.load import load_engine, load_model
from pilgrim.infer.sampling import Sampling
from pilgrim.stages.journey import Journey, console_of, finished, only_writer, refuse_older, run_stage
from pilgrim.stages.recipe import Recipe
from pilgrim.stages.shards import bits_by_source, run_tokenizer, token_set
from pilgrim.text.chat import Message, render_prompt
from pilgrim.text.tokenizer import Tokenizer
from pilgrim.train.fit import MicroBatch
from pilgrim.train.step import compiled_token_losses
from pilgrim.train.validation import ByDocument, validate

PROMPTS = "assets:prompts/heldout.jsonl"
NAME_PROMPTS = "assets:prompts/name.jsonl"


def run(journey: Journey) -> dict[str, Any]:
    """Write `evaluate/result.json`; the summary has the shares and the bits per byte."""
    recipe, runtime = journey.recipe, journey.runtime
    tokenizer, _ = run_tokenizer(journey)
    stages = [stage for stage in TRAINED if recipe.training(stage)]
    for stage in stages:
        finished(journey, stage)
    val, losses = token_set(journey, "val"), compiled_token_losses(runtime)
    assert recipe.pretrain.rows is not None
    result: dict[str, Any] = {"bpb": {}}
    for stage in stages:
        model = load_model(journey.folder / stage, refuse_older(journey, stage)).to(runtime.device)
        context = model.config.context  # midtraining may have made it longer
        micro_rows = MicroBatch(recipe.pretrain.micro_rows).rows(recipe.pretrain.rows, context)
        rows = one_pass(val, context, tokenizer.eot_id, micro_rows)
        each = ByDocument(val.documents)
        text = validate(model, rows, tokenizer.token_bytes(), losses, runtime, each)
        of_all = bits(each.nats_d.numpy(), each.bytes_d.numpy())
        result["bpb"][stage] = asdict(text) | {
            "standard_error": of_all and of_all.standard_error,
            "sources": bits_by_source(val, each),
        }
        journey.console.say(_in_words(stage, result["bpb"][stage]))
    if (last := recipe.stage_before("evaluate")) in CHAT:
        refuse = refuse_older(journey, last)
        engine = load_engine(journey.folder / last, tokenizer, runtime, on_damage=refuse)
        found = behaviour(journey, engine, tokenizer)
        for line in shares_in_words(found):
            journey.console.say(line)
        result |= found.to_dict()
    if runtime.processes.first:
        write_json_atomic(journey.stage_folder("evaluate") / "result.json", result, journey.may_write)
    shares = {name: share["share"] for name, share in result.get("behaviour", {}).items()}
    return {f"{stage}_bpb": v["bpb"] for stage, v in result["bpb"].items()} | shares


def _in_words(stage: str, found: Mapping[str, Any]) -> str:
    """A stage's bits per byte, and those of its sources if there are several."""
    sources = found["sources"] if len(found["sources"]) > 1 else {}
    by_source = ", ".join(f"{name} {source['bpb']:.3f}" for name, source in sources.items())
    return f"{stage}: {found['bpb']:.4f} bits per byte on held-out text" + (by_source and f" ({by_source})")


def behaviour(journey: Journey, engine: Engine, tokenizer: Tokenizer) -> Behaviour:
    """Ask the held-out prompts at the recipe's temperature and count (evals/behaviour.py).

    Raises DataError if the model's context is too short for any of them.
    """
    settings = journey.recipe.eval
    sampling = Sampling(
        temperature=settings.temperature,
        max_tokens=settings.reply_tokens,
        seed=journey.runtime.seed_for("behaviour"),
    )
    prompts, names = (_that_fit(journey, file, engine, tokenizer) for file in (PROMPTS, NAME_PROMPTS))
    with journey.console.progress(len(prompts) + len(names), "prompt") as progress:

        def reply_for(conversations: Sequence[Sequence[Message]]) -> list[Reply]:
            ids = [render_prompt(messages, tokenizer) for messages in conversations]
            stop_ids = (tokenizer.im_end_id, tokenizer.eot_id)
            replies = dealt_replies(engine, ids, sampling, stop_ids, journey.runtime.processes)
            progress.advance(len(replies))
            return [Reply(r.ids, tokenizer.decode(r.ids), r.ended) for r in replies]

        return measure(reply_for, prompts, names, token_limit=settings.reply_tokens)


def shares_in_words(found: Behaviour) -> list[str]:
    """A line for each share, with its interval."""
    shares = {"ended": found.ended, "looped": found.looped, "gave its name": found.named}
    return [
        f"{name}: {share.share:.1%} of {share.n} (95% interval {share.interval[0]:.1%} to "
        f"{share.interval[1]:.1%})"
        for name, share in shares.items()
    ]


def _that_fit(journey: Journey, file: str, engine: Engine, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts that leave room for a reply in the model's context; what is left out is told."""
    prompts, context = read_prompts([file]), engine.config.context
    fit = [p for p in prompts if len(render_prompt(p.messages, tokenizer)) < context]
    if not fit:
        raise DataError(
            f"{file}: no prompt fits into model.context = {context} tokens; train with a longer one"
        )
    if len(fit) < len(prompts):
        journey.console.say(
            f"{len(prompts) - len(fit)} of {len(prompts)} held-out prompts are left out: "
            f"they fill the model's context of {context} tokens"
        )
    return fit


def evaluate_run(folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Evaluate a finished run once more, with its own recipe; returns the new summary."""
    recipe = build(Recipe, load_toml(folder / "recipe.toml"), str(folder / "recipe.toml"))
    with machine.started(recipe.runtime, recipe.seed) as runtime:
        journey = Journey(recipe, folder, runtime, console_of(runtime, console))
        with only_writer(folder, runtime.processes):
            run_stage(journey, "evaluate", again=True)
        return runtime.processes.by_first(lambda: finished(journey, "evaluate"))
