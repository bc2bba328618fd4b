"""Builds pilgrim/assets/evals: `python scripts/build_evals.py --core DIR --chat DIR`.

The first DIR is a folder of CORE's tasks, the second one of the chat suite's (docs/evals.md); either may be
left out. Of each file a slice is taken: the items that come first when all are shuffled as the evaluation
does it (pilgrim/evals/items.py). They are written in such an order that shuffling the slice brings them into
that order again. So a slice needs no code of its own, and asks what nanochat asks of CORE with
`--max-per-task`: the same items, and, as examples are drawn within the slice, the same examples. ARC is in
both suites, and bundled with CORE. The spelling task is made here, from a list of words. Prints the rows for
the table of files in SOURCES.md.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from pilgrim.core.files import read_jsonl_zst
from pilgrim.data.sources import ASSETS
from pilgrim.evals.chat_tasks import BUNDLED as CHAT
from pilgrim.evals.chat_tasks import TASKS as CHAT_TASKS
from pilgrim.evals.chat_tasks import find_chat_file
from pilgrim.evals.core_tasks import BUNDLED, TASKS, find_file
from pilgrim.evals.items import SHUFFLE_SEED, read_items

# Not bundled: the clues of jeopardy are those of a television show, whose licence is unclear.
LEFT_OUT = ("jeopardy",)

CHAT_ITEMS = {"mmlu": 100, "gsm8k": 100, "humaneval": 40, "ifeval": 100}
SPELLING_ITEMS = 256  # as many as nanochat's


def in_shuffled_order(count: int) -> list[int]:
    """The places of `count` items after shuffling."""
    order = list(range(count))
    random.Random(SHUFFLE_SEED).shuffle(order)
    return order


def slice_of(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The first `most` of the shuffled rows, in an order that shuffling turns into that one."""
    first = [rows[place] for place in in_shuffled_order(len(rows))[:most]]
    slot = in_shuffled_order(len(first))
    return [row for _, row in sorted(zip(slot, first, strict=True), key=lambda pair: pair[0])]


def core(source: Path, most: int) -> None:
    """The slice of CORE."""
    for name, task in {task.file: task for task in TASKS if task.name not in LEFT_OUT}.items():
        if (file := find_file(source, task)) is None:
            print(f"{task.name}: not in {source}")
            continue
        read_items(file, task.kind)  # refuses what can't be scored
        write(BUNDLED / f"{name}.jsonl.zst", slice_of([row for _, row in read_jsonl_zst(file)], most))


def chat(source: Path) -> None:
    """The slice of the chat suite, and the spelling task."""
    for name, most in CHAT_ITEMS.items():
        task = next(task for task in CHAT_TASKS if task.name == name)
        if (file := find_chat_file(source, task)) is None:
            print(f"{task.name}: not in {source}")
            continue
        rows = slice_of([row for _, row in read_jsonl_zst(file)], most)
        for line, row in enumerate(rows, start=1):
            task.read(row, line, f"{file}: item {line} of the slice")  # refuses what can't be asked
        write(CHAT / f"{task.file}.jsonl.zst", rows)
    write(CHAT / "spelling" / "test.jsonl.zst", list(spelling(source / "words" / "words_alpha.txt.zst")))


def spelling(words_file: Path) -> Iterator[dict[str, str]]:
    """Words of 4 to 10 letters: of every two, one is to be spelled, and in one a letter is to be counted.

    The letter is one of the word's own, as often the most frequent one as any: half the answers would be 1
    else. The words are different ones.
    """
    text = zstandard.ZstdDecompressor().stream_reader(words_file.read_bytes()).read().decode()
    words = sorted({word for word in text.split() if 4 <= len(word) <= 10 and word.isascii()})
    dice = random.Random(SHUFFLE_SEED)
    for number, word in enumerate(dice.sample(words, SPELLING_ITEMS)):
        if number % 2:
            yield {"word": word}
        else:
            most = max(sorted(set(word)), key=word.count)
            yield {"word": word, "letter": dice.choice([most, dice.choice(word)])}


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """Pack the rows, and print the file's row of SOURCES.md."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    packed = zstandard.ZstdCompressor(level=22).compress(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(packed)
    digest = hashlib.sha256(packed).hexdigest()
    print(f"| `{out.relative_to(ASSETS)}` | {len(rows)} | {len(packed):,} | {len(text):,} | `{digest}` |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--core", type=Path, help="the folder of CORE's tasks")
    parser.add_argument("--chat", type=Path, help="the folder of the chat suite's tasks")
    parser.add_argument("--items", type=int, default=100, help="of each task of CORE")
    arguments = parser.parse_args()
    if arguments.core:
        core(arguments.core, arguments.items)
    if arguments.chat:
        chat(arguments.chat)


if __name__ == "__main__":
    main()
