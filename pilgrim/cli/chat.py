"""`pilgrim chat`: talk with a trained model in the terminal."""

import secrets
from typing import Annotated

import typer

from pilgrim.cli.base import Bits, CacheBits, app, examples, find_run, guarded


@app.command(
    epilog=examples(
        "Examples",
        ("pilgrim chat", "with the newest model"),
        ("pilgrim chat pocket --temperature 0.9 --top-p 0.95", "livelier"),
        ("pilgrim chat pocket --temperature 0", "always the likeliest token"),
        ('pilgrim chat pocket --say "Hello!" --say "Tell me a story."', "ask, print the replies, and end"),
    )
)
@guarded()
def chat(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="The run: its name or folder. Left out: the one trained last."),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Words before the first turn.")] = None,
    python: Annotated[
        bool, typer.Option("--python", help="The model may run Python programs, in a sandbox (Linux).")
    ] = False,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest token; higher: livelier.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest that reach this probability.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Leave out what is rarer than this share of the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, what was just said gets rarer.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.")] = 256,
    seed: Annotated[
        int | None, typer.Option(help="The same seed, the same replies. Left out: others.")
    ] = None,
    weights: Annotated[
        Bits,
        typer.Option(help="Weights of fewer bits: sooner written, a little worse."),
    ] = "full",
    cache: Annotated[
        CacheBits,
        typer.Option(help="Keys and values in 8 bits: half the memory, a little worse."),
    ] = "full",
    say: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Print the reply to this and end; can be repeated."),
    ] = None,
) -> None:
    """Chat with a trained model in the terminal.

    In the chat, /help lists the commands: /reset forgets the conversation, /retry has the last message
    answered once more, /save writes the conversation to a file, /temperature 0.5 turns that dial.
    """
    folder = find_run(run)
    from pilgrim.core.config import build
    from pilgrim.infer.sampling import Sampling
    from pilgrim.serve import terminal

    dials = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "max_tokens": max_tokens,
        "seed": secrets.randbelow(2**32) if seed is None else seed,
    }
    sampling = build(Sampling, dials, "pilgrim chat")
    if not say:
        terminal.chat(folder, sampling=sampling, system=system, python=python, weights=weights, cache=cache)
        return
    exchanges = terminal.exchanges(
        folder, say, sampling=sampling, system=system, python=python, weights=weights, cache=cache
    )
    for prompt, reply in exchanges:
        typer.echo(f"> {prompt}\n{reply}\n")
