"""Builds the bundled problems of the reinforcement-learning stage: `python scripts/build_counting.py`.

How many times does a letter occur in a word? The words are those of the bundled training text that are
written often enough there, without those that the bundled spelling task asks about. They are dealt out: for
conversations that show how the calculator is called (`conversations/counting.jsonl.zst`), for problems to
learn from (`rl/counting.jsonl.zst`), and for problems held out. So no word is in two of the files. The letter
is one of the word's own, as often its most frequent one as any: nearly all answers would be 1 else.

All choices are drawn from generators seeded by name. Prints the rows for the table of files in SOURCES.md.
"""

import hashlib
import json
import random
import re
from collections import Counter
from typing import Any

import zstandard

from pilgrim.core.files import read_jsonl_zst
from pilgrim.data.sources import ASSETS, read_documents

LEAST = 5  # times that a word must stand in the text
SHOWN, LEARNED, HELD_OUT = 300, 2000, 200


def words() -> list[str]:
    """Small-letter words of 4 to 9 letters, in an order by chance."""
    asked = {row["word"] for _, row in read_jsonl_zst(ASSETS / "evals/chat/spelling/test.jsonl.zst")}
    count: Counter[str] = Counter()
    for document in read_documents(["assets:text/train.jsonl.zst"]):
        count.update(re.findall(r"(?<![\w'’-])[a-z]{4,9}(?![\w'’-])", document.text))
    found = sorted(word for word, times in count.items() if times >= LEAST and word not in asked)
    random.Random("counting words").shuffle(found)
    return found


def letter_of(word: str, dice: random.Random) -> str:
    """One that is in the word."""
    most = max(sorted(set(word)), key=word.count)
    return dice.choice([most, dice.choice(word)])


def conversation(word: str, letter: str) -> dict[str, Any]:
    """The question as the evaluation asks it, a call, and the answer."""
    count = str(word.count(letter))
    function = {"name": "calculator", "arguments": json.dumps({"expression": f'"{word}".count("{letter}")'})}
    messages = [
        {"role": "user", "content": f'How many times does the letter "{letter}" occur in the word "{word}"?'},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": count},
        {"role": "assistant", "content": f"{count}."},
    ]
    return {"messages": messages, "source": "pilgrim", "kind": "counting"}


def main() -> None:
    found = words()
    parts = [found[:SHOWN], found[SHOWN : SHOWN + LEARNED], found[SHOWN + LEARNED :][:HELD_OUT]]
    dice = random.Random("counting letters")
    shown, learned, held_out = ([(word, letter_of(word, dice)) for word in part] for part in parts)
    problems = [[{"word": word, "letter": letter} for word, letter in pairs] for pairs in (learned, held_out)]
    write("conversations/counting.jsonl.zst", [conversation(*pair) for pair in shown])
    write("rl/counting.jsonl.zst", problems[0])
    write("rl/counting_heldout.jsonl.zst", problems[1])


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
