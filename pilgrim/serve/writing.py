"""From the tokens of one reply to what a client gets of it: text, calls of tools, and what else was likely.

The engine tells each token as it is written. Text is shown as soon as it is certain: a character may take
several tokens, and what could become a stop string is held back (infer/stopping.py). A call of a tool stands
between two marks, which are special tokens, and is no text:

    She has 9 * 2 <tool_call>9*2</tool_call><tool_response>18</tool_response> = 18 apples.

A call that the server runs is answered in place, and the reply goes on. Any other function is the client's:
the reply ends with the call, and goes on when the client sends what came of it. A call of a function that
nobody has offered is told as the text that it is.

With each token goes the place in the text where it begins, so that a client can lay the tokens over the text;
tokens of a stop string are not told. All of this happens in the engine's thread.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

from pilgrim.infer.engine import Event
from pilgrim.infer.sampling import TokenScores
from pilgrim.infer.stopping import StopStrings
from pilgrim.infer.tools import Tool
from pilgrim.text.calls import BUILT_IN, CALL, END_OF_CALL, END_OF_RESPONSE, RESPONSE, Call, call_of
from pilgrim.text.tokenizer import StreamDecoder, Tokenizer


class Told(NamedTuple):
    """A token that a client is told of."""

    token_id: int
    begin: int  # characters of the reply before it
    scores: TokenScores | None  # None: not asked for, or not drawn but forced


class Ran(NamedTuple):
    """A call that the server has run, and where in the reply's text it stands."""

    call: Call
    result: str
    place: int


@dataclass(frozen=True)
class Tools:
    """What may be called: names of the client's functions, and what the server runs, by name."""

    theirs: Collection[str] = ()
    ours: Mapping[str, Tool] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.theirs or self.ours)


@dataclass(frozen=True)
class Piece:
    """What is new in a reply."""

    text: str = ""
    tokens: Sequence[Told] = ()
    calls: Sequence[Call] = ()  # for the client
    ran: Sequence[Ran] = ()
    finish: str | None = None  # why it ended: "stop", "length" or "tool_calls"; None: it goes on
    written: int = 0  # tokens of the whole reply so far

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.text or self.tokens or self.calls or self.ran or self.finish)


class Writer:
    """One reply: its `until` and `follow` are for `Engine.submit`, and every event is for `take`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        tools: Tools | None = None,
        told_ends: Collection[int] = (),
    ) -> None:
        """`told_ends`: tokens that end the reply and are told like others, though they are no text."""
        self._tokenizer, self._tools, self._told_ends = tokenizer, tools or Tools(), told_ends
        self._stops = StopStrings(tokenizer, stops)
        self._decoder, self._read, self._shown = StreamDecoder(tokenizer), 0, 0  # characters
        self._tokens: list[tuple[int, int]] = []  # id, and characters before it
        self._scores: list[TokenScores | None] = []
        self._told = 0
        self._mark: int | None = None  # CALL or RESPONSE while the reply is within one
        self._within: list[int] = []
        self._answer: list[int] = []  # has to follow
        self._calls: list[Call] = []
        self._ran: list[Ran] = []

    def until(self, token_id: int) -> bool:
        """Takes the next token; whether the reply ends with it."""
        self._tokens.append((token_id, self._read))
        if token_id in self._told_ends:
            return True
        if self._mark is None and token_id in self._marks():
            self._mark, self._within = token_id, []
        elif self._mark is None:
            self._say(token_id)
        elif token_id in (END_OF_CALL, END_OF_RESPONSE):
            mark, self._mark = self._mark, None
            if mark == CALL:
                self._called()
        else:
            self._within.append(token_id)
        return self._stops.stopped or bool(self._calls)

    def follow(self, _: Sequence[int]) -> list[int]:
        """Ids that come next without being drawn: the result of what the server has run."""
        answer, self._answer = self._answer, []
        return answer

    def take(self, event: Event) -> None:
        """The engine's word on the next token that `until` was told of."""
        if event.token_id is not None:
            self._scores.append(event.scores)

    def piece(self) -> Piece:
        """What is new since the last time, in a reply that goes on."""
        return self._piece(self._stops.text(), False, None)

    def last(self, ended: bool) -> Piece:
        """What is new in a reply that is over; `ended`: by itself, not by a limit."""
        finish = "tool_calls" if self._calls else "stop" if ended else "length"
        return self._piece(self._stops.rest(), not self._stops.stopped, finish)

    def _piece(self, text: str, whole: bool, finish: str | None) -> Piece:
        self._shown += len(text)
        ran, self._ran = self._ran, []
        calls = self._calls if finish else []
        return Piece(text, self._certain(whole), calls, ran, finish, len(self._tokens))

    def _certain(self, whole: bool) -> list[Told]:
        """The tokens that begin within what is shown by now; `whole`: nothing was cut off."""
        tokens = []
        while self._told < len(self._scores):
            token_id, begin = self._tokens[self._told]
            if not (whole or begin < self._shown):
                break
            tokens.append(Told(token_id, begin, self._scores[self._told]))
            self._told += 1
        return tokens

    def _marks(self) -> Collection[int]:
        """What begins something that is no text."""
        return (CALL, RESPONSE) if self._tools else ()

    def _say(self, token_id: int) -> None:
        self._read += len(self._decoder.feed(token_id))
        self._stops(token_id)

    def _called(self) -> None:
        call = call_of(self._tokenizer.decode(self._within), f"call_{uuid4().hex[:24]}")
        if call.name in self._tools.ours:
            result = self._tools.ours[call.name](call.argument(BUILT_IN[call.name]))
            self._ran.append(Ran(call, result, self._read))
            self._answer = [RESPONSE, *self._tokenizer.encode(result), END_OF_RESPONSE]
        elif call.name in self._tools.theirs:
            self._calls.append(call)
        else:
            for token_id in (CALL, *self._within, END_OF_CALL):
                self._say(token_id)
