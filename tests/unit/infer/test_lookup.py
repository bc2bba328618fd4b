from pilgrim.infer.lookup import MOST, PAUSE, Lookup


def test_the_guess_is_what_followed_last_time() -> None:
    lookup = Lookup()
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], 3) == [4, 5, 6]
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 9, 2, 3], 3) == []
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 9, 1, 2, 3], 1) == [9]


def test_a_guess_beyond_the_end_repeats_itself() -> None:
    assert Lookup().guess([8, 1, 2, 1, 2, 1, 2], 4) == [1, 2, 1, 2]


def test_short_texts_have_no_guess() -> None:
    for tokens in ([], [1], [1, 1], [1, 1, 1], [1, 2, 3, 1, 2, 3][:5]):
        assert Lookup().guess(tokens, 4) == []
    assert Lookup().guess([1, 1, 1, 1], 4) == [1, 1, 1, 1]
    assert Lookup().guess([1, 2, 3, 1, 2, 3], 0) == []


def test_success_makes_bold_and_failure_careful() -> None:
    lookup, text = Lookup(), [1] * 20
    lookup.learn(4, 4, 20)
    assert len(lookup.guess(text, 99)) == MOST
    lookup.learn(8, 3, 20)
    assert len(lookup.guess(text, 99)) == 3
    lookup.learn(3, 0, 20)
    assert len(lookup.guess(text, 99)) == 1
    lookup.learn(1, 0, 20)
    assert lookup.guess([1] * (19 + PAUSE), 99) == []
    assert lookup.guess([1] * (20 + PAUSE), 99) == [1]
    assert (lookup.guessed, lookup.right) == (16, 7)
