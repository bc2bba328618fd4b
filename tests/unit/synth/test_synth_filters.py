"""What a conversation must be like, and what counts as a copy."""

import random
from typing import Any

import pytest

from pilgrim.core.config import build
from pilgrim.synth.filters import reason_against
from pilgrim.synth.near import Hashes, Kept, jaccard, triples_of
from pilgrim.synth.reading import conversation_in, score_in
from pilgrim.synth.settings import FilterSettings


def talk(*said: str) -> list[dict[str, Any]]:
    return [
        message
        for text in said
        for message in ({"role": "user", "content": "And?"}, {"role": "assistant", "content": text})
    ]


@pytest.mark.parametrize(
    ("said", "filters", "reason"),
    [
        (("It is so.",), {}, None),
        (("It is so.", ""), {}, "empty"),
        (("It is so",), {}, "no end"),
        (("It is so",), {"ends": False}, None),
        (("“It is so.”",), {}, None),
        (("```\nx = 1\n```",), {}, None),
        (("Yes.",), {"least_chars": 5}, "short"),
        (("Yes.", "It is so, I think."), {"least_chars": 5}, "short"),
        (("It is so, I think.",), {"most_chars": 5}, "long"),
        (("It is so.",), {"least_turns": 2}, "few turns"),
        (("Das geht so: 1, 2, 3 – café.",), {"script": "latin"}, None),
        (("Это так.",), {"script": "LATIN"}, "script"),
        (("It is Это.",), {"script": "LATIN", "script_share": 0.5}, None),
        (("1, 2, 3.",), {"script": "LATIN"}, "script"),
        (("It is so.",), {"required": [r"\bis\b"]}, None),
        (("It is so.",), {"required": [r"\bis\b", "never"]}, "required"),
        (("As an AI, I can't.",), {"forbidden": ["(?i)as an ai"]}, "forbidden"),
        (("a" * 40 + ".",), {"forbidden": [r"(a+)+$"]}, "forbidden"),  # would take for ever
        (("It </tool_call> is.",), {}, "marks"),
    ],
)
def test_reasons(said: tuple[str, ...], filters: dict[str, Any], reason: str | None) -> None:
    found = reason_against(talk(*said), False, build(FilterSettings, filters, "test"))
    assert (found and found.partition(":")[0]) == reason


def test_a_conversation_has_its_turns_in_order() -> None:
    filters = FilterSettings()
    for messages in ([], talk("Yes.")[1:], [*talk("Yes."), {"role": "user", "content": "x"}], [{"role": 3}]):
        assert reason_against(messages, False, filters)
    assert reason_against(talk("Yes."), True, filters) == "cut off: it was longer than max_tokens"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"why": "good", "score": 7}', 7),
        ('Well: ```json\n{"score": 3.5}\n``` I hope so.', 3.5),
        ('{"score": 2} … on second thought {"score": 8}', 8),
        ('{"score": 11}', None),
        ('{"score": true}', None),
        ('{"score": "9"}', None),
        ('{"score": NaN}', None),
        ("9 of 10", None),
        ("{" * 3000, None),
        ('{"rating": 9} {', None),
    ],
)
def test_a_score_is_read(text: str, score: float | None) -> None:
    assert score_in(text) == score


def test_a_conversation_is_read() -> None:
    told = [{"role": "user", "content": "Hi", "name": "x"}]
    plain = [{"role": "user", "content": "Hi"}]
    assert conversation_in(f"Sure! {told}".replace("'", '"')) == plain
    assert conversation_in('{"messages": []} {"messages": [{"role": "user", "content": "Hi"}]}') == plain
    assert conversation_in('[1, 2] {"messages": "no"}') is None


def test_copies_are_found_as_if_each_was_compared_with_each() -> None:
    """The slow twin: the Jaccard index with all that was kept."""
    dice = random.Random(1)
    vocabulary = [f"w{n}" for n in range(300)]
    texts: list[str] = []
    for _ in range(300):
        if texts and dice.random() < 0.6:  # an earlier one, with some words exchanged
            changed = dice.choice(texts).split()
            for _ in range(dice.choice([0, 1, 2, 4, 10])):
                changed[dice.randrange(len(changed))] = dice.choice(vocabulary)
            texts.append(" ".join(changed))
        else:
            texts.append(" ".join(dice.choices(vocabulary, k=60)))
    plain: list[Hashes] = []
    kept, copies = Kept(0.7), 0
    for number, text in enumerate(texts):
        triples = triples_of(text)
        expected = max((jaccard(triples, other) for other in plain), default=0.0)
        found = kept.copy_of(text)
        assert (found is not None) == (expected >= 0.7)
        assert found is None or found[1] == expected
        copies += found is not None
        if found is None:
            kept.add(str(number), text)
            plain.append(triples)
    assert 50 < copies < 250


def test_a_copy_looks_past_capitals_and_white_space() -> None:
    kept = Kept(1.0)
    kept.add("one", "It was a DARK night.")
    assert kept.copy_of("it was a dark\n night .") == ("one", 1.0)
    assert kept.copy_of("It was a dark night!") is None
    kept.add("short", "Yes")
    assert kept.copy_of("yes") == ("short", 1.0) and kept.copy_of("") is None
