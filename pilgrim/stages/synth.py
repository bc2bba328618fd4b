"""`pilgrim synth`: conversations made by a model, to train another one on, or the same.

No stage of the walk: it reads a recipe of its own (synth/settings.py), and leaves a folder.

    conversations.jsonl    what was kept: rows for data.conversations of a recipe
    rejected.jsonl         what was not, each row with the reason
    answers.jsonl          all that was ever answered; whoever deletes it pays again (synth/journal.py)
    summary.json           counts, tokens, cost
    recipe.toml            what it was made with
    weights.json           where a run writes: which weights
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pilgrim.core import runtime as machine
from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.config import apply_overrides, build, dump_toml, load_toml
from pilgrim.core.console import Console, Progress
from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import read_json, write_atomic, write_json_atomic
from pilgrim.infer.load import load_engine, load_model, load_tokenizer, newest_stage
from pilgrim.stages.journey import only_writer
from pilgrim.stages.recipe import Recipe
from pilgrim.stages.teaching import fingerprint
from pilgrim.synth.answers import Writer
from pilgrim.synth.asking import Asking
from pilgrim.synth.endpoint import Endpoint
from pilgrim.synth.journal import Journal
from pilgrim.synth.own_run import OwnRun
from pilgrim.synth.prompts import Prompts
from pilgrim.synth.purse import Purse
from pilgrim.synth.rows import Rows
from pilgrim.synth.settings import EndpointSettings, RunSettings, SynthRecipe
from pilgrim.synth.work import Work

WEIGHTS = "weights.json"  # in the folder: who has written

Consent = Callable[[str], bool]  # a question that a person answers


def synthesize(
    file: Path, overrides: list[str], consent: Consent, console: Console | None = None
) -> dict[str, Any]:
    """Make what the recipe wants, or go on with it; returns what stands in summary.json.

    `consent` is asked before the first text leaves this machine. Raises PilgrimError in one sentence when it
    can't begin, or has to end before all is there; what was answered is kept.
    """
    console = console or Console()
    recipe = build(SynthRecipe, apply_overrides(load_toml(file), overrides), str(file))
    prompts, folder = Prompts(recipe), Path(recipe.out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(folder)
    with only_writer(folder), writers_of(recipe) as writers:
        write_atomic(folder / "recipe.toml", dump_toml(recipe))
        journal = Journal(folder / "answers.jsonl")
        if isinstance(writer := writers["writer"], OwnRun):
            _tell_of_other_weights(folder / WEIGHTS, writer, journal, console)
        return asyncio.run(_made(recipe, prompts, writers, journal, folder, consent, console))


def _refuse_foreign(folder: Path) -> None:
    """Files of ours would take the place of what stands there by the same names: of a run, or anybody's."""
    recipe = folder / "recipe.toml"
    if recipe.exists() and "out" in load_toml(recipe):
        return
    for name in ("recipe.toml", "conversations.jsonl", "rejected.jsonl", "answers.jsonl", "summary.json"):
        if (folder / name).exists():
            raise PilgrimError(
                f"out = {folder}: the {name} there was not made by `pilgrim synth`, and would be "
                "overwritten; name another folder"
            )


async def _made(
    recipe: SynthRecipe,
    prompts: Prompts,
    writers: Mapping[str, Writer],
    journal: Journal,
    folder: Path,
    consent: Consent,
    console: Console,
) -> dict[str, Any]:
    prices = {who: writer.price for who, writer in writers.items()}
    purse = Purse(recipe.limits, prices, journal)
    asking, rows = Asking(writers, journal, purse), Rows(folder)
    total, unit = (recipe.wanted, "conversations") if recipe.wanted else (len(prompts), "questions")
    console.stage("synth", f"{total:,} {unit} for {folder}")
    work = Work(recipe, prompts, asking, rows)
    try:
        await work.remembered()
        if len(journal):
            console.say(f"{len(journal):,} answers are there from before: {work.kept:,} conversations")
        if not work.done:
            _agreed(recipe, consent, console)
            with console.progress(total, unit, work.so_far) as progress:
                await work.new(_teller(progress, work, purse, total))
    finally:
        for writer in writers.values():
            await writer.close()
        result = _summary(work, asking, purse, journal)
        if not rows.held:
            write_json_atomic(folder / "summary.json", result)
    for line in _told(result, folder):
        console.say(line)
    return result


def _teller(progress: Progress, work: Work, purse: Purse, total: int) -> Callable[[], None]:
    """Moves the bar, and says what it costs: so far, and what is left at this start's price of one."""
    begun, spent = work.so_far, purse.cost
    told = begun

    def tell() -> None:
        nonlocal told
        now = work.so_far
        cost_left = (purse.cost - spent) / max(1, now - begun) * (total - now)
        money = {"cost": purse.cost, "cost_left": cost_left} if purse.cost else {}
        progress.advance(now - told, kept=work.kept, rejected=work.reasons.total(), **money)
        told = now

    return tell


