"""The commands: names, help, and nothing else. Each one imports what does its work only when it is called.

    pilgrim run recipes/pocket.toml      ->  cli/run.py   ->  pilgrim.stages.journey.run_journey(...)
    pilgrim chat pocket                  ->  cli/chat.py  ->  pilgrim.serve.terminal.chat(...)

That keeps `pilgrim --help` instant: importing torch alone takes seconds. Every command is wrapped in
`guarded` (base.py), which turns what a person can mend (a PilgrimError) into one sentence and exit code 2,
and Ctrl-C into exit code 130 (SIGTERM: 143) with the command that goes on. Anything else is a bug of ours and
keeps its traceback.
"""

from typing import Annotated

import typer

from pilgrim.cli.base import app as app

# Each adds its commands to the app when it is imported, and --help lists them in this order.
# isort: off
from pilgrim.cli import run as run
from pilgrim.cli import chat as chat
from pilgrim.cli import serve as serve
from pilgrim.cli import evaluate as evaluate
from pilgrim.cli import looking as looking
from pilgrim.cli import synth as synth
from pilgrim.cli import export as export
from pilgrim.cli import doctor as doctor
# isort: on


def main() -> None:
    """What the console script and `python -m pilgrim` start."""
    app()


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"pilgrim {version('pilgrim')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """From raw text to a chatbot of your own, on this machine.

    A recipe (a TOML file) says what to learn from, how big the model is and how long to train.
    `pilgrim run` walks through it, stage by stage: learn a vocabulary (tokenizer), turn text into token ids
    (shards), learn language (pretrain), meet conversations (midtrain), learn to answer (sft), measure
    (evaluate). Everything lands in one folder, runs/NAME, which the other commands read.
    """
