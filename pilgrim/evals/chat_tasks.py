"""The tasks of the chat suite: where their items are, how they are asked, and what a guess gets.

    task             asked                                       a right reply
    arc_easy, …      by likelihood, and by the model's words     the letter of the right choice
    mmlu             the same                                    the same
    gsm8k            by its words, with the calculator           the right number
    humaneval        by its words                                a program that passes the tests
    spelling         by its words, with the calculator           the right letters, or their number
    ifeval           by its words                                all instructions followed, strictly

Six of these are the members of one mean, as in nanochat's ChatCORE: ARC twice and MMLU by likelihood, GSM8K,
HumanEval, spelling. ifeval and the choices by words stand beside it.

A folder of the data has a file for each, `gsm8k/test.jsonl` or with zstd (`.jsonl.zst`). ARC's two are those
of CORE, so they may also lie in a folder `core` beside it. `items` is how many the whole file has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pilgrim.data.sources import ASSETS
from pilgrim.evals.chat_items import ChatItem
from pilgrim.evals.tasks.arithmetic import read_gsm8k
from pilgrim.evals.tasks.choice import read_arc, read_mmlu
from pilgrim.evals.tasks.instructions import read_ifeval
from pilgrim.evals.tasks.programs import read_humaneval
from pilgrim.evals.tasks.spelling import read_spelling

BUNDLED = ASSETS / "evals" / "chat"
Way = Literal["likelihood", "words"]
Reader = Callable[[Mapping[str, Any], int, str], ChatItem]  # row, line, place for errors


@dataclass(frozen=True)
class ChatTask:
    """One task."""

    name: str
    file: str  # without .jsonl
    read: Reader
    items: int  # in the whole file
    way: Way = "words"
    chance: float = 0.0
    max_tokens: int = 512  # of a reply
    calculator: bool = False
    sandbox: bool = False  # it runs programs
    member: bool = False  # of the mean


ARC_EASY, ARC_CHALLENGE = "world_knowledge/arc_easy", "world_knowledge/arc_challenge"
LETTER_TOKENS = 32  # a letter, and some words around it
ESSAY_TOKENS = 1024  # some instructions ask for 800 words

TASKS = (
    ChatTask("arc_easy", ARC_EASY, read_arc, 2_376, "likelihood", 0.25, member=True),
    ChatTask("arc_challenge", ARC_CHALLENGE, read_arc, 1_172, "likelihood", 0.25, member=True),
    ChatTask("mmlu", "mmlu/test", read_mmlu, 14_042, "likelihood", 0.25, member=True),
    ChatTask("gsm8k", "gsm8k/test", read_gsm8k, 1_319, calculator=True, member=True),
    ChatTask("humaneval", "humaneval/HumanEval", read_humaneval, 164, sandbox=True, member=True),
    ChatTask("spelling", "spelling/test", read_spelling, 256, calculator=True, max_tokens=256, member=True),
    ChatTask("ifeval", "ifeval/input_data", read_ifeval, 541, max_tokens=ESSAY_TOKENS),
    ChatTask("arc_easy_in_words", ARC_EASY, read_arc, 2_376, "words", 0.25, LETTER_TOKENS),
    ChatTask("arc_challenge_in_words", ARC_CHALLENGE, read_arc, 1_172, "words", 0.25, LETTER_TOKENS),
    ChatTask("mmlu_in_words", "mmlu/test", read_mmlu, 14_042, "words", 0.25, LETTER_TOKENS),
)


def find_chat_file(folder: Path, task: ChatTask) -> Path | None:
    """Where the task's items are; None if they are not there. Spelling is ours, and always at hand."""
    starts = [folder, folder / "chat", folder.parent / "core", folder / "core"]
    if task.name == "spelling":
        starts.append(BUNDLED)
    for start in starts:
        for below in (start, start / "eval_data"):
            for ending in (".jsonl", ".jsonl.zst"):
                if (file := below / f"{task.file}{ending}").is_file():
                    return file
    return None
