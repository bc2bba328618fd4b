"""The chat suite: what a chatbot knows, computes, programs and obeys, as one mean and as each task's share.

    centered = (accuracy - chance) / (1 - chance)      0: guessing      1: everything right
    the mean = that of the members' centered accuracies

The mean is made like nanochat's ChatCORE, of tasks by the same names, but it is not that number: GSM8K is
read more leniently here, HumanEval is asked as a chat, and spelling has other questions. So it is called
"chat mean" and names its members. A slice of the items says so.

The user's own questions (tasks/own.py) are asked by the same code, and their mean names them too.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.core.files import read_jsonl_zst, sha256_file
from pilgrim.core.processes import ALONE, Processes
from pilgrim.evals.answering import Said, choice_rows, reply_to
from pilgrim.evals.behaviour import Share
from pilgrim.evals.chat_items import ChatItem, Verdict
from pilgrim.evals.chat_tasks import BUNDLED, TASKS, ChatTask, find_chat_file
from pilgrim.evals.items import SHUFFLE_SEED
from pilgrim.evals.scoring import Score, pick, score
from pilgrim.evals.statistics import clustered_error, error_of_mean, wilson
from pilgrim.evals.tasks import own
from pilgrim.infer.engine import Engine
from pilgrim.infer.sandbox import refusal
from pilgrim.text.tokenizer import Tokenizer

ITEMS_AT_ONCE = 128
SAMPLES = 3  # of each task's right and of its wrong items that are kept to be read


@dataclass(frozen=True)
class ChatExam:
    """A task and the items that are asked."""

    task: ChatTask
    items: list[ChatItem]
    sha256: str  # of the file


# Reading ------------------------------------------------------------------------------------------


def read_chat_exams(
    folder: Path = BUNDLED, limit: int | None = None
) -> tuple[list[ChatExam], dict[str, str]]:
    """The tasks whose files are in `folder`, of each the first `limit` shuffled items (None: all).

    Second comes which tasks are left out, and why: no file, or programs that can't be run here. Raises
    DataError if nothing is left, or an item is malformed.
    """
    exams, missing = [], {}
    for task in TASKS:
        if (file := find_chat_file(folder, task)) is None:
            missing[task.name] = f"no {task.file}.jsonl in {folder}"
        elif task.sandbox and (why := refusal()) is not None:
            missing[task.name] = why
        else:
            rows = read_jsonl_zst(file)
            items = _read(file, [task.read(row, line, f"{file}, line {line}") for line, row in rows])
            Random(SHUFFLE_SEED).shuffle(items)
            exams.append(ChatExam(task, items[:limit], sha256_file(file)))
    if not any(exam.task.name != "spelling" for exam in exams):
        raise DataError(
            f"{folder} holds no task of the chat suite, such as {TASKS[3].file}.jsonl; see docs/evals.md"
        )
    return exams, missing


def read_own_exams(path: Path, limit: int | None = None) -> list[ChatExam]:
    """The user's questions: each file is a task, in words, and by likelihood too where it has choices."""
    exams: list[ChatExam] = []
    for file in own.files_of(path):
        whole, name, digest = _read(file, own.read_questions(file)), own.name_of(file), sha256_file(file)
        items = whole[:limit]
        if name in (exam.task.name for exam in exams):
            raise DataError(f"{path} has two files of the name {name}; rename one of them")
        task = ChatTask(name, str(file), own.read_question, len(whole), calculator=True, member=True)
        exams.append(ChatExam(replace(task, chance=_guessing(items)), items, digest))
        if chosen := [item for item in items if item.choices]:
            task = replace(task, name=f"{name}_by_likelihood", way="likelihood", member=False)
            task = replace(task, items=sum(bool(item.choices) for item in whole), chance=_guessing(chosen))
            exams.append(ChatExam(task, chosen, digest))
    return exams


def _read(file: Path, items: list[ChatItem]) -> list[ChatItem]:
    """The same items, if there are some and no two have the same id."""
    if not items:
        raise DataError(f"{file} holds no items; fetch or make it again")
    known: dict[str, int] = {}
    for item in items:
        if item.id and item.id in known:
            raise DataError(
                f"{file}, line {item.line}: the id {item.id[:60]!r} is that of line {known[item.id]}, too; "
                "give each its own"
            )
        known[item.id] = item.line
    return items


def _guessing(items: Iterable[ChatItem]) -> float:
    """What a guess gets: one of n where there are choices, nothing elsewhere."""
    return fmean(1 / len(item.choices) if item.choices else 0.0 for item in items)


# Asking -------------------------------------------------------------------------------------------


