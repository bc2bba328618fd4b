"""From a prompt to a draft: ask, look, judge.

    the user's turns, each answered -> filters -> the right answer, if one is known -> a copy? -> the judge

The cheap looks come first, so that no judge is paid for what is thrown away anyhow. Nothing here decides: a
draft says what is against it, and the order in which drafts are decided is the order of prompts (work.py).
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from pilgrim.synth.answers import Answer, Unanswerable, Wire
from pilgrim.synth.asking import Asking
from pilgrim.synth.filters import reason_against
from pilgrim.synth.journal import name_of
from pilgrim.synth.near import Kept
from pilgrim.synth.prompts import Prompt, filled, named_seed, transcript
from pilgrim.synth.reading import conversation_in, score_in
from pilgrim.synth.settings import SynthRecipe
from pilgrim.text.chat import messages_from_row, row_of


@dataclass(frozen=True)
class Draft:
    """A conversation, and `against`: why it is not kept; None if nothing is known against it."""

    sample: int
    messages: list[Wire]
    against: str | None
    seed: int
    model: str
    score: float | None = None
    judge: str | None = None
    slots: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """By which copies are found: all but what the system says."""
        return transcript([message for message in self.messages if message["role"] != "system"])

    def row(self, prompt: str, source: str, n: int) -> dict[str, Any]:
        """As it is written: a conversation like any other, with where it comes from."""
        about: dict[str, Any] = {"prompt": prompt, "n": n, "sample": self.sample}
        about |= {"model": self.model, "seed": self.seed, "slots": self.slots}
        if self.score is not None:
            about |= {"score": self.score, "judge": self.judge}
        reason = {"reason": self.against} if self.against is not None else {}
        return {"messages": self.messages, "source": source, **reason, "synth": about}


class Maker:
    """Makes the drafts of a prompt. `kept` is what was decided so far."""

    def __init__(self, recipe: SynthRecipe, asking: Asking, kept: Kept) -> None:
        self._recipe, self._asking, self._kept = recipe, asking, kept

    async def drafts(self, n: int, prompt: Prompt) -> list[Draft]:
        """All samples of the n-th prompt. Raises what asking does, but for Unanswerable."""
        samples = [self._draft(n, sample, prompt) for sample in range(self._recipe.samples)]
        results = await asyncio.gather(*samples, return_exceptions=True)
        for result in results:  # all have ended: what was paid for is in the journal
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, Draft)]

    async def _draft(self, n: int, sample: int, prompt: Prompt) -> Draft:
        seed = named_seed(self._recipe.seed, "reply", n, sample)
        messages, against = await self._talk(prompt, seed)
        draft = Draft(sample, messages, against, seed, self._asking.model("writer"), slots=dict(prompt.slots))
        if against is None and (copied := self._kept.copy_of(draft.text)):
            against = copy_reason(*copied)
        if against is not None or self._recipe.judge is None:
            return Draft(**{**vars(draft), "against": against})
        score = await self._score(draft.messages, seed)
        if score is None:
            against = "judge: gave no score"
        elif score < self._recipe.judge.least:
            against = f"judge: {score:g}, less than {self._recipe.judge.least:g}"
        more = {"against": against, "score": score, "judge": self._asking.model("judge")}
        return Draft(**{**vars(draft), **more})

    async def _talk(self, prompt: Prompt, seed: int) -> tuple[list[Wire], str | None]:
        """The conversation, and what is against it."""
        said: list[Wire] = [{"role": "system", "content": prompt.system}] if prompt.system else []
        cut, answer = False, None
        for turn in prompt.turns:
            said.append({"role": "user", "content": turn})
            try:
                answer = await self._asking("writer", said, seed)
            except Unanswerable as error:
                return said, f"unanswerable: {error}"
            said = said + answer.messages
            cut = cut or answer.cut
            if not answer.text.strip():
                break  # nobody answers silence
        assert answer is not None
        messages = said if prompt.keep_system or not prompt.system else said[1:]
        if prompt.whole:
            whole = conversation_in(answer.text)
            if whole is None:
                return messages, "no JSON: there is no list of messages in the reply"
            messages, cut = whole, False
        # In threads, as a regular expression or a program may take its time, and others wait for replies.
        against = await asyncio.to_thread(reason_against, messages, cut, self._recipe.filters)
        if against is None:  # calls of tools are numbered through
            messages = row_of(messages_from_row({"messages": messages}, "it"))["messages"]
        return messages, against or await self._graded(prompt, answer)

    async def _graded(self, prompt: Prompt, answer: Answer) -> str | None:
        """Whether the last reply is right, where that is known; remembered, as a check may run a program."""
        if prompt.grade is None:
            return None
        name = name_of("check", {"check": prompt.check, "text": answer.text})
        right = self._asking.journal.verdict(name)
        if right is None:
            right = (await asyncio.to_thread(prompt.grade, answer.text)).right
            self._asking.journal.judged(name, right)
        return None if right else "wrong: the check says no"

    async def _score(self, messages: list[Wire], seed: int) -> float | None:
        """The judge's; asked again with another seed if its answer holds none."""
        judge = self._recipe.judge
        assert judge is not None
        question = filled(judge.prompt, {"conversation": transcript(messages)})
        for number in range(judge.tries):
            try:
                answer = await self._asking(
                    "judge", [{"role": "user", "content": question}], named_seed(seed, "judge", number)
                )
            except Unanswerable:
                return None
            if (score := score_in(answer.text)) is not None:
                return score
        return None


def copy_reason(name: str, index: float) -> str:
    """What is against a copy."""
    return f"copy: of {name}" if index == 1 else f"copy: {index:.0%} like {name}"
