"""`pilgrim eval`: measure a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from pilgrim.cli.base import RUNS, Bits, CacheBits, app, examples, find_run, guarded
from pilgrim.core.errors import PilgrimError


@app.command(
    "eval",
    epilog=examples(
        "Examples",
        ("pilgrim eval pocket && pilgrim report pocket", "measure again, and show it"),
        ("pilgrim eval pocket --suite core --items 32", "a quick look at CORE's tasks"),
        ("pilgrim eval pocket --suite chat", "what does the chatbot know, compute, obey?"),
        ("pilgrim eval pocket --suite evals/mine.toml", "questions of your own"),
        ("pilgrim eval pocket --stages --items 32", "what did each stage change?"),
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
    stages: Annotated[
        bool,
        typer.Option(
            "--stages",
            help="Ask the last model of every trained stage, and say what each stage changed.",
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
            help="Look for the items in the training text, and score those that are not in it apart."
        ),
    ] = True,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Bits per byte of this .txt, .md, .jsonl or .jsonl.zst file instead; can be repeated.",
        ),
    ] = None,
    weights: Annotated[
        Bits,
        typer.Option(help="With --text: what weights of fewer bits cost."),
    ] = "full",
    cache: Annotated[
        CacheBits,
        typer.Option(help="With --text: what keys and values in 8 bits cost."),
    ] = "full",
) -> None:
    """Measure a trained model: bits per byte, behaviour in a chat, and questions with known answers.

    behaviour: bits per byte on text it never saw; does it end its replies, does it repeat itself, does it
    know its name? `pilgrim run` does this as its last stage.

    core: the tasks of CORE, from reading to reasoning, mostly multiple choice, with the newest model.

    chat: knowledge, arithmetic with a calculator, programs that are run in a sandbox, instructions, spelling,
    asked as a user would ask.

    Every accuracy has its standard error. The results are in RUN/evaluate/; with --hf, whose suites are core
    and chat, in runs/hf-NAME/evaluate/.

    --stages: the same of every trained stage, with the differences from one to the next, in
    RUN/evaluate/stages.json.

    --text: bits per byte of files of yours, by file and source, which can be compared between tokenizers.
    """
    folder = _measured(run, hf, context)
    if stages:
        from pilgrim.stages.by_stage import SUITES, evaluate_stages

        if hf is not None or harness is not None or text or compare is not None or fetch:
            raise PilgrimError(
                "--stages is about the stages of one run, and goes with --suite, --items and --data; "
                "leave the other options out, or call twice"
            )
        if suite not in ("all", *SUITES):
            raise PilgrimError(
                f"--suite {suite} can't be asked of every stage; try {', '.join(SUITES)} or all"
            )
        if data is not None and suite not in ("core", "chat"):
            raise PilgrimError(f"--data {data} needs to know whose tasks they are; add --suite core or chat")
        evaluate_stages(folder, SUITES if suite == "all" else [suite], data, items)
        return
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

    for option, bits_kept in (("--weights", weights), ("--cache", cache)):
        if bits_kept != "full" and not text:
            raise PilgrimError(
                f"{option} goes with --text, which tells what the rounding costs; name a file to measure on"
            )
    if text:
        if hf is not None:
            raise PilgrimError("--text needs a run; with --hf there are the suites core and chat")
        if suite != "all" or items is not None or data is not None or fetch or other is not None:
            raise PilgrimError(
                "--text measures bits per byte and nothing else; leave the other options out, or call twice"
            )
        bits.evaluate_text(folder, text, weights=weights, cache=cache)
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
            chat.evaluate_chat(
                folder, data if "core" not in asked else None, items, contamination=contamination
            )
        else:
            chat.evaluate_own(folder, Path(one.option), items, contamination=contamination)
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
