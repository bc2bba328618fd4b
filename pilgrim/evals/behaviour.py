"""Does the chatbot behave? Does it stop, does it go round in circles, does it know its name?

Three shares, counted over many prompts that training never saw:

    ended    the reply ended by itself, that is, with the end-of-turn token within the limit of tokens
    looped   the reply says the same four tokens three times in a row
    named    asked for its name, the model gave it

A share of 200 prompts is a measurement with an error, so each comes with Wilson's 95% interval (Wilson 1927),
which is sound near 0 and 1 too, where these shares live. What generates the replies comes in as a function.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilgrim.data.conversations import Prompt
from pilgrim.evals.statistics import wilson
from pilgrim.text.chat import Message

LOOP_TOKENS = 4  # a loop is this many tokens …
LOOP_TIMES = 3  # … this many times in a row


@dataclass(frozen=True)
class Reply:
    """What the model answered: its ids without the end token, as text, and whether it ended by itself."""

    ids: Sequence[int]
    text: str
    ended: bool


ReplyFor = Callable[[Sequence[Sequence[Message]]], Sequence[Reply]]


@dataclass(frozen=True)
class Share:
    """`hits` of `n` prompts."""

    hits: int
    n: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.hits / self.n

    @property
    def standard_error(self) -> float:
        """Of the share: sqrt(p (1 - p) / n). It is 0 for 0% and 100%; the interval is not."""
        return math.sqrt(self.share * (1 - self.share) / self.n)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval: the true shares that this count does not contradict."""
        return wilson(self.share, self.n)

    def to_dict(self) -> dict[str, float]:
        """{"share", "n", "low", "high"}."""
        low, high = self.interval
        return {"share": self.share, "n": self.n, "low": low, "high": high}


@dataclass(frozen=True)
class Example:
    """One dialogue to look at: who said what before, and the model's reply."""

    kind: str
    prompt: str
    reply: str
    ended: bool


@dataclass(frozen=True)
class Behaviour:
    """All that was measured."""

    ended: Share
    looped: Share
    named: Share
    examples: tuple[Example, ...]
    each: Mapping[str, Sequence[bool]]  # by the shares' names, of each prompt whether it was a hit

    def to_dict(self) -> dict[str, Any]:
        """{"behaviour": {"ended": {"share", "n", "low", "high"}, "looped": …}, "examples": […]}."""
        shares = {"ended": self.ended, "looped": self.looped, "named": self.named}
        return {
            "behaviour": {name: share.to_dict() for name, share in shares.items()},
            "examples": [vars(example) for example in self.examples],
        }


def measure(
    reply_for: ReplyFor,
    prompts: Sequence[Prompt],
    name_prompts: Sequence[Prompt],
    token_limit: int = 200,
    batch: int = 50,
    examples_per_kind: int = 2,
) -> Behaviour:
    """Asks every prompt once and counts.

    `reply_for` answers up to `batch` conversations at a time, one reply for each, in order. A reply counts
    as ended if it did so by itself and, its end token included, has at most `token_limit` tokens. `prompts`
    are for ended and looped; `name_prompts`, whose `expect` is the name, for named. Raises ValueError if
    either is empty, a name prompt expects nothing, or `reply_for` does not give one reply for each prompt.
    """
    if not prompts or not name_prompts:
        raise ValueError("nothing to measure: both lists of prompts need at least one prompt")
    replies = list(_replies(reply_for, prompts, batch))
    names = list(_replies(reply_for, name_prompts, batch))
    ended = [reply.ended and len(reply.ids) < token_limit for reply in replies]
    looped = [has_loop(reply.ids) for reply in replies]
    named = [gives(reply.text, prompt.expect) for reply, prompt in zip(names, name_prompts, strict=True)]
    asked = [*zip(name_prompts, names, strict=True), *zip(prompts, replies, strict=True)]
    return Behaviour(
        Share(sum(ended), len(ended)),
        Share(sum(looped), len(looped)),
        Share(sum(named), len(named)),
        tuple(_examples(asked, examples_per_kind)),
        {"ended": ended, "looped": looped, "named": named},
    )


def has_loop(ids: Sequence[int]) -> bool:
    """Whether the same `LOOP_TOKENS` tokens stand `LOOP_TIMES` times in a row, wherever that begins."""
    # They do if, over all but one of these times, each token equals the one LOOP_TOKENS further on.
    equal_in_a_row = 0
    for here, there in zip(ids, ids[LOOP_TOKENS:], strict=False):
        equal_in_a_row = equal_in_a_row + 1 if here == there else 0
        if equal_in_a_row == LOOP_TOKENS * (LOOP_TIMES - 1):
            return True
    return False


def gives(text: str, expected: str | None) -> bool:
    """Whether `text` holds `expected` as a word of its own, written like that. ValueError if that is None."""
    if expected is None:
        raise ValueError('a name prompt must say in "expect" which name a right answer holds')
    return re.search(rf"\b{re.escape(expected)}\b", text) is not None


def _replies(reply_for: ReplyFor, prompts: Sequence[Prompt], batch: int) -> Iterator[Reply]:
    for at in range(0, len(prompts), batch):
        some = prompts[at : at + batch]
        replies = reply_for([prompt.messages for prompt in some])
        if len(replies) != len(some):
            raise ValueError(f"{len(replies)} replies to {len(some)} prompts: there must be one for each")
        yield from replies


def _examples(asked: Sequence[tuple[Prompt, Reply]], per_kind: int) -> Iterator[Example]:
    """The first dialogues of each kind; a prompt of several turns names the speakers."""
    shown: Counter[str] = Counter()
    for prompt, reply in asked:
        shown[prompt.kind] += 1
        if shown[prompt.kind] <= per_kind:
            turns = [f"{message.role}: {message.content}" for message in prompt.messages]
            text = "\n\n".join(turns) if len(turns) > 1 else prompt.messages[0].content
            yield Example(prompt.kind, text, reply.text, reply.ended)
