"""The bundled text: what SOURCES.md says of it is so, and nothing of the evaluation is in the training data.

The rules that made the conversations are tested too: on small stories, where one can see what is true.
"""

import fnmatch
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from pilgrim.core.files import read_jsonl_zst
from pilgrim.data.conversations import Conversation, Prompt, read_conversations, read_prompts
from pilgrim.data.preferences import read_pairs
from pilgrim.data.sources import ASSETS, read_documents
from story_chat.facts import Fact, cast, facts, topics
from story_chat.phrases import normal_form
from story_chat.story import Story, read_story

NAME = "Pip"
MOST_REPLY_BYTES = 600


@cache
def conversations(split: str) -> list[Conversation]:
    return read_conversations([f"assets:conversations/{split}.jsonl.zst"])


@cache
def prompts(name: str) -> list[Prompt]:
    return read_prompts([f"assets:prompts/{name}.jsonl"])


def plain(text: str) -> str:
    """Equal for texts that differ in case, marks and white space only."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def rows(name: str) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl_zst(ASSETS / name)]


@cache
def training_turns() -> frozenset[str]:
    turns = (m for c in conversations("train") for m in c.messages if m.role == "user")
    return frozenset(m.content for m in turns)


# The files


def test_files_are_as_sources_md_says() -> None:
    listed = re.findall(
        r"^\| `(\S+)` \| [\d,]+ \| ([\d,]+) \| [\d,]+ \| `([0-9a-f]{64})` \|$",
        (ASSETS / "SOURCES.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    present = {str(file.relative_to(ASSETS)) for file in ASSETS.rglob("*") if file.is_file()}
    assert {name for name, _, _ in listed} == present - {"SOURCES.md"}
    for name, size, digest in listed:
        data = (ASSETS / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (int(size.replace(",", "")), digest), name


def test_the_files_stay_small() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < 4_000_000


def test_every_source_has_its_licence() -> None:
    table = (ASSETS / "SOURCES.md").read_text(encoding="utf-8").split("## Files")[0]
    documents = read_documents(f"assets:text/{name}.jsonl.zst" for name in ("train", "val", "classics"))
    sources = {document.source for document in documents}
    sources |= {c.source for split in ("train", "heldout") for c in conversations(split)}
    for source in sources:
        known = "gutenberg/…" if source.startswith("gutenberg/") else source
        assert f"| `{known}` |" in table, source


def test_every_evaluation_file_has_its_licence() -> None:
    """The table names each file or its folder, or the beginning with a star."""
    table = (ASSETS / "SOURCES.md").read_text(encoding="utf-8").split("## The evaluation items")[1]
    named = re.findall(r"`([a-z0-9_*]+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    for file in (ASSETS / "evals").rglob("*.jsonl.zst"):
        names = (file.name.removesuffix(".jsonl.zst"), file.parent.name)
        assert any(fnmatch.fnmatch(name, pattern) for name in names for pattern in named), file


# The conversations


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_conversation_ends_with_a_reply_of_fitting_size(split: str) -> None:
    for conversation in conversations(split):
        assert conversation.messages[-1].role == "assistant"
        for message in conversation.messages:
            assert message.content == message.content.strip()
            assert not re.search(r"[{}]|\[\w+\|", message.content)  # no field or choice was left unfilled
            assert message.role != "assistant" or len(message.content.encode()) <= MOST_REPLY_BYTES


def test_there_are_enough_conversations_and_none_twice() -> None:
    counts = Counter(conversation.messages for conversation in conversations("train"))
    assert 6_000 <= len(counts) <= 10_000
    assert counts.most_common(1)[0][1] == 1


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_whoever_asks_for_the_name_hears_it(split: str) -> None:
    asked = [row for row in rows(f"conversations/{split}.jsonl.zst") if row["kind"].startswith("identity.n")]
    assert asked
    for row in asked:
        assert re.search(rf"\b{NAME}\b", row["messages"][-1]["content"]), row


# The preference pairs


@pytest.mark.parametrize(("split", "least"), [("train", 500), ("heldout", 100)])
def test_there_are_pairs_of_every_kind(split: str, least: int) -> None:
    pairs = read_pairs([f"assets:preferences/{split}.jsonl.zst"])
    assert len(pairs) == len(set(pairs)) >= least
    replies = {c.messages[-1].content for c in conversations(split)}
    assert all(pair.chosen[0].content in replies for pair in pairs)
    assert all(pair.source in ("pilgrim", "tinystories") for pair in pairs)
    kinds = Counter(row["kind"] for row in rows(f"preferences/{split}.jsonl.zst"))
    assert kinds.keys() == {"name", "answer", "topic", "cut", "loop"} and min(kinds.values()) >= 10
    for row in rows(f"preferences/{split}.jsonl.zst"):
        if row["kind"] == "name":
            assert NAME in row["chosen"] and NAME not in row["rejected"]


def test_no_held_out_pair_is_trained_on() -> None:
    trained, held_out = (
        {pair.prompt for pair in read_pairs([f"assets:preferences/{split}.jsonl.zst"])}
        for split in ("train", "heldout")
    )
    assert not trained & held_out


# What is kept apart


def test_no_validation_text_is_trained_on() -> None:
    trained = "\n".join(plain(document.text) for document in read_documents(["assets:text/train.jsonl.zst"]))
    for document in read_documents(["assets:text/val.jsonl.zst"]):
        assert plain(document.text)[-300:] not in trained, document.text


def test_no_validation_story_is_told_in_training() -> None:
    told = "\n".join(plain(m.content) for c in conversations("train") for m in c.messages)
    for document in read_documents(["assets:text/val.jsonl.zst"]):
        assert plain(document.text)[-120:] not in told, document.text


def test_no_item_of_an_evaluation_is_trained_on() -> None:
    """No thirteen words in a row of any item (the length at which GPT-3's authors looked for copies)."""
    trained = [document.text for document in read_documents(["assets:text/train.jsonl.zst"])]
    trained += [document.text for document in read_documents(["assets:text/classics.jsonl.zst"])]
    trained += [m.content for c in conversations("train") for m in c.messages]
    asked = {
        run: f"{file.name}, line {line}"
        for file in (ASSETS / "evals").rglob("*.jsonl.zst")
        for line, row in read_jsonl_zst(file)
        for run in thirteen_words(" ".join(str(value) for value in row.values()))
    }
    assert len(asked) > 10_000
    for text in trained:
        found = next((run for run in thirteen_words(text) if run in asked), None)
        assert found is None, (asked[found], found)


def thirteen_words(text: str) -> Iterator[str]:
    words = plain(text).split()
    return (" ".join(words[at : at + 13]) for at in range(len(words) - 12))


def test_heldout_conversations_begin_in_other_words() -> None:
    known = {plain(turn) for turn in training_turns()}
    for conversation in conversations("heldout"):
        first = next(message for message in conversation.messages if message.role == "user")
        assert plain(first.content) not in known, first.content


def test_there_are_200_unseen_prompts() -> None:
    known = {plain(turn) for turn in training_turns()}
    assert len({prompt.messages for prompt in prompts("heldout")}) == 200
    for prompt in prompts("heldout"):
        assert plain(prompt.messages[-1].content) not in known, prompt


def test_there_are_50_unseen_ways_to_ask_for_the_name() -> None:
    known = {normal_form(turn) for turn in training_turns()}
    forms = [normal_form(prompt.messages[-1].content) for prompt in prompts("name")]
    assert len(set(forms)) == 50
    assert not known & set(forms)
    assert all(prompt.expect == NAME and len(prompt.messages) == 1 for prompt in prompts("name"))


# The rules


DOG = read_story(
    "Once upon a time, there was a little dog named Max. Max loved to run in the park. One day, Max found a "
    'red ball. "What a nice ball!" said Max. A girl named Sue came to the park. The ball was her ball. Max '
    "gave the ball to Sue. Max was happy. Max learned that it is good to share.",
    "tinystories",
)


def found(story: Story) -> dict[str, list[Fact]]:
    by_kind: dict[str, list[Fact]] = {}
    for fact in facts(story, random.Random(0)):
        by_kind.setdefault(fact.kind, []).append(fact)
    return by_kind


def test_facts_are_those_of_the_story() -> None:
    by_kind = found(DOG)
    fields = {kind: [fact.fields for fact in of_kind] for kind, of_kind in by_kind.items()}
    assert fields["name_of"] == [{"noun": "dog", "name": "Max"}, {"noun": "girl", "name": "Sue"}]
    assert fields["who"] == [{"who": "a little dog named Max and a girl named Sue"}]
    assert fields["where"] == [{"place": "in the park"}]
    assert fields["color"] == [{"noun": "ball", "color": "red"}]
    assert fields["animal"] == [{"name": "Max", "noun": "a dog"}]
    assert fields["lesson"] == [{"text": "Max learned that it is good to share."}]
    assert {"name": "Max", "verb": "found", "base": "find", "what": "a red ball"} in fields["saw"]
    assert {"name": "Max", "verb": "loved", "base": "love", "what": "run in the park"} in fields["loved"]
    assert topics(DOG)[0] == "ball"


@pytest.mark.parametrize(
    ("addition", "silent"),
    [
        (" Another dog came.", "name_of"),  # of two dogs, which one's name?
        (" Then they went to the beach.", "where"),
        (" A blue ball rolled by.", "color"),
        (" His friends came. His friends sang.", "who"),  # someone whom the rules cannot name
        (" Mom came. Mom sang.", "who"),  # whose mom?
    ],
)
def test_rules_stay_silent_in_doubt(addition: str, silent: str) -> None:
    before, after = found(DOG), found(Story(DOG.text + addition, DOG.source))
    about_dog = [fact for fact in after.get(silent, []) if fact.fields.get("noun") != "girl"]
    assert before[silent]
    assert not about_dog


def test_a_name_in_doubt_makes_the_cast_unsure() -> None:
    assert cast(Story(DOG.text + " Then Max met Ann and a cat. The cat liked Ann.", DOG.source)) is None


def test_no_sentence_ends_inside_a_speech() -> None:
    story = Story(
        'Tim said, "Stop! Look at me." Then he ran. "Wait!" Sue cried. They laughed.', "tinystories"
    )
    assert story.sentences == (
        'Tim said, "Stop! Look at me."',
        "Then he ran.",
        '"Wait!" Sue cried.',
        "They laughed.",
    )


def test_a_story_is_shortened_only_at_an_ending() -> None:
    body = "One day a frog sat on a stone. " * 6
    story = Story(f"{body}They were happy. The sun went down.", "tinystories")
    assert story.shortened(1000) == story.text
    assert story.shortened(story.size - 1) == f"{body}They were happy."
    assert story.shortened(len(body) // 2) is None


def test_the_prompts_are_lines_of_json() -> None:
    for name in ("heldout", "name"):
        for line in (ASSETS / f"prompts/{name}.jsonl").read_text(encoding="utf-8").splitlines():
            assert {"messages", "kind"} <= json.loads(line).keys()