@contextmanager
def writers_of(recipe: SynthRecipe) -> Iterator[dict[str, Writer]]:
    """Who writes and who judges. Raises PilgrimError if one of them can't be had."""
    writers: dict[str, Writer] = {}
    if recipe.judge is not None and recipe.judge.endpoint is not None:
        writers["judge"] = Endpoint(recipe.judge.endpoint, "judge.endpoint")
    if recipe.endpoint is not None:
        writers["writer"] = Endpoint(recipe.endpoint, "endpoint")
        yield _with_judge(recipe, writers)
    else:
        assert recipe.run is not None
        with _own_run(recipe.run) as writer:
            writers["writer"] = writer
            yield _with_judge(recipe, writers)


def _with_judge(recipe: SynthRecipe, writers: dict[str, Writer]) -> dict[str, Writer]:
    """Who writes judges, too, where nobody else is named."""
    if recipe.judge is not None:
        writers.setdefault("judge", writers["writer"])
    return writers


@contextmanager
def _own_run(settings: RunSettings) -> Iterator[OwnRun]:
    folder = Path(settings.path).expanduser()
    if not (folder / "recipe.toml").exists():
        raise PilgrimError(f"run.path = {settings.path}: no run is there; give the folder of one, runs/NAME")
    trained = build(Recipe, load_toml(folder / "recipe.toml"), str(folder / "recipe.toml"))
    with machine.started(trained.runtime, trained.seed) as runtime:
        stage = newest_stage(folder)
        steps = CheckpointStore(folder / stage / "checkpoints").steps()
        tokenizer = load_tokenizer(folder)
        engine = load_engine(folder / stage, tokenizer, runtime, settings.rows)
        name = f"{folder.resolve().name}, {stage}, step {max(steps)}"
        yield OwnRun(settings, engine, tokenizer, name, fingerprint(load_model(folder / stage)))


def _tell_of_other_weights(note: Path, writer: OwnRun, journal: Journal, console: Console) -> None:
    """Remember which weights write, and say if others did before."""
    before = read_json(note)["weights_sha256"] if note.exists() else writer.weights
    if before != writer.weights and len(journal):
        console.say(
            f"run.path = {writer.settings.path}: its weights are others than when this folder was begun "
            f"({note}), so all is asked anew; what the others have said stays in {journal.path}, unused"
        )
    write_json_atomic(note, {"model": writer.name, "weights_sha256": writer.weights})


def _agreed(recipe: SynthRecipe, consent: Consent, console: Console) -> None:
    """Say where texts will go; where they leave this machine, ask first. Raises PilgrimError at a no."""
    judge = recipe.judge.endpoint if recipe.judge else None
    for what, settings in (("prompts", recipe.endpoint), ("finished conversations", judge)):
        if settings is None:
            continue
        if settings.loopback:
            console.say(f"{what} go to {settings.url} ({settings.model}), which is this machine")
            continue
        console.say(_leaving(what, settings))
        if not consent(f"Send them to {settings.host}?"):
            raise PilgrimError(f"nothing was sent to {settings.host}; say yes, or give --yes, to allow it")


def _leaving(what: str, settings: EndpointSettings) -> str:
    """Where texts go that leave this machine."""
    open_ = "" if settings.url.startswith("https:") else ", unencrypted, for all between to read"
    return (
        f"{what}, with all that files of slots and questions put into them, leave this machine: they go to "
        f"{settings.url} ({settings.model}){open_}"
    )


def _summary(work: Work, asking: Asking, purse: Purse, journal: Journal) -> dict[str, Any]:
    return {
        "kept": work.kept,
        "rejected": dict(work.reasons.most_common()),
        "prompts": work.decided,
        "tokens": {who: vars(tokens) for who, tokens in journal.tokens.items()},
        "cost": purse.cost,
        "answers": len(journal),
        "requests_of_the_last_start": asking.requests,
        "untold": journal.untold,
    }


def _told(result: Mapping[str, Any], folder: Path) -> list[str]:
    reasons = ", ".join(f"{count:,} × {reason}" for reason, count in result["rejected"].items()) or "none"
    read, written = (sum(each[name] for each in result["tokens"].values()) for name in ("read", "written"))
    lines = [
        f"{result['kept']:,} conversations are in {folder / 'conversations.jsonl'}",
        f"rejected, with the reason of each in rejected.jsonl: {reasons}",
        f"{read:,} tokens read, {written:,} written, cost {result['cost']:.4f}",
    ]
    if result["untold"]:
        lines.append(
            f"{result['untold']:,} answers came without a count of tokens, or were lost on the way; they are "
            "counted with the most that they can have cost"
        )
    return lines
