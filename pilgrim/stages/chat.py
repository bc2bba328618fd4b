"""`pilgrim eval --suite chat`, and `--suite PATH` for questions of one's own: what does the chatbot know?

Neither is a stage of the walk. The result with every item's answer and reply goes to RUN/evaluate/chat.json,
or own-NAME.json, where NAME is that of the file or folder.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pilgrim.core.console import Console
from pilgrim.evals.chat import ChatExam, evaluate, read_chat_exams, read_own_exams, summary
from pilgrim.evals.chat_tasks import BUNDLED
from pilgrim.evals.clean import with_clean
from pilgrim.evals.contamination import Overlap
from pilgrim.evals.items import Item
from pilgrim.evals.tasks.own import files_of, name_of
from pilgrim.infer.engine import Engine
from pilgrim.stages.answers import Suite, ask_run, opened_run, table
from pilgrim.stages.contamination import overlap_lines, overlaps_of
from pilgrim.stages.journey import Journey, only_writer
from pilgrim.text.tokenizer import Tokenizer

CHAT = Suite("chat", "chat.json", "chat", "what the chatbot knows, computes, programs and obeys")

ONE_LETTER = 0.9  # of all picks


def own_suite(path: Path) -> Suite:
    """The suite that a file or folder of questions is. Raises DataError if it is none."""
    files_of(path)
    name = name_of(path.resolve())
    return Suite(name, f"own-{name}.json", str(path), "questions of your own")


def evaluate_chat(
    folder: Path,
    data: Path | None = None,
    limit: int | None = None,
    console: Console | None = None,
    contamination: bool = True,
) -> dict[str, Any]:
    """Ask a run's newest model the chat suite, and write `evaluate/chat.json`; returns what is in it.

    `data` is a folder of the tasks; None: what is bundled. `limit`: of each task this many items; None: all.
    `contamination`: look for the items in the run's training text, and score the others by themselves.
    Raises DataError for items that can't be asked, CheckpointError without a trained model.
    """
    exams, missing = read_chat_exams(data or BUNDLED, limit)
    source = "bundled" if data is None else str(data)
    with opened_run(folder, console) as journey:
        result = _asked(journey, CHAT, exams, source, contamination, {"missing": missing})
        for line in [*table(result), *one_letter(result), *overlap_lines(result)]:
            journey.console.say(line)
        for name, why in missing.items():
            journey.console.say(f"left out: {name}, as {why}")
    return result


def _asked(
    journey: Journey,
    suite: Suite,
    exams: Sequence[ChatExam],
    source: str,
    contamination: bool,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    processes = journey.runtime.processes
    with only_writer(journey.folder, processes):
        overlaps = processes.by_first(lambda: _overlaps(journey, exams)) if contamination else None

    def ask(engine: Engine, tokenizer: Tokenizer, done: Callable[[int], None]) -> dict[str, Any]:
        found = evaluate(engine, tokenizer, exams, done, processes)
        return (found if overlaps is None else with_clean(found, overlaps, summary)) | dict(more)

    return ask_run(journey, suite, sum(len(exam.items) for exam in exams), source, ask)


def _overlaps(journey: Journey, exams: Sequence[ChatExam]) -> dict[str, Overlap]:
    """By the SHA-256 of the exams' files. Two exams may ask a file's items, in two ways."""
    files: dict[str, dict[int, Item]] = defaultdict(dict)
    for exam in exams:
        files[exam.sha256] |= {item.line: item.to_look_for() for item in exam.items}
    # What is found is remembered by these names: with fewer items, or in other words, it would be wrong.
    names = {digest: f"{digest} {_hash(items)}" for digest, items in files.items()}
    found = overlaps_of(journey, {names[digest]: [*items.values()] for digest, items in files.items()})
    return {digest: found[name] for digest, name in names.items()}


def _hash(items: Mapping[int, Item]) -> str:
    return sha256(repr(sorted(items.items())).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def one_letter(result: Mapping[str, Any]) -> list[str]:
    """Tells of a model that picks one letter whatever it is asked: its accuracy is that letter's share."""
    told = []
    for name, task in result["tasks"].items():
        letter, times = Counter(task["answers"]).most_common(1)[0]
        if task["way"] == "likelihood" and task["n"] >= 20 and times >= ONE_LETTER * task["n"]:
            told.append(f"{name}: {times:,} of {task['n']:,} picks are {letter}, whatever was asked")
    return told


def evaluate_own(
    folder: Path,
    path: Path,
    limit: int | None = None,
    console: Console | None = None,
    contamination: bool = True,
) -> dict[str, Any]:
    """The same with the user's questions, a file or a folder of them; writes `evaluate/own-NAME.json`."""
    exams = read_own_exams(path, limit)
    with opened_run(folder, console) as journey:
        result = _asked(journey, own_suite(path), exams, str(path), contamination, {})
        for line in [*table(result), *overlap_lines(result)]:
            journey.console.say(line)
    return result
