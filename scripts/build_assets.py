"""Builds everything under pilgrim/assets: `python scripts/build_assets.py --source DIR`.

DIR holds `text/small/{train,val,classics}.jsonl.zst` (rows with `text` and `source`) and `chat/*.jsonl.zst`
(rows with `messages` and `source`). The text is copied, without the training documents that are validation
documents too. The conversations are made from the stories of the training split by rule, from phrases written
by hand (`story_chat/phrases.txt`), and from a few real ones; the held-out conversations and prompts come from
the stories of the validation split and from phrases that training never sees. All choices are drawn from
generators seeded by name, so the same input and the same version of zstd give the same bytes.
"""

import argparse
import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain as chained
from itertools import cycle
from pathlib import Path
from typing import Any

import zstandard

from story_chat import chatting, real, sources, telling
from story_chat.dialogue import MOST_REPLY_BYTES, Dialogue
from story_chat.phrases import Speaker, fill, group, name_phrasings
from story_chat.story import Story, read_story
from story_chat.words import FRIENDS

ASSETS = Path(__file__).resolve().parent.parent / "pilgrim" / "assets"
CHAT_FILES = ("chatterbot_en", "topical_chat")
STORY_SOURCES = ("tinystories", "african-storybook", "pratham-storyweaver")
TOLD_TWICE_BYTES = 4000  # longer documents are several stories glued together

# How many conversations of each kind are tried for training; some stories do not serve a kind and drop out.
TRAIN_PLAN = {
    "tell": 1500, "story_hour": 1100, "continue": 1500, "parts": 520, "next": 450, "question": 850,
    "small_talk": 1700, "name": 2400, "identity": 500, "chain": 550,
}  # fmt: skip
HELDOUT_PLAN = {
    "tell": 50, "story_hour": 40, "continue": 50, "parts": 25, "next": 20, "question": 40,
    "small_talk": 60, "name": 12, "identity": 12, "chain": 20,
}  # fmt: skip
# The sections of small talk that these kinds go through, again and again.
SMALL_TALK = {
    "small_talk": [*group("manners"), *group("limits"), *group("feelings")],
    "name": [*["identity.name"] * 8, "identity.not_name", "identity.name_right"],
    "identity": [s for s in group("identity") if s not in ("identity.name", "identity.not_name")],
}
SYSTEM_PROMPT_SHARE = 0.12

