"""Many prompts at once, decided one after the other.

Requests take seconds and most of that is waiting, so several prompts are asked at the same time. Their
answers come in any order, but what is kept is decided in the order of the prompts: whether a text is a copy
depends on what was kept before it. So the files that come out are a function of the answers alone, and a run
that was killed five times writes the same as one that wasn't.

No more prompts are on the way than may still be wanted, so nothing is paid for that isn't used. What the
journal already answers is decided first, without a single request: only then is anybody told where the rest
will go.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from pilgrim.core.errors import PilgrimError
from pilgrim.synth.answers import Stopped
from pilgrim.synth.asking import Asking, NotAsked
from pilgrim.synth.making import Draft, Maker, copy_reason
from pilgrim.synth.near import Kept
from pilgrim.synth.prompts import Prompts
from pilgrim.synth.rows import Rows
from pilgrim.synth.settings import PATIENCE, SynthRecipe

AHEAD = 2  # so many times as many prompts as requests, so that one that is slow holds up none of the others


class Work:
    """`remembered`, then `new`; afterwards `rows` holds what is kept and what isn't, `kept` how many."""

    def __init__(self, recipe: SynthRecipe, prompts: Prompts, asking: Asking, rows: Rows) -> None:
        self._recipe, self._prompts, self._asking, self._rows = recipe, prompts, asking, rows
        self._known = Kept(recipe.filters.near)
        self._maker = Maker(recipe, asking, self._known)
        self._next = 0  # the prompt that is to be decided
        self._in_vain: list[str] = []  # reasons since one was kept
        self.kept, self.reasons = 0, Counter[str]()

    @property
    def decided(self) -> int:
        """How many prompts were."""
        return self._next

    @property
    def so_far(self) -> int:
        """Of what there is to be: conversations that are kept, or questions that were asked."""
        return self._next if self._recipe.wanted is None else self.kept

    @property
    def done(self) -> bool:
        """All that is wanted is there, or everything was asked."""
        enough = self._recipe.wanted is not None and self.kept >= self._recipe.wanted
        return enough or self._next >= len(self._prompts)

    async def remembered(self) -> None:
        """Decide what the journal has answered, and write the files anew."""
        while not self.done:
            try:
                self._decide(await self._maker.drafts(self._next, self._prompts[self._next]))
            except NotAsked:
                break
        self._in_vain = []  # whoever starts it again has the patience for more
        self._rows.written_anew()

    async def new(self, tell: Callable[[], None]) -> None:
        """Ask for the rest; `tell` is called when a prompt was decided.

        Raises PilgrimError when it has to end before all is there; what was decided is written.
        """
        self._asking.offline = False
        ways: dict[int, asyncio.Task[list[Draft]]] = {}
        trouble: PilgrimError | None = None
        while True:
            while trouble is None and self._another(ways):
                n = self._next + len(ways)
                ways[n] = asyncio.create_task(self._maker.drafts(n, self._prompts[n]))
            busy = [task for task in ways.values() if not task.done()]
            if busy:
                await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
            while trouble is None and self._next in ways and ways[self._next].done():
                try:
                    self._decide(ways.pop(self._next).result())
                    tell()
                    self._refuse_vain_work()
                except PilgrimError as error:
                    trouble = error
                    self._asking.stopped = self._asking.stopped or error
            if not busy and (trouble or not ways):
                break
        for task in ways.values():
            task.exception()  # each has said the same
        if trouble:
            raise trouble
        if self._recipe.wanted is not None and self.kept < self._recipe.wanted and self._recipe.prompts:
            raise Stopped(
                f"{len(self._prompts):,} prompts were asked, and {self.kept:,} of {self._recipe.wanted:,} "
                f"conversations kept ({self._why()}); raise most_prompts, "
                f"or mend what {self._rows.rejected} shows"
            )

    def _another(self, ways: dict[int, "asyncio.Task[list[Draft]]"]) -> bool:
        """May one more prompt be asked?"""
        busy = sum(not task.done() for task in ways.values())
        places = max(1, self._asking.places // self._recipe.samples)
        coming = self.kept + self._recipe.keep * len(ways)
        return (
            self._next + len(ways) < len(self._prompts)
            and (self._recipe.wanted is None or coming < self._recipe.wanted)
            and busy < places
            and len(ways) < AHEAD * places
        )

    def _decide(self, drafts: list[Draft]) -> None:
        """Keep the best of a prompt's drafts; the rest is written down with a reason."""
        prompt, kept = self._prompts[self._next], 0
        drafts = [self._copies_told(draft) for draft in drafts]
        for draft in sorted(drafts, key=lambda draft: (-(draft.score or 0), draft.sample)):
            draft = self._copies_told(draft)  # once more, as one of the same prompt may be kept now
            against = draft.against
            wanted = self._recipe.wanted is None or self.kept < self._recipe.wanted
            if against is None and (kept >= self._recipe.keep or not wanted):
                against = "not needed: others of the same prompt are kept"
            self._rows.write(replace(draft, against=against), prompt.id, self._next)
            if against is None:
                self._known.add(f"{self._next}/{draft.sample}", draft.text)
                self.kept, kept, self._in_vain = self.kept + 1, kept + 1, []
            else:
                self.reasons[against.partition(":")[0]] += 1
                self._in_vain.append(against)
        self._next += 1

    def _copies_told(self, draft: Draft) -> Draft:
        """A copy is one of what was kept by now. Whether the judge was quicker than that is luck."""
        looked = draft.against is None or draft.against.startswith(("copy: ", "judge: "))
        if looked and (copied := self._known.copy_of(draft.text)):
            return replace(draft, against=copy_reason(*copied), score=None, judge=None)
        return draft

    def _refuse_vain_work(self) -> None:
        patience = self._recipe.patience or (PATIENCE if self._recipe.prompts else None)
        if patience is not None and len(self._in_vain) >= patience and not self.done:
            raise Stopped(
                f"the last {len(self._in_vain)} conversations were all rejected, the last because of "
                f"{self._in_vain[-1]!r}; look at {self._rows.rejected}, mend the recipe, and start again"
            )

    def _why(self) -> str:
        return ", ".join(f"{count:,} × {reason}" for reason, count in self.reasons.most_common(3)) or "none"
