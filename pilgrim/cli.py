"""The commands: names, help, and nothing else. Each one imports what does its work only when it is called.

    pilgrim run recipes/pocket.toml      ->  pilgrim.stages.journey.run_journey(...)
    pilgrim chat pocket                  ->  pilgrim.serve.terminal.chat(...)

That keeps `pilgrim --help` instant: importing torch alone takes seconds. Every command is wrapped in
`guarded`, which turns what a person can mend (a PilgrimError) into one sentence and exit code 2, and Ctrl-C
into exit code 130 (SIGTERM: 143) with the command that goes on. Anything else is a bug of ours and keeps its
traceback.

`pilgrim run` is two things. Called by a person it is a supervisor, which starts the processes that do the
work and starts them again when they fall (pilgrim/launch). They call the same command, and find in their
environment that they are the ones to work.
"""

import difflib
import functools
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, ParamSpec

import typer

from pilgrim.core.errors import PilgrimError, ToldElsewhere
from pilgrim.launch.verdict import code_of
from pilgrim.launch.worker import is_rank, speaks, working

if TYPE_CHECKING:
    from pilgrim.core.runtime import Fact

P = ParamSpec("P")

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


def main() -> None:
    """What the console script and `python -m pilgrim` start."""
    app()


def guarded(after_stop: str = "start it again with") -> Callable[[Callable[P, None]], Callable[P, None]]:
    """A decorator that tells errors and Ctrl-C as said above; `after_stop` leads in the same command."""

    def decorate(command: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(command)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                command(*args, **kwargs)
            except PilgrimError as error:
                if not isinstance(error, ToldElsewhere):
                    _complain(str(error))
                raise typer.Exit(code_of(error)) from None
            except KeyboardInterrupt as stop:
                if speaks():
                    _complain(f"stopped; {after_stop}: {_this_command()}")
                raise typer.Exit(code_of(stop)) from None

        return wrapped

    return decorate


def _complain(sentence: str) -> None:
    """One red sentence on stderr. It may quote file names and settings, so no markup is read from it."""
    from rich.console import Console

    Console(stderr=True).print(
        sentence, style="red", markup=False, highlight=False, emoji=False, soft_wrap=True
    )


def _this_command() -> str:
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
        trained = [(_last_trained(folder), folder) for folder in _runs() if _last_trained(folder) > 0]
        if not trained:
            raise PilgrimError(
                f"{RUNS}/: no trained model is here; train one: pilgrim run recipes/pocket.toml"
            )
        return max(trained)[1]
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


# Commands -----------------------------------------------------------------------------------------


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
    code = supervise(job, tries, say=_complain)
    if code > 128:
        _complain(f"stopped; the last checkpoint is kept; go on with: {_this_command()}")
    if code:
        raise typer.Exit(code)


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
        terminal.chat(folder, sampling=sampling, system=system)
        return
    for prompt, reply in terminal.exchanges(folder, say, sampling=sampling, system=system):
        typer.echo(f"> {prompt}\n{reply}\n")


@app.command(
    "eval",
    epilog=examples(
        "Examples",
        ("pilgrim eval pocket && pilgrim report pocket", "measure again, and show it"),
        ("pilgrim eval pocket --suite core --items 32", "a quick look at CORE's tasks"),
        ("pilgrim eval pocket --suite chat", "what does the chatbot know, compute, obey?"),
        ("pilgrim eval pocket --suite evals/mine.toml", "questions of your own"),
        ("pilgrim eval try2 --suite core --compare pocket", "is it better than pocket, item by item?"),
        ("pilgrim eval --hf Qwen3-0.6B-Base --context 2048", "CORE's tasks with a public model"),
        ("pilgrim eval pocket --harness arc_easy,piqa", "tasks of EleutherAI's harness"),
        ("pilgrim eval pocket --text letters.txt --text wiki.jsonl.zst", "bits per byte of any text"),
    ),
)
@guarded()
def eval_command(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="A run: its name below runs/, such as pocket, or its path. Or give --hf."
        ),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            metavar="SUITE",
            help="behaviour: what `pilgrim run` measures at its end; core: CORE's tasks; chat: the chat "
            "suite; all: these three; or a file or folder of your own questions.",
        ),
    ] = "all",
    items: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of each task this many items; left out: all.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The tasks of core, or of chat. Left out: up to 100 bundled items each, or for core what "
            "the recipe's eval.core names.",
        ),
    ] = None,
    fetch: Annotated[
        bool,
        typer.Option(
            "--fetch", help="Take all of CORE's tasks, and fetch them first if they are not here yet."
        ),
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="A run that was evaluated before: how do the two differ?"),
    ] = None,
    hf: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Instead of a run: a Hugging Face folder of a Qwen3 model."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="With --hf: use no more tokens than this. Left out: all it was made for."
        ),
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(
            metavar="TASKS",
            help="Tasks of EleutherAI's harness instead of a suite, such as arc_easy,piqa; needs "
            "pilgrim[harness], and the network for their data.",
        ),
    ] = None,
    contamination: Annotated[
        bool,
        typer.Option(
            help="Look for CORE's items in the training text, and score those that are not in it apart."
        ),
    ] = True,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Bits per byte of this .txt, .md, .jsonl or .jsonl.zst file instead; can be repeated.",
        ),
    ] = None,
) -> None:
    """Measure a trained model: bits per byte, behaviour in a chat, and questions with known answers.

    behaviour: bits per byte on text it never saw; does it end its replies, does it repeat itself, does it
    know its name? `pilgrim run` does this as its last stage.

    core: the tasks of CORE, from reading to reasoning, mostly multiple choice, with the newest model.

    chat: knowledge, arithmetic with a calculator, programs that are run in a sandbox, instructions, spelling,
    asked as a user would ask.

    Every accuracy has its standard error. The results are in RUN/evaluate/; with --hf, whose suites are core
    and chat, in runs/hf-NAME/evaluate/.

    --text: bits per byte of files of yours, by file and source, which can be compared between tokenizers.
    """
    folder = _measured(run, hf, context)
    if harness is not None:
        from pilgrim.stages.harness import evaluate_with_harness

        if suite != "all" or data is not None or fetch or compare is not None or text:
            raise PilgrimError(
                "--harness has prompts, data and judgement of its own, and goes with --items alone; "
                "leave the other options out, or call twice"
            )

        evaluate_with_harness(folder, hf, harness.split(","), items, context)
        return
    other = _evaluated(compare) if compare is not None else None
    from pilgrim.evals.fetch import fetch_bundle
    from pilgrim.stages import answers, bits, chat, core
    from pilgrim.stages.evaluate import evaluate_run
    from pilgrim.stages.folder import evaluate_folder

    if text:
        if hf is not None:
            raise PilgrimError("--text needs a run; with --hf there are the suites core and chat")
        if suite != "all" or items is not None or data is not None or fetch or other is not None:
            raise PilgrimError(
                "--text measures bits per byte and nothing else; leave the other options out, or call twice"
            )
        bits.evaluate_text(folder, text)
        return
    asked = ["behaviour", "core", "chat"] if suite == "all" else [suite]
    if hf is not None:
        asked = ["core"] if suite == "all" else asked
        if asked[0] not in ("core", "chat"):
            raise PilgrimError(f"--suite {suite} needs a run; with --hf there are core and chat")
    if fetch and "core" not in asked:
        raise PilgrimError(
            f"--fetch is about CORE's tasks, and --suite {suite} has none of them; leave it out"
        )
    if asked == ["behaviour"] and (items is not None or data is not None or other is not None):
        raise PilgrimError(
            "--items, --data and --compare are about questions with known answers; "
            "leave out --suite behaviour"
        )
    if data is not None and asked not in (["core"], ["chat"]):
        raise PilgrimError(
            f"--data {data} needs to know whose tasks they are; add --suite core or --suite chat"
        )
    if fetch and data is not None:
        raise PilgrimError(f"--fetch and --data {data} contradict each other; leave one of them out")
    known = {"core": core.CORE, "chat": chat.CHAT}
    suites = [known.get(name) or chat.own_suite(Path(name)) for name in asked if name != "behaviour"]
    for one in suites:
        if other is not None:
            answers.read_result(other, one)  # if it is missing, that is told before minutes are spent
    if fetch:
        data = fetch_bundle(say=typer.echo)
    if "behaviour" in asked:
        evaluate_run(folder)
    for one in suites:
        if hf is not None:
            evaluate_folder(hf, folder, one, data, items, context)
        elif one is core.CORE:
            core.evaluate_core(folder, data, items, contamination=contamination)
        elif one is chat.CHAT:
            chat.evaluate_chat(folder, data if "core" not in asked else None, items)
        else:
            chat.evaluate_own(folder, Path(one.option), items)
    if other is not None:
        for one in suites:
            answers.compare_runs(folder, other, one)


