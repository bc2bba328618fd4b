"""`pilgrim eval --hf FOLDER`: the suites with a model that others made, or that we exported.

core works with every folder of the native tier (infer/huggingface.py). chat needs our chat format and our
calculator's marks, so it works with our own exports. behaviour needs a run's own text and prompts, and is not
for folders. What is printed and written is as for a run, in OUT/evaluate/.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pilgrim.core import runtime as machine
from pilgrim.core.console import Console
from pilgrim.core.errors import DataError
from pilgrim.evals import chat_tasks, core_tasks
from pilgrim.evals.chat import evaluate as evaluate_chat
from pilgrim.evals.chat import read_chat_exams
from pilgrim.evals.core import evaluate, read_exams
from pilgrim.infer.huggingface import load_folder
from pilgrim.model.count import parameters
from pilgrim.stages.answers import Suite, ask, table
from pilgrim.stages.chat import CHAT
from pilgrim.stages.core import CORE
from pilgrim.text.tokenizer import Tokenizer

Evaluate = Callable[[Callable[[int], None]], dict[str, Any]]  # from who counts finished items to the result


def evaluate_folder(
    folder: Path,
    out: Path,
    suite: Suite,
    data: Path | None = None,
    limit: int | None = None,
    context: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Ask the folder's model `suite` (CORE or CHAT), and write its file below `out`; returns what is in it.

    `data`: a folder of the suite's tasks; None: the bundled ones. `limit`: of each task this many items.
    `context`: use no more tokens than this. Raises DataError for items that can't be asked, and
    CheckpointError or DataError for what is no native model.
    """
    console = console or Console()
    core_exams = read_exams(data or core_tasks.BUNDLED, limit) if suite is CORE else []
    chat_exams, missing = read_chat_exams(data or chat_tasks.BUNDLED, limit) if suite is CHAT else ([], {})
    runtime = machine.start(machine.RuntimeSettings(), seed=1)
    engine, tokenizer = load_folder(folder, runtime, context)
    begin = tokenizer.decode([tokenizer.eot_id])
    console.say(
        f"{folder}: {parameters(engine.config).total:,} parameters, a context of "
        f"{engine.config.context:,} tokens; every text begins with {begin}"
    )
    source = {"stage": folder.resolve().name, "folder": str(folder.resolve()), "begin": begin}
    source["data"] = "bundled" if data is None else str(data)

    def asked(items: int, evaluate: Evaluate) -> dict[str, Any]:
        return ask(engine, suite, items, source, out, console, evaluate)

    if suite is CORE:
        items = sum(exam.asked for exam in core_exams)
        result = asked(items, lambda done: evaluate(engine, tokenizer, core_exams, done))
        missing = dict.fromkeys(result["missing"], "no data for it is there: docs/evals.md says where it is")
    elif isinstance(tokenizer, Tokenizer):
        ours, items = tokenizer, sum(len(exam.items) for exam in chat_exams)
        result = asked(
            items, lambda done: evaluate_chat(engine, ours, chat_exams, done) | {"missing": missing}
        )
    else:
        raise DataError(
            f"{folder}: the chat suite speaks pilgrim's chat format, whose marks this tokenizer has not; "
            "ask it --suite core"
        )
    for line in table(result):
        console.say(line)
    for name, why in missing.items():
        console.say(f"left out: {name}, as {why}")
    return result
