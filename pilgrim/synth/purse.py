"""What was spent, what is on the way, and whether a request may still be sent.

The price of an answer is known when it is there, so before a request the most that it can cost is laid aside:
no token has less than a byte, and no reply more than `max_tokens` tokens. If that goes beyond a limit, the
request has to wait until others are back, as most cost far less; and if none are on the way, it is over. So
a limit is kept, not found to be broken.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from pilgrim.synth.answers import Price, Stopped, Tokens, cost
from pilgrim.synth.journal import Journal
from pilgrim.synth.settings import LimitSettings


class Purse:
    """Shared by all requests. What was spent is the journal's count; `prices` are those of now."""

    def __init__(self, limits: LimitSettings, prices: Mapping[str, Price], journal: Journal) -> None:
        self.limits, self._prices, self._journal = limits, prices, journal
        self._aside: dict[str, Tokens] = {}
        self._on_the_way = 0
        self._changed = asyncio.Condition()

    @property
    def cost(self) -> float:
        """So far."""
        return self._journal.cost

    @property
    def tokens(self) -> int:
        """Read and written so far."""
        return sum(tokens.read + tokens.written for tokens in self._journal.tokens.values())

    @asynccontextmanager
    async def laid_aside(self, who: str, most: Tokens) -> AsyncIterator[None]:
        """While a request is on its way. Raises Stopped if it can't be paid any more."""
        async with self._changed:
            while (limit := self._beyond(who, most)) and self._on_the_way:
                await self._changed.wait()
            if limit:
                raise Stopped(limit)
            self._add(who, most, +1)
        try:
            yield
        finally:
            async with self._changed:
                self._add(who, Tokens() - most, -1)
                self._changed.notify_all()

    def _add(self, who: str, tokens: Tokens, requests: int) -> None:
        self._aside[who] = self._aside.get(who, Tokens()) + tokens
        self._on_the_way += requests

    def _beyond(self, who: str, most: Tokens) -> str | None:
        """Which limit one more request may break, as a sentence."""
        aside = {**self._aside, who: self._aside.get(who, Tokens()) + most}
        money = self.cost + sum(cost(tokens, self._prices[name]) for name, tokens in aside.items())
        number = self.tokens + sum(tokens.read + tokens.written for tokens in aside.values())
        if self.limits.max_cost is not None and money > self.limits.max_cost:
            return (
                f"{self.cost:.4f} of limits.max_cost = {self.limits.max_cost:g} is spent, and the next "
                "request might go beyond; raise it, and start again to go on"
            )
        if self.limits.max_tokens is not None and number > self.limits.max_tokens:
            return (
                f"{self.tokens:,} of limits.max_tokens = {self.limits.max_tokens:,} are used, and the next "
                "request might go beyond; raise it, and start again to go on"
            )
        return None