def evaluate(
    engine: Engine,
    tokenizer: Tokenizer,
    exams: Sequence[ChatExam],
    done: Callable[[int], None] = lambda items: None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Asks everything; the result is plain JSON, with every answer and reply. `done(n)` counts items.

    Of several `processes`, which must all call this, each asks a part, and all have the whole result.
    """
    ask = {"likelihood": _by_likelihood, "words": _in_words}
    tasks = {exam.task.name: ask[exam.task.way](engine, tokenizer, exam, done, processes) for exam in exams}
    return summary(tasks)


def _by_likelihood(
    engine: Engine,
    tokenizer: Tokenizer,
    exam: ChatExam,
    done: Callable[[int], None],
    processes: Processes,
) -> dict[str, Any]:
    """Which of the letters does the model find likeliest?"""
    scores: list[list[Score]] = []
    cut = 0
    for items in _some(exam.items):
        asked = [choice_rows(item.prompt, item.choices, tokenizer, engine.config.context) for item in items]
        scores += processes.collected(score(engine, processes.dealt([rows for rows, _ in asked])))
        cut += sum(was_cut for _, was_cut in asked)
        done(len(items))
    picks = [pick(found) for found in scores]
    answers = [item.choices[option] for item, option in zip(exam.items, picks, strict=True)]
    golds = [item.gold for item in exam.items]
    right = [option == gold for option, gold in zip(picks, golds, strict=True)]
    margins = [
        found[gold].mean - max(s.mean for at, s in enumerate(found) if at != gold)
        for found, gold in zip(scores, golds, strict=True)
    ]
    order = sorted(range(len(right)), key=lambda i: margins[i])  # most wrong first
    return {
        **_result(exam, right, cut),
        "answers": answers,
        "golds": golds,
        "mean_log_probs": [[round(s.mean, 6) for s in found] for found in scores],
        "samples": _samples(exam, right, answers, order),
    }


def _in_words(
    engine: Engine,
    tokenizer: Tokenizer,
    exam: ChatExam,
    done: Callable[[int], None],
    processes: Processes,
) -> dict[str, Any]:
    """What does the model reply, and is that right?"""
    said: list[Said] = []
    verdicts: list[Verdict] = []
    task = exam.task
    for items in _some(exam.items):
        prompts = [item.prompt for item in items]
        replies = reply_to(engine, tokenizer, prompts, task.max_tokens, task.calculator, processes)
        graded = processes.dealt(list(zip(items, replies, strict=True)))
        verdicts += processes.collected([item.grade(reply.text) for item, reply in graded])
        said += replies
        done(len(items))
    right = [verdict.right for verdict in verdicts]
    replies_text = [reply.text for reply in said]
    return {
        **_result(exam, right, sum(reply.cut for reply in said)),
        "max_tokens": task.max_tokens,
        "calculator": task.calculator,
        "cramped": sum(reply.cramped for reply in said),
        **_parts(verdicts),
        "answers": [verdict.answer for verdict in verdicts],
        "notes": [verdict.note for verdict in verdicts],
        "ended": [reply.ended for reply in said],
        "replies": replies_text,
        "samples": _samples(exam, right, replies_text, range(len(right))),
    }


def _some(items: Sequence[ChatItem]) -> Iterable[Sequence[ChatItem]]:
    return (items[first : first + ITEMS_AT_ONCE] for first in range(0, len(items), ITEMS_AT_ONCE))


# Results ------------------------------------------------------------------------------------------


def _result(exam: ChatExam, right: Sequence[bool], cut: int) -> dict[str, Any]:
    """What every task has."""
    task, share = exam.task, Share(sum(right), len(right))
    low, high = share.interval
    return {
        "way": task.way,
        "n": share.n,
        "of": task.items,
        "accuracy": share.share,
        "standard_error": share.standard_error,
        "low": low,
        "high": high,
        "chance": task.chance,
        "centered": (share.share - task.chance) / (1 - task.chance),
        "member": task.member,
        "cut": cut,
        "sha256": exam.sha256,
        "lines": [item.line for item in exam.items],
        "right": list(right),
    }


def _parts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """For items of several parts: by reading, the share of questions and of parts that were done."""
    readings = {}
    for name in verdicts[0].parts:
        parts = [verdict.parts[name] for verdict in verdicts]
        questions = Share(sum(map(all, parts)), len(parts))
        hits, counts = [sum(p) for p in parts], [len(p) for p in parts]
        share, error = sum(hits) / sum(counts), clustered_error(hits, counts)
        # Parts of one question tell less than as many questions: as many as would give this error.
        effective = share * (1 - share) / error**2 if error else len(parts)
        readings[name] = {
            "questions": _numbers(questions.n, questions.share, questions.standard_error, questions.n),
            "instructions": _numbers(sum(counts), share, error, effective),
        }
    return {"readings": readings} if readings else {}


def _numbers(n: int, share: float, error: float, effective: float) -> dict[str, float]:
    low, high = wilson(share, effective)
    return {"n": n, "accuracy": share, "standard_error": error, "low": low, "high": high}


def _samples(
    exam: ChatExam, right: Sequence[bool], replies: Sequence[str], order: Sequence[int]
) -> list[dict[str, Any]]:
    """Some items to read: the first wrong ones in `order`, and the last right ones."""
    worst = [i for i in order if not right[i]][:SAMPLES]
    best = [i for i in reversed(order) if right[i]][:SAMPLES]
    return [
        {
            "line": exam.items[i].line,
            "prompt": exam.items[i].prompt,
            "expected": exam.items[i].expected,
            "reply": replies[i],
            "right": right[i],
        }
        for i in [*worst, *best]
    ]


def summary(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The mean of the members' centered accuracies with its standard error, its name, and the tasks."""
    members = {name: task for name, task in tasks.items() if task["member"]}
    if not members:
        return {"name": "no mean, as none of its members was asked", "members": [], "tasks": tasks}
    centered = {
        name: {
            line: (right - task["chance"]) / (1 - task["chance"])
            for line, right in zip(task["lines"], task["right"], strict=True)
        }
        for name, task in members.items()
    }
    return {
        "name": name_of(members),
        "members": list(members),
        "score": fmean(task["centered"] for task in members.values()),
        "standard_error": error_of_mean(centered, {name: task["sha256"] for name, task in members.items()}),
        "tasks": tasks,
    }


def name_of(members: dict[str, dict[str, Any]]) -> str:
    """The mean by its members, and over how many items."""
    listed = ", ".join(members)
    if all(task["n"] == task["of"] for task in members.values()):
        return f"chat mean over {listed} (all items)"
    most = max(task["n"] for task in members.values())
    return f"chat mean over {listed} (up to {most:,} {'item' if most == 1 else 'items'} each)"
