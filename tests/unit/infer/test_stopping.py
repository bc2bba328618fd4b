"""Stop strings: the same end however a text is cut into tokens, and nothing shown that belongs to one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilgrim.core.errors import SettingsError
from pilgrim.infer.stopping import StopStrings
from pilgrim.text.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["aab abab bab aé éa b éé " * 20], 280)  # some tokens are several letters


def slow_twin(text: str, strings: list[str]) -> tuple[str, bool]:
    """Letter by letter."""
    for end in range(1, len(text) + 1):
        matching = [s for s in strings if text[:end].endswith(s)]
        if matching:
            return text[: end - max(map(len, matching))], True
    return text, False


@given(
    text=st.text("aé b", max_size=30), strings=st.lists(st.text("aé b", min_size=1, max_size=4), max_size=4)
)
def test_it_stops_where_the_definition_says(text: str, strings: list[str]) -> None:
    expected, stops = slow_twin(text, strings)
    for ids in (TOKENIZER.encode(text), [i for c in text for i in TOKENIZER.encode(c)]):
        watch, shown = StopStrings(TOKENIZER, strings), ""
        for token_id in ids:
            over = watch(token_id)
            shown += watch.text()
            assert expected.startswith(shown)
            if over:
                break
        shown += watch.rest()
        assert (shown, watch.stopped) == (expected, stops)


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_clear() -> None:
    watch = StopStrings(TOKENIZER, ["abb"])
    shown = []
    for letter in "aababc":
        watch(TOKENIZER.encode(letter)[0])
        shown.append(watch.text())
    assert shown == ["", "a", "", "ab", "", "abc"]


def test_an_empty_string_is_refused() -> None:
    with pytest.raises(SettingsError, match='stop: "" is in every text'):
        StopStrings(TOKENIZER, ["a", ""])