def _measured(run: str | None, hf: Path | None, context: int | None) -> Path:
    """Where the results go: the run's folder, or one for a Hugging Face folder's model."""
    if run is not None and hf is not None:
        raise PilgrimError(f"{run} and --hf {hf} are two models; leave one of them out")
    if hf is not None:
        return RUNS / f"hf-{hf.resolve().name}"
    if run is None:
        raise PilgrimError("nothing to measure: give a run, such as pocket, or --hf FOLDER")
    if context is not None:
        raise PilgrimError("--context is for --hf; a run has the context that it was trained with")
    return find_run(run)


def _evaluated(name: str) -> Path:
    """What a person compares with: a run, or an earlier `--hf`, whose results are in runs/hf-NAME."""
    folder = RUNS / name
    return folder if name.startswith("hf-") and (folder / "evaluate").is_dir() else find_run(name)


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
        "Examples",
        ("pilgrim export pocket --to hf --out pocket-hf", "for transformers, vLLM and others"),
        ("pilgrim export pocket --to gguf --out pocket.gguf", "for llama.cpp, Ollama and LM Studio"),
    )
)
@guarded()
def export(
    run: RunArgument,
    to: Annotated[
        Literal["hf", "gguf"], typer.Option(help="hf: a Hugging Face folder; gguf: a file for llama.cpp.")
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="PATH", help="The folder or file to write; an earlier export is replaced."),
    ],
    dtype: Annotated[
        Literal["fp32", "bf16", "q8_0"],
        typer.Option(
            help="fp32: to the bit what was trained; bf16: half as large; q8_0, for gguf: a quarter."
        ),
    ] = "fp32",
) -> None:
    """Write a trained model for other programs.

    The model is numerically Qwen3ForCausalLM, so whatever runs Qwen3 runs it; the tokenizer and the chat
    template come along. hf is for transformers, vLLM and MLX; gguf for llama.cpp, Ollama and LM Studio.
    """
    folder = find_run(run)
    if to == "gguf":
        from pilgrim.export import gguf

        typer.echo(f"wrote {gguf.export(folder, out, dtype, say=typer.echo)}")
    else:
        from pilgrim.export import huggingface

        if dtype == "q8_0":
            raise PilgrimError("--dtype q8_0 is a format of gguf; with --to hf, take bf16")
        typer.echo(f"wrote {huggingface.export(folder, out, dtype, say=typer.echo)}")


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
) -> None:
    """Measure how fast a trained model reads and writes: 1, 8 and 64 texts together.

    Beside it transformers' generate, in turns, and the share of the memory's bandwidth that writing
    reaches. The result is in RUN/bench/.
    """
    folder = find_run(run)
    from pilgrim.stages.bench import bench_infer

    bench_infer(folder, prompt=prompt, tokens=tokens, rounds=rounds)


@app.command()
@guarded()
def doctor() -> None:
    """Look at this machine: what will be used, what will be slow, and what to do about it.

    Changes nothing. The same facts are kept with every run, in provenance.json.
    """
    from pilgrim.core.runtime import facts

    _show_facts(facts())


def _show_facts(facts: "Sequence[Fact]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colors = {"good": "green", "slow": "yellow", "bad": "bold red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("what", "found here", "verdict"):
        table.add_column(header, overflow="fold")
    for fact in facts:
        table.add_row(fact.name, Text(fact.value), Text(fact.verdict, style=colors[fact.verdict]))
    console = Console(highlight=False)
    console.print(table)
    value = {fact.name: fact.value for fact in facts}
    console.print(
        f"\nA run computes on {value['device']} in {value['dtype']}, torch.compile {value['compile']}.",
        markup=False,
    )
    for fact in facts:
        if fact.advice:
            console.print(
                Text.assemble((f"{fact.name}: ", colors[fact.verdict]), fact.advice), soft_wrap=True
            )
