"""What the engine wants of a reply's form: which tokens may come next.

Whoever knows a form (JSON after a schema, a calendar date, a chess move) hands the engine an object that
follows the reply token by token. constrained.py makes such objects; anything with these five names will do.
"""

from collections.abc import Collection
from typing import Protocol

from torch import Tensor


class Grammar(Protocol):
    """A form, and how far one reply is in it. Each request needs its own."""

    @property
    def complete(self) -> bool:
        """Whether the reply may end here."""

    @property
    def finished(self) -> bool:
        """Whether it has to end here, as nothing can follow."""

    @property
    def trouble(self) -> str | None:
        """Why it can't be followed any further, as a sentence. Its reply then ends, and no other."""

    def allowed(self) -> Tensor:
        """Bool [v], on the CPU: the tokens that may come next. Those that end a reply are not among them."""

    def feed(self, token_id: int) -> None:
        """The next token, one of those that were allowed."""


def may_follow(grammar: Grammar, stop_ids: Collection[int]) -> Tensor:
    """Bool [v]: what the form allows, and `stop_ids` exactly where the reply may end."""
    allowed_v = grammar.allowed()
    if stop_ids:
        allowed_v = allowed_v.clone()
        allowed_v[list(stop_ids)] = grammar.complete
    return allowed_v
