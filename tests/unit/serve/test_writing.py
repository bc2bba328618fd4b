"""One reply's way from tokens to pieces, without an engine."""

import json
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pilgrim.infer.engine import Event
from pilgrim.infer.sampling import Sampling, TokenScores
from pilgrim.infer.scheduler import Request
from pilgrim.infer.tools import ALWAYS
from pilgrim.serve.writing import Piece, Told, Tools, Writer
from pilgrim.text.calls import CALL, END_OF_CALL, END_OF_RESPONSE, RESPONSE
from pilgrim.text.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["aab abab bab aé éa b éé " * 20], 280)  # some tokens are several letters
REQUEST = Request([0], 1, 1, Sampling(), (), (), 0)
SCORES = TokenScores(-1.0, ())


def pieces(writer: Writer, ids: Sequence[int]) -> list[Piece]:
    """As the engine tells them, with what has to follow; the last one says why it ended."""
    found, waiting = list[Piece](), list(ids)
    while waiting:
        token_id = waiting.pop(0)
        over = writer.until(token_id)
        writer.take(Event(REQUEST, token_id, SCORES))
        waiting = writer.follow(()) + waiting
        if over:
            return [*found, writer.last(ended=True)]
        found.append(writer.piece())
    return [*found, writer.last(ended=False)]


def text_of(found: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in found)


@given(text=st.text("aé b", max_size=30), stops=st.lists(st.text("aé b", min_size=1, max_size=4), max_size=4))
def test_tokens_are_told_where_they_stand(text: str, stops: list[str]) -> None:
    """Each begins within the text that was shown by then, at the end of those before it."""
    for ids in (TOKENIZER.encode(text), [i for c in text for i in TOKENIZER.encode(c)]):
        writer, shown, told = Writer(TOKENIZER, stops), "", list[Told]()
        for piece in pieces(writer, ids):
            shown += piece.text
            assert all(token.begin < len(shown) for token in piece.tokens)
            told += piece.tokens
        assert text.startswith(shown)
        assert [token.token_id for token in told] == ids[: len(told)]
        for number, token in enumerate(told):
            assert TOKENIZER.decode(ids[:number]).rstrip("\ufffd") == text[: token.begin]
        if shown == text:
            assert len(told) == len(ids)


def test_half_a_character_at_the_end_is_shown_and_told() -> None:
    first, _ = TOKENIZER.encode("ß")
    found = pieces(Writer(TOKENIZER), [*TOKENIZER.encode("a"), first])
    assert text_of(found) == "a\ufffd"
    assert [token.token_id for piece in found for token in piece.tokens][-1] == first


def test_a_call_of_the_clients_ends_the_reply() -> None:
    text = '{"name": "paint", "arguments": {"colour": "é"}}'
    ids = [*TOKENIZER.encode("a b"), CALL, *TOKENIZER.encode(text), END_OF_CALL, *TOKENIZER.encode("more")]
    found = pieces(Writer(TOKENIZER, tools=Tools(theirs={"paint"})), ids)
    assert text_of(found) == "a b"
    assert found[-1].finish == "tool_calls"
    (call,) = [call for piece in found for call in piece.calls]
    assert (call.name, json.loads(call.arguments)) == ("paint", {"colour": "é"})


def test_results_of_ours_are_forced_and_no_text() -> None:
    ids = [*TOKENIZER.encode("a"), CALL, *TOKENIZER.encode("1/0"), END_OF_CALL, *TOKENIZER.encode("b")]
    writer = Writer(TOKENIZER, stops=["division"], tools=Tools(ours=ALWAYS))
    found = pieces(writer, ids)
    assert text_of(found) == "ab"
    (ran,) = [ran for piece in found for ran in piece.ran]
    assert (ran.result, ran.place) == ("error: division by zero", 1)
    assert found[-1].written == len(ids) + 2 + len(TOKENIZER.encode(ran.result))


def test_a_call_that_is_cut_off_is_nothing() -> None:
    ids = [*TOKENIZER.encode("a"), CALL, *TOKENIZER.encode("1+")]
    found = pieces(Writer(TOKENIZER, tools=Tools(ours=ALWAYS)), ids)
    assert (text_of(found), found[-1].finish) == ("a", "length")


def test_without_tools_marks_are_text() -> None:
    ids = [CALL, *TOKENIZER.encode("a"), END_OF_CALL, RESPONSE, END_OF_RESPONSE]
    shown = "<tool_call>a</tool_call><tool_response></tool_response>"
    assert text_of(pieces(Writer(TOKENIZER), ids)) == shown
    nobodys = Writer(TOKENIZER, tools=Tools(theirs={"paint"}))
    assert text_of(pieces(nobodys, ids[:3])) == "<tool_call>a</tool_call>"
