"""Builds pilgrim/assets/evals: `python scripts/build_evals.py --source DIR`.

DIR is a folder of CORE's tasks (docs/evals.md). Of each file a slice is taken: the items that come first when
all are shuffled as the evaluation does it (pilgrim/evals/items.py). They are written in such an order that
shuffling the slice brings them into that order again. So a slice needs no code of its own, and asks what
nanochat asks with `--max-per-task`: the same items, and, as examples are drawn within the slice, the same
examples. Prints the rows for the table of files in SOURCES.md.
"""

import argparse
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import zstandard

from pilgrim.core.files import read_jsonl_zst
from pilgrim.data.sources import ASSETS
from pilgrim.evals.core_tasks import BUNDLED, TASKS, find_file
from pilgrim.evals.items import SHUFFLE_SEED, read_items

# Not bundled: the clues of jeopardy are those of a television show, whose licence is unclear.
LEFT_OUT = ("jeopardy",)


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="the folder of CORE's tasks")
    parser.add_argument("--items", type=int, default=100, help="of each task")
    arguments = parser.parse_args()
    files = {task.file: task for task in TASKS if task.name not in LEFT_OUT}
    for name, task in files.items():
        if (source := find_file(arguments.source, task)) is None:
            print(f"{task.name}: not in {arguments.source}")
            continue
        read_items(source, task.kind)  # refuses what can't be scored
        rows = slice_of([row for _, row in read_jsonl_zst(source)], arguments.items)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        packed = zstandard.ZstdCompressor(level=22).compress(text)
        out = BUNDLED / f"{name}.jsonl.zst"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(packed)
        digest = hashlib.sha256(packed).hexdigest()
        print(f"| `{out.relative_to(ASSETS)}` | {len(rows)} | {len(packed):,} | {len(text):,} | `{digest}` |")


if __name__ == "__main__":
    main()