# How many of the 200 held-out prompts are of each group.
PROMPT_PLAN = {
    "tell": 68, "go_on": 12, "continue": 36, "next": 12, "question": 24, "identity": 10, "limits": 12,
    "feelings": 12, "manners": 14,
}  # fmt: skip


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a compressed JSONL file."""
    with path.open("rb") as file:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"):
            yield json.loads(line)


def compressed(rows: Iterable[dict[str, Any]]) -> bytes:
    """Rows as compressed JSONL. One thread: the bytes depend on nothing but the rows (and zstd's version)."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return zstandard.ZstdCompressor(level=22).compress(text.encode())


def apart(train: list[dict[str, Any]], val: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The training rows without those that hold more than half of a validation document, word by word.

    A document may come from two collections, with other quotation marks or another title: what is compared is
    every run of twelve words.
    """
    held_out = [set(runs(row["text"])) for row in val]
    where = {run: number for number, found in enumerate(held_out) for run in found}
    kept = []
    for row in train:
        shared = Counter(where[run] for run in set(runs(row["text"])) if run in where)
        if not any(count > 0.5 * len(held_out[number]) for number, count in shared.items()):
            kept.append(row)
    return kept


def runs(text: str, length: int = 12) -> Iterator[str]:
    """Every run of `length` words, in plain form."""
    heard = plain_form(text).split()
    return (" ".join(heard[at : at + length]) for at in range(len(heard) - length + 1))


def stories(rows: Iterable[dict[str, Any]]) -> list[Story]:
    """Those stories of a corpus that are fit to be told."""
    read = [read_story(row["text"], row["source"]) for row in rows if row["source"] in STORY_SOURCES]
    return [story for story in read if story.size <= TOLD_TWICE_BYTES and story.is_fit_to_tell()]


def shuffled(items: list[Story], name: str) -> Iterator[Story]:
    """The stories for ever, each once before any comes again, in an order of their own for each use."""
    order = sorted(items, key=lambda story: hashlib.sha256(f"{name}/{story.text}".encode()).digest())
    return cycle(order)


def speak(kind: str, count: int, told: list[Story], held_out: bool) -> Iterator[Dialogue]:
    """Up to `count` dialogues of one kind of the plan."""
    speaker = Speaker(random.Random(f"{kind}/{held_out}"), held_out)
    short = [story for story in told if story.shortened(MOST_REPLY_BYTES)]
    queue = shuffled(short if kind in ("tell", "story_hour") else told, kind)
    sections = cycle(SMALL_TALK.get(kind, []))
    makers: dict[str, Callable[[], Dialogue | None]] = {
        "tell": lambda: telling.tell(next(queue), speaker),
        "continue": lambda: telling.continue_story(next(queue), speaker),
        "parts": lambda: telling.tell_in_parts(next(queue), speaker),
        "next": lambda: telling.next_step(next(queue), speaker),
        "question": lambda: telling.talk_about(next(queue), speaker),
        "story_hour": lambda: chatting.story_hour(queue, speaker),
        "chain": lambda: chatting.chain(speaker),
    }
    make = makers.get(kind, lambda: chatting.small_talk(next(sections), speaker))
    for _ in range(count):
        dialogue = make()
        if dialogue is not None and dialogue.fits():
            yield dialogue


def converse(plan: dict[str, int], told: list[Story], held_out: bool) -> list[Dialogue]:
    """All dialogues of a plan, some with a system prompt, none twice."""
    rng = random.Random(f"system/{held_out}")
    found: dict[str, Dialogue] = {}
    for dialogue in chained.from_iterable(speak(kind, count, told, held_out) for kind, count in plan.items()):
        found.setdefault(json.dumps(dialogue.messages), dialogue)
    for dialogue in found.values():
        if rng.random() < SYSTEM_PROMPT_SHARE:
            dialogue.system(Speaker(rng, held_out).ask("system"))
    return list(found.values())


def plain_form(text: str) -> str:
    """Two turns with the same plain form count as the same: case, marks and spacing aside."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def group_of(kind: str) -> str:
    """The group of held-out prompts to which a kind of dialogue belongs: `tell.topic` to `tell`."""
    return kind.partition(".")[0]


def as_prompt(dialogue: Dialogue, rng: random.Random) -> list[dict[str, str]]:
    """The dialogue up to one of the person's turns, chosen at random, which then waits for its answer."""
    asked = [i for i, message in enumerate(dialogue.messages) if message["role"] == "user"]
    last = asked[-1] if dialogue.kind == "go_on" else rng.choice(asked)
    return dialogue.messages[: last + 1]


def heldout_prompts(told: list[Story], trained_turns: set[str]) -> list[dict[str, Any]]:
    """The 200 prompts: unseen stories, unseen phrases, no last turn that training knows, none twice."""
    rng = random.Random("prompts")
    supply = {
        "tell": 400,
        "parts": 60,
        "continue": 100,
        "next": 60,
        "question": 120,
        "identity": 150,
        "small_talk": 1500,
    }
    chosen: dict[str, list[dict[str, Any]]] = {kind: [] for kind in PROMPT_PLAN}
    seen: set[str] = set()
    for dialogue in converse(supply, told, held_out=True):
        kind = group_of(dialogue.kind)
        messages = as_prompt(dialogue, rng)
        whole = plain_form(" ".join(message["content"] for message in messages))
        unseen = plain_form(messages[-1]["content"]) not in trained_turns and whole not in seen
        if kind in chosen and unseen and len(chosen[kind]) < PROMPT_PLAN[kind]:
            seen.add(whole)
            chosen[kind].append({"messages": messages, "kind": kind})
    short = {kind: len(found) for kind, found in chosen.items() if len(found) < PROMPT_PLAN[kind]}
    assert not short, f"too few held-out prompts: {short}"
    return [row for rows in chosen.values() for row in rows]


def name_prompts() -> list[dict[str, Any]]:
    """The 50 unseen ways to ask for the name, and what a right answer holds."""
    rng = random.Random("name prompts")
    turns = [fill(ask, {"friend": rng.choice(FRIENDS)}) for ask in name_phrasings()[True]]
    return [
        {"messages": [{"role": "user", "content": turn}], "kind": "name", "expect": chatting.NAME}
        for turn in turns
    ]


def check(
    train: list[Dialogue], heldout: list[Dialogue], prompts: list[dict[str, Any]], val: list[Story]
) -> None:
    """What must hold before anything is written."""
    trained_turns = {plain_form(turn) for d in train for turn in d.user_turns}
    trained_replies = {plain_form(reply) for d in train for reply in d.replies}
    for row in prompts:
        assert plain_form(row["messages"][-1]["content"]) not in trained_turns, row
    for story in val:
        assert plain_form(story.text) not in trained_replies, story.text
    for dialogue in [*train, *heldout]:
        assert dialogue.fits() and all(
            m["content"].strip() == m["content"] != "" for m in dialogue.messages
        ), dialogue
        if dialogue.kind in chatting.TELLS_NAME:
            assert all(chatting.NAME in reply for reply in dialogue.replies[:1]), dialogue


def main() -> None:
    """Builds, checks, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="folder with text/small and chat")
    parser.add_argument("--out", type=Path, default=ASSETS, help="where to write (default: pilgrim/assets)")
    args = parser.parse_args()
    source, out = args.source, args.out

    val_rows = list(read_rows(source / "text/small/val.jsonl.zst"))
    train_rows = apart(list(read_rows(source / "text/small/train.jsonl.zst")), val_rows)
    val_stories = stories(val_rows)
    known = real.vocabulary(row["text"] for row in train_rows)
    train = converse(TRAIN_PLAN, stories(train_rows), held_out=False)
    for name in CHAT_FILES:
        train += real.conversations(read_rows(source / f"chat/{name}.jsonl.zst"), known)
    random.Random("order").shuffle(train)
    trained_turns = {plain_form(turn) for dialogue in train for turn in dialogue.user_turns}
    heldout = [
        dialogue
        for dialogue in converse(HELDOUT_PLAN, val_stories, held_out=True)
        if plain_form(dialogue.user_turns[0]) not in trained_turns
    ]
    prompts, names = heldout_prompts(val_stories, trained_turns), name_prompts()
    check(train, heldout, prompts + names, val_stories)

    files = {"text/train.jsonl.zst": compressed(train_rows)}
    for name in ("val", "classics"):
        files[f"text/{name}.jsonl.zst"] = (source / f"text/small/{name}.jsonl.zst").read_bytes()
    files["conversations/train.jsonl.zst"] = compressed(dialogue.row() for dialogue in train)
    files["conversations/heldout.jsonl.zst"] = compressed(dialogue.row() for dialogue in heldout)
    for name, rows in (("heldout", prompts), ("name", names)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        files[f"prompts/{name}.jsonl"] = text.encode()
    kinds = Counter(group_of(dialogue.kind) for dialogue in train)
    files["SOURCES.md"] = sources.document(files, kinds).encode()
    for name, data in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
        print(f"{len(data):>9,}  {name}")
    size = sum(len(m["content"].encode()) for d in train for m in d.messages)
    print(
        f"{sum(map(len, files.values())):>9,}  in all; {len(train):,} conversations, {size:,} bytes of them"
    )


if __name__ == "__main__":
    main()
