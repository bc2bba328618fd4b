"""`pilgrim run`: walk through a recipe.

It is two things. Called by a person it is a supervisor, which starts the processes that do the work and
starts them again when they fall (pilgrim/launch). They call the same command, and find in their environment
that they are the ones to work.
"""

from pathlib import Path
from typing import Annotated

import typer

from pilgrim.cli.base import RUNS, app, complain, examples, guarded, this_command
from pilgrim.launch.worker import is_rank, working


@app.command(
    epilog=examples(
        "Examples",
        ("pilgrim run recipes/pocket.toml", "the whole walk"),
        (
            "pilgrim run recipes/pocket.toml name=try2 model.depth=2 pretrain.steps=60",
            "a smaller, shorter one",
        ),
        ("pilgrim run recipes/pocket.toml --until pretrain", "stop before it learns to chat"),
        ("pilgrim run recipes/pocket.toml --only evaluate", "measure once more"),
        (
            "pilgrim run recipes/chat-d12.toml --dry-run",
            "all of a recipe's stages in a minute, without its data",
        ),
        (
            "pilgrim run runs/pocket/recipe.toml name=again",
            "a run's own recipe, every setting in it, is one too",
        ),
    )
)
@guarded(after_stop="the last checkpoint is kept; go on with")
def run(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="The recipe, such as recipes/pocket.toml.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings that replace the recipe's.", show_default=False),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Walk this stage alone; those before it must be done.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop when this stage is done.")] = None,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="Go on with a half-finished run although it was started with other settings.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Walk it in a minute, made small, with stand-ins for data that isn't here, as NAME-dry-run.",
        ),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes; left out: one for each GPU, or just one."),
    ] = None,
    tries: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Give up after N crashes in a row without a new checkpoint in between."
        ),
    ] = 3,
) -> None:
    """Walk through a recipe: from raw text to a model that chats.

    The stages are tokenizer, shards, pretrain, midtrain, sft and evaluate. Each writes its own folder below
    runs/NAME and is done when DONE.json stands in it.

    Stop it whenever you like (Ctrl-C, or worse): the same command goes on where it was, and ends with the
    same model to the bit. After a crash it starts again by itself.

    Exit codes: 0 done; 1 crashed, and given up; 2 something is for you to mend; 130 stopped by Ctrl-C, or 143
    by SIGTERM, after a step, with a checkpoint. A second Ctrl-C, a second later or more, stops at once.
    """
    if dry_run:
        from pilgrim.core.console import Console
        from pilgrim.stages.rehearsal import rehearse

        recipe, said = rehearse(recipe, overrides or [], RUNS)
        overrides = []
        for sentence in said:
            Console().say(sentence)
    if is_rank():
        from pilgrim.stages.journey import run_journey

        with working():
            run_journey(recipe, overrides or [], only=only, until=until, accept_changes=accept_changes)
        return
    from pilgrim.core.config import apply_overrides, load_toml
    from pilgrim.launch.count import how_many
    from pilgrim.launch.supervisor import Job, supervise

    tree = apply_overrides(load_toml(recipe), overrides or [])
    stages = [("--only", only), ("--until", until)]
    arguments = ["run", str(recipe), *(overrides or [])]
    arguments += [word for option, stage in stages if stage is not None for word in (option, stage)]
    arguments += ["--accept-changes"] if accept_changes else []
    job = Job(arguments, how_many(processes, tree), RUNS / str(tree.get("name")))
    code = supervise(job, tries, say=complain)
    if code > 128:
        complain(f"stopped; the last checkpoint is kept; go on with: {this_command()}")
    if code:
        raise typer.Exit(code)
