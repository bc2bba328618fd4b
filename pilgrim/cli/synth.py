"""`pilgrim synth`: conversations written by a model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pilgrim.cli.base import app, examples, guarded
from pilgrim.core.errors import PilgrimError


@app.command(
    epilog=examples(
        "Examples",
        ("pilgrim synth tales.toml", "make what the recipe wants; after a stop or a crash: the rest"),
        ("pilgrim synth tales.toml wanted=20", "try it with a few first"),
        (
            "pilgrim synth tales.toml filters.least_chars=80",
            "judge again what was answered; asks only for more",
        ),
        ("pilgrim synth tales.toml --yes", "from a script: yes, texts may leave this machine"),
    )
)
@guarded()
def synth(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.toml", help="Who writes, what is asked, what is kept.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of it, given anew.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Texts may leave this machine; ask no question.")
    ] = False,
) -> None:
    """Make conversations to train on: asked for, filtered, judged, without copies, with the cost counted.

    The writer is any server that speaks OpenAI's language ([endpoint]: a provider's, vLLM, llama.cpp,
    Ollama, `pilgrim serve`), or a model that was trained here ([run]). It is asked prompts with slots that
    are filled from lists and files, or questions with known answers, of which only right replies are kept.

    It can be killed at any moment, and goes on where it was: no answer is paid for twice. Prompts leave this
    machine only if the recipe names a server elsewhere, and only after a yes.

    The least that a recipe needs:

    ```
    out = "data/tales"
    wanted = 100
    [endpoint]
    url = "http://127.0.0.1:8000/v1"
    model = "pocket"
    [slots.topic]
    values = ["a dog", "the rain", "a lost key"]
    [[prompts]]
    id = "tale"
    turns = ["Tell me a short story about {topic}."]
    ```

    docs/synthetic-data.md has the rest: judges, filters, prices and limits, rejection sampling.
    """
    from pilgrim.stages.synth import synthesize

    def consent(question: str) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise PilgrimError("texts would leave this machine, and nobody is here to be asked; give --yes")
        return typer.confirm(question)

    synthesize(recipe, overrides or [], consent)
