"""Builds pilgrim/assets/preferences from the bundled conversations: `python scripts/build_preferences.py`.

Each pair has a prompt of a bundled conversation and its reply, which is the chosen one. The rejected one is
what a weak model says instead, made by rule:

    name     asked for its name, it gives another, or talks of something else
    answer   it answers what somebody else has asked
    topic    it tells another story than the one that was asked for
    cut      it stops in the middle of a sentence
    loop     it says the same sentence again and again

Pairs to learn from are made of the training conversations, those to measure with of the held-out ones. A
rejected reply has the source of the chosen one, so the row keeps that source's licence. All choices are
drawn from a generator seeded by name: the same input and version of zstd give the same bytes. The script
prints the files' rows of SOURCES.md.
"""

import argparse
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from pilgrim.core.files import read_jsonl_zst
from pilgrim.data.sources import ASSETS
from story_chat.words import FRIENDS

NAME = "Pip"
COUNTS = {"train": 120, "heldout": 36}  # pairs of each kind
MOST_BYTES = 1400  # prompt twice and both replies: well inside a row of 512 tokens
SMALL_TALK = ("identity", "manners", "limits", "feelings")
TOPICS = ("tell.topic", "tell.who", "tell.name", "tell.words")  # requests that say what of
STORIES = ("tell", "continue", "next", "go_on")
KINDS = ("name", "answer", "topic", "cut", "loop")

Row = dict[str, Any]


def rejected_reply(kind: str, row: Row, others: list[Row], rng: random.Random) -> str | None:
    """What is said instead of the reply of `row`; None if the conversation does not serve that kind."""
    reply, of = str(row["messages"][-1]["content"]), str(row["kind"])
    group = of.partition(".")[0]
    if kind == "name" and of in ("identity.name", "identity.name_right", "identity.not_name"):
        if rng.random() < 0.5:
            return re.sub(rf"\b{NAME}\b", rng.choice(FRIENDS), reply)
        return said_elsewhere(others, rng, lambda r: small_talk(r) and NAME not in last(r))
    if kind == "answer" and small_talk(row) and NAME not in reply:
        return said_elsewhere(others, rng, lambda r: small_talk(r) and r["kind"] != of)
    if kind == "topic" and of in TOPICS:
        wanted = words(str(row["messages"][-2]["content"])) & words(reply)
        if not wanted:
            return None
        return said_elsewhere(
            others,
            rng,
            lambda r: r["kind"] in TOPICS and r["source"] == row["source"] and not wanted & words(last(r)),
        )
    sentences = re.split(r"(?<=[.!?]) ", reply)
    if group not in STORIES or len(sentences) < 4:
        return None
    if kind == "cut":
        spoken = reply.split(" ")
        kept = " ".join(spoken[: round(rng.uniform(0.2, 0.7) * len(spoken))]).rstrip()
        return kept if kept[-1:].isalpha() else None
    if kind == "loop":
        at = rng.randint(1, len(sentences) - 2)
        again = sentences[at].split("\n")[-1]
        return " ".join([*sentences[:at], *[again] * rng.randint(3, 6)])
    return None


def said_elsewhere(others: list[Row], rng: random.Random, fits: Callable[[Row], bool]) -> str | None:
    """The last reply of another conversation that fits; a few are tried."""
    tried = (rng.choice(others) for _ in range(200))
    return next((last(row) for row in tried if fits(row)), None)


def last(row: Row) -> str:
    return str(row["messages"][-1]["content"])


def small_talk(row: Row) -> bool:
    return str(row["kind"]).partition(".")[0] in SMALL_TALK and len(row["messages"]) == 2


def words(text: str) -> set[str]:
    """The words of a text that say what it is about: the longer ones."""
    return {word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 3}


def pairs(name: str) -> Iterator[Row]:
    """The pairs of one file, kind by kind."""
    rows = [row for _, row in read_jsonl_zst(ASSETS / "conversations" / f"{name}.jsonl.zst")]
    rows = [row for row in rows if row["source"] in ("pilgrim", "tinystories")]
    for kind in KINDS:
        rng, found = random.Random(f"preferences/{name}/{kind}"), 0
        for row in sorted(rows, key=lambda row: digest(f"{kind}{json.dumps(row)}".encode())):
            rejected = rejected_reply(kind, row, rows, rng)
            if rejected is None or rejected == last(row) or found == COUNTS[name]:
                continue
            prompt = row["messages"][:-1]
            asked = sum(len(message["content"].encode()) for message in prompt)
            if 2 * asked + len((last(row) + rejected).encode()) > MOST_BYTES:
                continue
            found += 1
            about = {"source": row["source"], "kind": kind}
            yield {"prompt": prompt, "chosen": last(row), "rejected": rejected, **about}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """Builds and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ASSETS, help="where to write (default: pilgrim/assets)")
    out = parser.parse_args().out
    for name in COUNTS:
        rows = list(pairs(name))
        random.Random(f"preferences/{name}/order").shuffle(rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        data = zstandard.ZstdCompressor(level=22).compress(text)
        file = out / "preferences" / f"{name}.jsonl.zst"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        place = file.relative_to(out)
        print(f"| `{place}` | {len(rows):,} | {len(data):,} | {len(text):,} | `{digest(data)}` |")


if __name__ == "__main__":
    main()
