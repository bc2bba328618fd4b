"""Reads `phrases.txt` and speaks it: picks a phrase, chooses among its [a|b], fills in its fields.

Some phrases are kept out of training altogether, so that the evaluation asks in words that the model has
never seen: each sixth of every section that has enough of them, and a list of ways to ask for the name. A
`Speaker` speaks either the one part or the other.
"""

import math
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from story_chat.words import POLITENESS

_ALTERNATIVES = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
_HELD_OUT_EVERY = 6
_WEIGHT_OF_VARIANTS = 0.5  # a phrase that stands for 100 sentences is said 10 times as often as a plain one
_CASUAL_SHARE = 0.12
_FORMAL = frozenset({"continue", "next", "paste", "system"})  # never typed in haste


@dataclass(frozen=True)
class Section:
    """What may be said (`asks`) and what may be answered (`answers`) on one subject."""

    asks: tuple[str, ...]
    answers: tuple[str, ...]


@cache
def sections() -> dict[str, Section]:
    """Every section of phrases.txt by its name."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    asks: list[str] = []
    answers: list[str] = []
    for line in (Path(__file__).parent / "phrases.txt").read_text().splitlines():
        if line.startswith("## "):
            asks, answers = found.setdefault(line[3:], ([], []))
        elif line.startswith("> "):
            asks.append(line[2:].replace("\\n", "\n"))
        elif line.startswith("< "):
            answers.append(line[2:])
    return {name: Section(tuple(a), tuple(b)) for name, (a, b) in found.items()}


def group(name: str) -> list[str]:
    """The sections of a group: `feelings` has feelings.sad, feelings.scared and more."""
    return [section for section in sections() if section.startswith(f"{name}.")]


def normal_form(text: str) -> str:
    """A phrase without case, marks, short forms and politeness: equal forms are one phrasing."""
    plain = text.lower().replace("whats", "what is").replace("n't", " not").replace("'d ", " would ")
    plain = re.sub(r"\b(ur|r|u)\b", lambda m: {"ur": "your", "r": "are", "u": "you"}[m[1]], plain)
    heard = re.findall(r"[a-z0-9{}]+", re.sub(r"'(?:s|m|re)\b", " is", plain))
    return " ".join(word for word in heard if word not in POLITENESS)


@cache
def name_phrasings() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(for training, for the evaluation): the latter are listed by themselves, so that they stay the same."""
    return sections()["identity.name"].asks, sections()["held_out.name"].asks


@cache
def _kept_out() -> frozenset[str]:
    return frozenset(normal_form(ask) for ask in name_phrasings()[1])


def variants(phrase: str) -> int:
    """How many sentences a phrase with its [a|b] stands for."""
    return math.prod(len(choice.split("|")) for choice in _ALTERNATIVES.findall(phrase))


def spin(phrase: str, rng: random.Random) -> str:
    """Chooses one of each [a|b]."""
    return _ALTERNATIVES.sub(lambda match: rng.choice(match[1].split("|")), phrase)


def casual(text: str, rng: random.Random) -> str:
    """Now and then the text as many people type it: without capitals and without the final mark."""
    if rng.random() >= _CASUAL_SHARE:
        return text
    return text.lower().rstrip(".!?")


class Speaker:
    """Says phrases: those for training, or with `held_out` those kept for the evaluation."""

    def __init__(self, rng: random.Random, held_out: bool = False) -> None:
        self.rng = rng
        self.held_out = held_out

    def asks(self, section: str) -> tuple[str, ...]:
        """The phrases of a section that this speaker may use."""
        if section == "identity.name":
            return name_phrasings()[self.held_out]
        asks = sections()[section].asks
        if len(asks) < _HELD_OUT_EVERY:
            return asks
        return tuple(p for i, p in enumerate(asks) if (i % _HELD_OUT_EVERY == 3) == self.held_out)

    def ask(self, section: str, **fields: str) -> str:
        """Something a person says; what fills the fields is left as it is."""
        phrase = self._pick(section)
        while not self.held_out and normal_form(phrase) in _kept_out():
            phrase = self._pick(section)
        text = fill(phrase, fields)
        return text if section in _FORMAL else casual(text, self.rng)

    def _pick(self, section: str) -> str:
        asks = self.asks(section)
        if self.held_out:  # each as often as any other
            return spin(self.rng.choice(asks), self.rng)
        weights = [variants(phrase) ** _WEIGHT_OF_VARIANTS for phrase in asks]
        return spin(self.rng.choices(asks, weights)[0], self.rng)

    def answer(self, section: str, **fields: str) -> str:
        """Something the model says."""
        return fill(spin(self.rng.choice(sections()[section].answers), self.rng), fields)


def fill(phrase: str, fields: dict[str, str]) -> str:
    """The phrase with its fields; a sentence that begins with a field gets its capital letter."""
    text = phrase.format(**fields)
    return text[0].upper() + text[1:] if phrase.startswith("{") else text
