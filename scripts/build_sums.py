"""Builds the bundled problems of the reinforcement-learning stage: `python scripts/build_sums.py`.

How many are there now? A little story in which some things come or go, with numbers that nobody can guess,
and a model too small to add them up, but not too small to give them to the calculator. Each pair of numbers
is in one story only, and the stories are dealt out: for conversations that show how the calculator is called
(`conversations/sums.jsonl.zst`), for problems to learn from (`rl/sums.jsonl.zst`), and for problems held out.
The problems have the form of GSM8K, "question" and "answer", so they are read and graded like those.

All choices are drawn from generators seeded by name. Prints the rows for the table of files in SOURCES.md.
"""

import hashlib
import json
import random
from typing import Any, NamedTuple

import zstandard

from pilgrim.data.sources import ASSETS
from story_chat.words import FRIENDS

SHOWN, LEARNED, HELD_OUT = 150, 1500, 200
THINGS = (
    "apples",
    "balls",
    "birds",
    "books",
    "cakes",
    "cars",
    "cookies",
    "eggs",
    "flowers",
    "leaves",
    "shells",
)
MORE = (
    "{who} has {a} {things}. Then {who} finds {b} more. How many {things} does {who} have now?",
    "There are {a} {things} on the table. {who} brings {b} more. How many {things} are there now?",
    "{who} had {a} {things} and got {b} more. How many {things} are there now?",
)
FEWER = (
    "{who} has {a} {things} and gives away {b}. How many {things} does {who} have now?",
    "There are {a} {things} on the table. {who} takes {b} of them. How many {things} are left?",
)


class Sum(NamedTuple):
    """A question, and the expression that answers it."""

    question: str
    expression: str
    result: int


def sums(count: int) -> list[Sum]:
    """So many, no two with the same pair of numbers."""
    dice = random.Random("sums")
    pairs = dice.sample([(a, b) for a in range(12, 90) for b in range(11, a)], count)
    return [_sum(a, b, dice) for a, b in pairs]


def _sum(a: int, b: int, dice: random.Random) -> Sum:
    more = dice.random() < 0.5
    template = dice.choice(MORE if more else FEWER)
    question = template.format(who=dice.choice(FRIENDS), things=dice.choice(THINGS), a=a, b=b)
    return Sum(question, f"{a}+{b}" if more else f"{a}-{b}", a + b if more else a - b)


def conversation(one: Sum) -> dict[str, Any]:
    """The question, a call, and the answer."""
    function = {"name": "calculator", "arguments": json.dumps({"expression": one.expression})}
    call = {"id": "call_1", "type": "function", "function": function}
    messages = [
        {"role": "user", "content": one.question},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": str(one.result)},
        {"role": "assistant", "content": f"{one.result}."},
    ]
    return {"messages": messages, "source": "pilgrim", "kind": "sums"}


def problem(one: Sum) -> dict[str, Any]:
    """As GSM8K has it."""
    return {"question": one.question, "answer": f"{one.expression} = {one.result}\n#### {one.result}"}


def main() -> None:
    found = sums(SHOWN + LEARNED + HELD_OUT)
    write("conversations/sums.jsonl.zst", [conversation(one) for one in found[:SHOWN]])
    write("rl/sums.jsonl.zst", [problem(one) for one in found[SHOWN:-HELD_OUT]])
    write("rl/sums_heldout.jsonl.zst", [problem(one) for one in found[-HELD_OUT:]])


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Pack the rows, and print the file's row of SOURCES.md."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    packed = zstandard.ZstdCompressor(level=22).compress(text)
    (ASSETS / name).parent.mkdir(parents=True, exist_ok=True)
    (ASSETS / name).write_bytes(packed)
    digest = hashlib.sha256(packed).hexdigest()
    print(f"| `{name}` | {len(rows):,} | {len(packed):,} | {len(text):,} | `{digest}` |")


if __name__ == "__main__":
    main()
