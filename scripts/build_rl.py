"""Builds the bundled problems of the reinforcement-learning stage: `python scripts/build_rl.py`.

Counting: how often a letter occurs in a word, for a hundred short words that the bundled conversations know
(`story_chat/words.txt`). So small a model can't copy a word that it has never written, so the words are the
same everywhere; what is held out are letters of them. The conversations that show how the calculator counts
are about the letters that are practised.

Sentences: say one sentence about a thing. Forty of the things are held out.

All choices are drawn from generators seeded by name. Prints the rows for the table of files in SOURCES.md.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from typing import Any

import zstandard

from pilgrim.data.questions import count_letter
from pilgrim.data.sources import ASSETS
from story_chat.words import ANIMALS, PEOPLE, THINGS

COUNTED = 100  # words
SHORTEST, LONGEST = 3, 7  # letters of them
THINGS_HELD_OUT = 40
ASK = (
    "Say one sentence about a {}.",
    "Tell me one sentence about a {}.",
    "Use the word {} in one sentence.",
    "One sentence about a {}, please.",
    "Write a sentence with the word {} in it.",
)


def main() -> None:
    practised, held_out = letters()
    write("rl/counting.jsonl.zst", [{"word": w, "letter": x} for w, x in practised])
    write("rl/counting_heldout.jsonl.zst", [{"word": w, "letter": x} for w, x in held_out])
    write("conversations/counting.jsonl.zst", [shown(w, x) for w, x in practised])
    things = sorted(THINGS | ANIMALS | PEOPLE)
    random.Random("sentences").shuffle(things)
    write("rl/sentences.jsonl.zst", sentences(things[THINGS_HELD_OUT:]))
    write("rl/sentences_heldout.jsonl.zst", sentences(things[:THINGS_HELD_OUT]))


def letters() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(word, letter), to practise and held out: of each word one letter, and two if it has four or more."""
    draw = random.Random("counting")
    known = sorted(w for w in THINGS | ANIMALS | PEOPLE if w.isalpha() and SHORTEST <= len(w) <= LONGEST)
    practised, held_out = list[tuple[str, str]](), list[tuple[str, str]]()
    for word in draw.sample(known, COUNTED):
        its = sorted(set(word))
        draw.shuffle(its)
        out = 2 if len(its) >= 4 else 1
        held_out += [(word, letter) for letter in its[:out]]
        practised += [(word, letter) for letter in its[out:]]
    draw.shuffle(practised)
    return practised, held_out


def shown(word: str, letter: str) -> dict[str, Any]:
    """A conversation in which the calculator counts."""
    count = str(word.count(letter))
    arguments = json.dumps({"expression": f'"{word}".count("{letter}")'})
    call = {"id": "1", "type": "function", "function": {"name": "calculator", "arguments": arguments}}
    messages = [
        {"role": "user", "content": count_letter(letter, word)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": count},
        {"role": "assistant", "content": f"The answer is {count}."},
    ]
    return {"messages": messages, "source": "pilgrim"}


def sentences(words: Sequence[str]) -> list[dict[str, str]]:
    return [{"prompt": ask.format(word), "word": word} for word in words for ask in ASK]


def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Pack the rows, and print the file's row of SOURCES.md."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packed = zstandard.ZstdCompressor(level=22).compress(text)
    (ASSETS / name).parent.mkdir(parents=True, exist_ok=True)
    (ASSETS / name).write_bytes(packed)
    digest = hashlib.sha256(packed).hexdigest()
    print(f"| `{name}` | {len(rows):,} | {len(packed):,} | {len(text):,} | `{digest}` |")


if __name__ == "__main__":
    main()
