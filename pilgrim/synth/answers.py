"""What writers and judges have in common: messages in, an answer out, and what can go wrong between.

`Endpoint` asks a server, `OwnRun` our own engine. Both are asked with one `reply`, which tries once; who asks
again and when to stop asking is decided in asking.py.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from pilgrim.core.errors import PilgrimError

Wire = dict[str, Any]  # a message as it travels: {"role": "user", "content": "Hello!"}


@dataclass(frozen=True)
class Tokens:
    """Tokens read and written, which is what one pays for."""

    read: int = 0
    written: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.read + other.read, self.written + other.written)

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.read - other.read, self.written - other.written)


Price = tuple[float, float]  # of a million tokens read, and written


def cost(tokens: Tokens, price: Price) -> float:
    """In the money of the prices."""
    return (tokens.read * price[0] + tokens.written * price[1]) / 1e6


@dataclass(frozen=True)
class Answer:
    """`text` is all that was said, and `messages` what goes into the conversation for it.

    `cut`: it was too long, and has lost its end. `tokens` is None where the server doesn't tell.
    """

    text: str
    messages: list[Wire]
    cut: bool
    tokens: Tokens | None


class Refused(Exception):
    """The server said no, for now, and charges nothing. `wait_s`: it asked to be left alone for so long."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class Lost(Exception):
    """No answer that can be read, after the question was sent: perhaps it is charged."""


class Unanswerable(Exception):
    """This very question can't be answered (it may be too long); others may be."""


class Stopped(PilgrimError):
    """It ended before all that was wanted is there; what there is is kept."""


class Writer(Protocol):
    """Whoever answers."""

    name: str  # the model's
    where: str  # for sentences
    concurrency: int
    tries: int
    wait_s: float
    price: Price

    def most(self, messages: list[Wire]) -> Tokens:
        """What an answer may cost at most."""

    def body(self, messages: list[Wire], seed: int) -> dict[str, Any]:
        """The question as plain JSON: the same question, the same answer to be remembered."""

    async def reply(self, messages: list[Wire], seed: int) -> Answer:
        """One try. Raises Refused, Lost, Unanswerable, or PilgrimError if trying again is of no use."""

    async def close(self) -> None:
        """Nothing more will be asked."""
