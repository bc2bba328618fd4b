"""Builds the bundled problems of the reinforcement-learning stage: `python scripts/build_sentences.py`.

Say one sentence about a thing: a model that has learned to tell stories tells a story. The things are those
that the rules of the bundled conversations know (`story_chat/words.txt`); forty of them are held out.

All choices are drawn from generators seeded by name. Prints the rows for the table of files in SOURCES.md.
"""

import hashlib
import json
import random

import zstandard

from pilgrim.data.sources import ASSETS
from story_chat.words import ANIMALS, PEOPLE, THINGS

HELD_OUT = 40
ASK = (
    "Say one sentence about a {}.",
    "Tell me one sentence about a {}.",
    "Use the word {} in one sentence.",
    "One sentence about a {}, please.",
    "Write a sentence with the word {} in it.",
)


def main() -> None:
    words = sorted(THINGS | ANIMALS | PEOPLE)
    random.Random("sentences").shuffle(words)
    write("rl/sentences.jsonl.zst", words[HELD_OUT:])
    write("rl/sentences_heldout.jsonl.zst", words[:HELD_OUT])


def write(name: str, words: list[str]) -> None:
    """Pack the rows, and print the file's row of SOURCES.md."""
    rows = [{"prompt": ask.format(word), "word": word} for word in words for ask in ASK]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packed = zstandard.ZstdCompressor(level=22).compress(text)
    (ASSETS / name).parent.mkdir(parents=True, exist_ok=True)
    (ASSETS / name).write_bytes(packed)
    digest = hashlib.sha256(packed).hexdigest()
    print(f"| `{name}` | {len(rows):,} | {len(packed):,} | {len(text):,} | `{digest}` |")


if __name__ == "__main__":
    main()
