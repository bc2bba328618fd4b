"""From the tokens of one reply to what a client gets of it: text, calls of tools, and what else was likely.

The engine tells each token as it is written. Text is shown as soon as it is certain: a character may take
several tokens, and what could become a stop string is held back (infer/stopping.py). A call of a tool stands
between two marks, which are special tokens, and is no text:

    She has 9 * 2 <tool_call>9*2</tool_call><tool_response>18</tool_response> = 18 apples.

A call that the server runs is answered in place, and the reply goes on. Any other function is the client's:
the reply ends with the call, and goes on when the client sends what came of it. A call that can't be read, or
of a function that nobody has offered, is told as the text that it is.

With each token goes the place in the text where it begins, so that a client can lay the tokens over the text;
tokens of a stop string are not told. All of this happens in the engine's thread.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pilgrim.infer.sampling import TokenScores
from pilgrim.infer.stopping import StopStrings
from pilgrim.text.tokenizer import StreamDecoder, Tokenizer


class Told(NamedTuple):
    """A token that a client is told of."""

    token_id: int
    begin: int  # characters of the reply before it
    scores: TokenScores | None


@dataclass(frozen=True)
class Piece:
    """What is new in a reply."""

    text: str = ""
    tokens: Sequence[Told] = ()
    finish: str | None = None  # why it ended, in OpenAI's words: "stop" or "length"; None: it goes on
    written: int = 0  # tokens of the whole reply so far


class Writer:
    """One reply; hand its `until` to `Engine.submit`, and every event to `take`."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], stop_ids: Collection[int], tell_end: bool = False
    ) -> None:
        """`tell_end`: the token that ends the reply is told like any other, though it is no text."""
        self.finish: str | None = None
        self._stops = StopStrings(tokenizer, stops)
        self._stop_ids, self._tell_end = stop_ids, tell_end
        self._decoder, self._read, self._shown = StreamDecoder(tokenizer), 0, 0  # characters
        self._tokens: list[tuple[int, int]] = []  # id, and characters before it
        self._scores: list[TokenScores | None] = []
        self._told = 0

    def until(self, token_id: int) -> bool:
        """Takes the next token; whether the reply ends with it."""
        self._tokens.append((token_id, self._read))
        if token_id in self._stop_ids:
            self.finish = "stop"
            return True
        self._read += len(self._decoder.feed(token_id))
        if self._stops(token_id):
            self.finish = "stop"
        return self.finish is not None

    def take(self, scores: TokenScores | None) -> None:
        """What the model thought of the next token that `until` was told of."""
        self._scores.append(scores)

    def piece(self, over: bool) -> Piece:
        """What is new since the last time; `over`: the reply has ended."""
        if over and self.finish is None:
            self.finish = "length"
        text = self._stops.rest() if over else self._stops.text()
        self._shown += len(text)
        finish = self.finish if over else None
        return Piece(text, self._certain(over), finish, len(self._tokens))

    def _certain(self, over: bool) -> list[Told]:
        """The tokens that begin within what is shown by now."""
        tokens = []
        whole = over and not self._stops.stopped  # then bytes that make no character are shown, too
        while self._told < len(self._scores):
            token_id, begin = self._tokens[self._told]
            ends = token_id in self._stop_ids
            if not (self._tell_end if ends else whole or begin < self._shown):
                break
            tokens.append(Told(token_id, begin, self._scores[self._told]))
            self._told += 1
        return tokens
