"""`pilgrim serve`: models behind OpenAI's HTTP API."""

from pathlib import Path
from typing import Annotated

import typer

from pilgrim.cli.base import RUNS, Bits, CacheBits, app, examples, find_run, guarded, trained_runs


@app.command(
    epilog=examples(
        "Examples",
        ("pilgrim serve", "every trained run below runs/, for programs on this machine"),
        ("pilgrim serve pocket --port 9000", "one run, at another port"),
        ("PILGRIM_KEY=secret pilgrim serve --host 0.0.0.0 --api-key-env PILGRIM_KEY", "for others, too"),
        (
            "curl http://127.0.0.1:8000/v1/chat/completions --json "
            '\'{"model": "pocket", "messages": [{"role": "user", "content": "Hello!"}]}\'',
            "ask it",
        ),
    )
)
@guarded()
def serve(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN …]", help="Runs: names or folders. Left out: all trained ones."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The environment variable with the API key that clients must send. Left out: none on this "
            "machine; at another address one is made up and shown once.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Replies of a model that are written together.")] = 32,
    queue: Annotated[int, typer.Option(min=0, help="Replies that may wait; then 429 is answered.")] = 256,
    models: Annotated[int, typer.Option(min=1, help="Models that stay in memory.")] = 2,
    weights: Annotated[
        Bits,
        typer.Option(help="Weights of fewer bits: sooner written, a little worse."),
    ] = "full",
    cache: Annotated[
        CacheBits,
        typer.Option(help="Keys and values in 8 bits: half the memory, a little worse."),
    ] = "full",
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Largest request, in MB.")] = 4,
    log_chats: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write down what is asked and answered, as JSON Lines."),
    ] = None,
    chats: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the page keeps its chats, as an SQLite file.")
    ] = RUNS / "chats.sqlite",
    no_chats: Annotated[bool, typer.Option("--no-chats", help="The page keeps no chats.")] = False,
) -> None:
    """Serve trained models: a page to chat with, and OpenAI's API for its client libraries.

    Paths: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics; /openapi.json describes them.
    A model is a run (pocket), its stage (pocket:pretrain), or a checkpoint of that (pocket:pretrain@1200).
    It is loaded when it is first asked for. The page, at /, keeps its own chats, for you to find again; what
    programs ask is written down only if --log-chats says where.
    """
    folders = [find_run(run) for run in runs] if runs else trained_runs()
    from pilgrim.serve.start import start

    start(
        folders,
        host=host,
        port=port,
        api_key_env=api_key_env,
        rows=rows,
        waiting=queue,
        kept=models,
        weights=weights,
        cache=cache,
        max_body_mb=max_body_mb,
        log_chats=log_chats,
        chats=None if no_chats else chats,
        say=typer.echo,
    )
