"""The behaviour measures, on replies whose shares are known."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilgrim.data.conversations import Prompt
from pilgrim.evals.behaviour import Reply, Share, gives, has_loop, measure
from pilgrim.text.chat import Message


def ask(text: str, kind: str = "tell", expect: str | None = None) -> Prompt:
    return Prompt((Message("user", text),), kind, expect)


def loops_by_definition(ids: Sequence[int]) -> bool:
    return any(ids[i : i + 4] == ids[i + 4 : i + 8] == ids[i + 8 : i + 12] for i in range(len(ids) - 11))


@pytest.mark.parametrize(
    ("ids", "looped"),
    [
        ([], False),
        ([1, 2, 3, 4] * 3, True),
        ([1, 2, 3, 4] * 2 + [1, 2, 3], False),
        ([9, 9] + [1, 2, 3, 4] * 3 + [9], True),
        ([7] * 12, True),
        ([7] * 11, False),
        ([1, 2] * 6, True),  # a 2-gram six times is a 4-gram three times
        ([1, 2, 3, 4, 5] * 5, False),  # the 4-grams of a longer cycle do not follow each other
        ([1, 2, 3, 4, 9] * 3, False),
    ],
)
def test_a_loop_is_four_tokens_three_times_in_a_row(ids: list[int], looped: bool) -> None:
    assert has_loop(ids) == looped


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 2), max_size=5), st.integers(0, 5))
def test_loops_are_found_as_the_definition_says(start: list[int], cycle: list[int], times: int) -> None:
    ids = start + cycle * times
    assert has_loop(ids) == loops_by_definition(ids)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (95, 100, 0.8882, 0.9785)],
)
def test_wilson_intervals(hits: int, n: int, low: float, high: float) -> None:
    assert Share(hits, n).interval == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("I am Pip.", True),
        ("Pip's the name.", True),
        ("I am Pippa.", False),
        ("a pip of an apple", False),
        ("", False),
    ],
)
def test_a_name_is_a_word_of_its_own(text: str, given: bool) -> None:
    assert gives(text, "Pip") == given


REPLIES = {
    "good": Reply([1, 2, 3], "The end.", True),
    "endless": Reply(list(range(8)), "And then", False),
    "just in time": Reply(list(range(7)), "Phew.", True),
    "too late": Reply(list(range(8)), "Well.", True),
    "loop": Reply([1, 2, 3, 4] * 3, "so so so", False),
    "name?": Reply([1], "I am Pip.", True),
    "who?": Reply([1], "I am a dragon.", True),
}


def fixed_replies(conversations: Sequence[Sequence[Message]]) -> list[Reply]:
    return [REPLIES[messages[-1].content] for messages in conversations]


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_shares_are_counted(batch: int) -> None:
    prompts = [ask(text) for text in ("good", "endless", "just in time", "too late", "loop")]
    names = [ask("name?", "name", "Pip"), ask("who?", "name", "Pip")]
    found = measure(fixed_replies, prompts, names, token_limit=8, batch=batch)
    assert (found.ended, found.looped, found.named) == (Share(2, 5), Share(1, 5), Share(1, 2))


def test_a_few_dialogues_of_each_kind_are_kept() -> None:
    longer = Prompt((Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "good")), "question")
    names = [ask("name?", "name", "Pip")] * 3
    found = measure(fixed_replies, [longer, ask("loop"), ask("good")], names, examples_per_kind=2)
    assert [example.kind for example in found.examples] == ["name", "name", "question", "tell", "tell"]
    assert found.examples[2].prompt == "user: Hi\n\nassistant: Ho\n\nuser: good"
    assert found.examples[3].prompt == "loop"
    as_dict = found.to_dict()
    assert json.loads(json.dumps(as_dict)) == as_dict
    assert as_dict["behaviour"]["named"]["share"] == 1.0
    assert set(as_dict["behaviour"]["ended"]) == {"share", "n", "low", "high"}


def test_what_cannot_be_measured_is_refused() -> None:
    name = ask("name?", "name", "Pip")
    with pytest.raises(ValueError, match="nothing to measure"):
        measure(fixed_replies, [], [name])
    with pytest.raises(ValueError, match="expect"):
        measure(fixed_replies, [ask("good")], [ask("name?")])
    with pytest.raises(ValueError, match="0 replies to 1 prompts"):
        measure(lambda conversations: [], [ask("good")], [name])
