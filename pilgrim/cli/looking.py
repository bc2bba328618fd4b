"""Looking closer: `pilgrim report`, `pilgrim profile`, `pilgrim bench`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from pilgrim.cli.base import RUNS, Bits, CacheBits, RunArgument, app, examples, find_run, guarded
from pilgrim.core.errors import PilgrimError


@app.command(epilog=examples("Example", ("pilgrim report pocket", "writes runs/pocket/report.html")))
@guarded()
def report(run: RunArgument) -> None:
    """Write RUN/report.html: curves, samples growing up, evaluation, recipe, times.

    One file that needs no network, for any browser. It can be written while the run is still at work.
    """
    folder = find_run(run)
    from pilgrim.lab.report import write_report

    typer.echo(f"wrote {write_report(folder)}")


@app.command(
    epilog=examples(
        "Examples",
        (
            "pilgrim profile recipes/pocket.toml",
            "where a step of pretraining spends its time, and three fixes",
        ),
        ("pilgrim profile recipes/pocket.toml runtime.compile=off --out eager", "the same without compiling"),
        ("pilgrim profile --diff pocket eager", "what that costs, with the noise"),
        ("pilgrim profile recipes/pocket.toml --stage generate", "where writing spends its time"),
        ("pilgrim profile --explain roofline", "what a word means"),
    )
)
@guarded()
def profile(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE", help="The recipe, such as recipes/pocket.toml.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings that replace the recipe's.", show_default=False),
    ] = None,
    stage: Annotated[
        str, typer.Option(metavar="STAGE", help="pretrain, midtrain, sft, or generate: writing replies.")
    ] = "pretrain",
    steps: Annotated[int, typer.Option(help="How many steps are traced.")] = 5,
    warmup: Annotated[int, typer.Option(help="How many steps are made before, compilation included.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder to write. Left out: runs/NAME/profile/STAGE."),
    ] = None,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Compare two profiles (runs, or folders of profiles), and end."),
    ] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="TERM", help="Explain a word of a profile, such as MFU, and end.")
    ] = None,
) -> None:
    """Look closely at some steps: where the time goes, and what to do about it.

    The run is not disturbed: nothing but the profile's folder is written, and tokenizer and shards if they
    are missing. The folder holds the page index.html, its data profile.json, and the raw trace, which opens
    in ui.perfetto.dev.
    """
    if explain is not None:
        from pilgrim.lab.profile.terms import explain as explanation

        typer.echo(explanation(explain))
        return
    if diff is not None:
        from pilgrim.lab.profile.diff import compare_folders

        a, b = (_profile_folder(path, stage) for path in diff)
        typer.echo(compare_folders(a, b))
        return
    if recipe is None:
        raise PilgrimError(
            "pilgrim profile needs a recipe, --diff A B, or --explain TERM; try recipes/pocket.toml"
        )
    # What torch's own tracing says about itself on stderr; it is read when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from pilgrim.core.processes import here
    from pilgrim.lab.profile.page import summary, write_page
    from pilgrim.stages.profile import profile_stage

    findings, folder = profile_stage(
        recipe, overrides or [], stage=stage, steps=steps, warmup=warmup, out=out, runs=RUNS
    )
    if not here().first:  # of several processes, one tells
        return
    typer.echo(summary(findings))
    typer.echo("\n".join(["", *findings.notes, f"wrote {write_page(findings, folder)}"]))


def _profile_folder(path: Path, stage: str) -> Path:
    """The folder of a profile: itself, or that of a run's stage."""
    of_run = RUNS / path / "profile" / stage
    return of_run if of_run.is_dir() and not path.exists() else path


@app.command(
    epilog=examples(
        "Example",
        ("pilgrim bench infer pocket", "how fast it reads and writes here, beside transformers"),
    )
)
@guarded()
def bench(
    what: Annotated[Literal["infer"], typer.Argument(metavar="infer", help="infer: reading and writing.")],
    run: RunArgument,
    prompt: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt. Left out: half the model's context.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that are written.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 5,
    weights: Annotated[
        Bits,
        typer.Option(help="Our weights in 8 or 4 bits; transformers keeps them whole."),
    ] = "full",
    cache: Annotated[
        CacheBits,
        typer.Option(help="Our keys and values in 8 bits."),
    ] = "full",
) -> None:
    """Measure how fast a trained model reads and writes: 1, 8 and 64 texts together.

    Beside it transformers' generate, in turns, and the share of the memory's bandwidth that writing
    reaches. The result is in RUN/bench/.
    """
    folder = find_run(run)
    from pilgrim.stages.bench import bench_infer

    bench_infer(folder, prompt=prompt, tokens=tokens, rounds=rounds, weights=weights, cache=cache)
