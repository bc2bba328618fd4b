"""What the commands share: the program itself, how errors are told, and which run a person means."""

import difflib
import functools
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, ParamSpec

import typer

from pilgrim.core.errors import PilgrimError, ToldElsewhere
from pilgrim.launch.verdict import code_of
from pilgrim.launch.worker import speaks

P = ParamSpec("P")

# In how many bits weights, and keys and values, are kept: the names of infer/quantized.py and cache_bits.py,
# which would bring torch along.
Bits = Literal["full", "int8", "int4", "fp8"]
CacheBits = Literal["full", "int8", "fp8"]
RUNS = Path("runs")  # where `pilgrim run` puts run folders: below the folder it is called in


def examples(title: str, *pairs: tuple[str, str]) -> str:
    """An epilog: commands with what they do, in a block that can be copied."""
    lines = "\n".join(f"# {what}\n{command}" for command, what in pairs)
    return f"**{title}**\n\n```\n{lines}\n```\n"


app = typer.Typer(
    name="pilgrim",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "A first walk",
        ("pilgrim doctor", "what this machine is, and what will be slow on it"),
        ("pilgrim run recipes/pocket.toml", "train the small model: minutes on two CPU cores"),
        ("pilgrim chat pocket", "talk to it"),
        ("pilgrim run recipes/pocket.toml name=try2 model.depth=2", "change something"),
        ("pilgrim report try2", "and see what it did, in runs/try2/report.html"),
        ("pilgrim run --help", "every command says more about itself"),
    ),
)


def guarded(after_stop: str = "start it again with") -> Callable[[Callable[P, None]], Callable[P, None]]:
    """A decorator that tells errors and Ctrl-C as __init__.py says; `after_stop` leads in the command."""

    def decorate(command: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(command)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                command(*args, **kwargs)
            except PilgrimError as error:
                if not isinstance(error, ToldElsewhere):
                    complain(str(error))
                raise typer.Exit(code_of(error)) from None
            except KeyboardInterrupt as stop:
                if speaks():
                    complain(f"stopped; {after_stop}: {this_command()}")
                raise typer.Exit(code_of(stop)) from None

        return wrapped

    return decorate


def complain(sentence: str) -> None:
    """One red sentence on stderr. It may quote file names and settings, so no markup is read from it."""
    from rich.console import Console

    Console(stderr=True).print(
        sentence, style="red", markup=False, highlight=False, emoji=False, soft_wrap=True
    )


def this_command() -> str:
    """The command line as it can be typed again, whether or not `pilgrim` is on the PATH."""
    python, here = Path(sys.executable), Path.cwd()
    python = python.relative_to(here) if python.is_relative_to(here) else python
    program = ["pilgrim"] if shutil.which("pilgrim") else [str(python), "-m", "pilgrim"]
    return shlex.join([*program, *sys.argv[1:]])


# Run folders --------------------------------------------------------------------------------------


def find_run(name: str | None) -> Path:
    """The run folder that a person means: runs/`name`, or a path; None: the one that was trained last.

    Raises PilgrimError if there is none.
    """
    if name is None:
        return max((_last_trained(folder), folder) for folder in trained_runs())[1]
    for folder in (RUNS / name, Path(name)):
        if (folder / "recipe.toml").exists():
            return folder
    names = [folder.name for folder in _runs()]
    near = difflib.get_close_matches(Path(name).name, names, 1)
    if near:
        cure = f"did you mean {near[0]}?"
    elif names:
        cure = f"the runs here are {', '.join(names)}"
    else:
        cure = "make one: pilgrim run recipes/pocket.toml"
    raise PilgrimError(
        f"{name} is no run, neither below {RUNS}/ nor as a path to a folder with a recipe.toml; {cure}"
    )


def trained_runs() -> list[Path]:
    """Every run here that has a model. Raises PilgrimError if none has."""
    found = [folder for folder in _runs() if _last_trained(folder) > 0]
    if not found:
        raise PilgrimError(f"{RUNS}/: no trained model is here; train one: pilgrim run recipes/pocket.toml")
    return found


def _runs() -> Iterator[Path]:
    return (file.parent for file in sorted(RUNS.glob("*/recipe.toml")))


def _last_trained(run: Path) -> float:
    """When a stage of the run last saved a checkpoint; 0 if none ever did."""
    return max((file.stat().st_mtime for file in run.glob("*/checkpoints/LATEST")), default=0.0)


RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run: its name below runs/, such as pocket, or the path of its folder."
    ),
]
