"""What a rule may say about a story and be right.

Each rule looks for one plain pattern ("a little dog named Max", "the red ball") and stays silent when the
text leaves room for doubt: two dogs, a second name, a colour that changes. Silence costs a few conversations;
a guess would teach the model to make things up.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from story_chat import words
from story_chat.story import Story

_NOUN = "|".join(sorted(words.CHARACTERS))
_THING = "|".join(sorted(words.THINGS))
_ADJECTIVES = rf"(?:(?:{'|'.join(sorted(words.ADJECTIVES))}),? (?:and )?)*"
_NAME_WAS = r"(?:His|Her|Its|The \w+'s) name (?:was|is)"
_ONE_NAME = r"([A-Z][a-z]+)\b(?! [A-Z])"
_NAMED = re.compile(rf"\b([Aa]n? {_ADJECTIVES}({_NOUN})) (?:named|called) {_ONE_NAME}")
_NAME_IS = re.compile(rf"\b([Aa]n? {_ADJECTIVES}({_NOUN}))\b[^.!?\n]*[.!?] {_NAME_WAS} {_ONE_NAME}")
_UNNAMED = re.compile(
    rf"\b([Aa]n? {_ADJECTIVES}({_NOUN}))\b(?! (?:named|called)\b)(?! [a-z]+ (?:named|called)\b)"
)
_KIND_BEFORE = re.compile(rf"\b(?:[Hh]is|[Hh]er|[Tt]he|[Tt]heir) {_ADJECTIVES}({_NOUN}),? ([A-Z][a-z]+)\b")
_KIND_AFTER = re.compile(rf"\b([A-Z][a-z]+),? (?:the|was a|is a|was an|is an) {_ADJECTIVES}({_NOUN})\b")
_PARENTS = (
    "mom",
    "mommy",
    "mum",
    "mummy",
    "mother",
    "mama",
    "dad",
    "daddy",
    "father",
    "papa",
    "grandma",
    "grandpa",
)
_PARENT = re.compile(rf"\b(his|her|their) ({'|'.join(_PARENTS)})\b")
_MANY = r"\b(?i:another|other|two|three|four|five|many|some|all|new) "
_TALKING_THING = re.compile(rf"\b(?:{_THING}) (?:said|asked|thought|felt|smiled|replied|wanted)\b")
_SEEN = {"saw": "see", "found": "find", "heard": "hear", "met": "meet", "made": "make", "bought": "buy"}
_ALIKE = tuple(frozenset(line.split()) for line in words.ALIKE)


@dataclass(frozen=True)
class Character:
    """Someone in a story: noun (`dog`), the words that bring them in (`a little dog`), the name if any."""

    noun: str
    phrase: str
    name: str | None = None

    @property
    def in_full(self) -> str:
        """`a little dog named Max`, or `a little dog`."""
        return f"{self.phrase} named {self.name}" if self.name else self.phrase


@dataclass(frozen=True)
class Fact:
    """One thing that is true of a story: its kind names the question, its fields fill question and answer."""

    kind: str
    fields: dict[str, str]


def plural(noun: str) -> str:
    """The plural of a listed noun: puppy -> puppies, mouse -> mice."""
    if noun in words.IRREGULAR_PLURALS:
        return words.IRREGULAR_PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def with_article(noun: str) -> str:
    """`an owl`, `a dog`; a mass noun such as rain has none."""
    if noun in words.MASS_TOPICS:
        return noun
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


def listing(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def names(story: Story) -> dict[str, int]:
    """Each name and how often it occurs: words that are capitalized in the middle of a sentence."""
    found: set[str] = set()
    for sentence in story.sentences:
        found.update(re.findall(r"(?<=[a-z,;] )([A-Z][a-z]+)\b", sentence))
    found -= words.NOT_NAMES
    counts = Counter(re.findall(r"[A-Z][a-z]+", story.text))
    return {name: counts[name] for name in sorted(found, key=story.text.index)}


def named_characters(story: Story) -> tuple[Character, ...]:
    """Those whom the story itself names: "a little girl named Lily", "a dog. His name was Max"."""
    found: dict[str, Character] = {}
    matches = [*_NAMED.finditer(story.text), *_NAME_IS.finditer(story.text)]
    for match in sorted(matches, key=lambda m: m.start()):
        phrase, noun, name = match.groups()
        if name not in words.NOT_NAMES:
            found.setdefault(name, Character(noun, phrase[0].lower() + phrase[1:], name))
    return tuple(found.values())


def unnamed_hero(story: Story) -> Character | None:
    """The one whom the first sentence brings in without a name ("there was a brave bear"), if it stays."""
    match = _UNNAMED.search(story.sentences[0])
    if match is None or names(story) or story.words.count(match[2]) < 3:
        return None
    return Character(match[2], match[1][0].lower() + match[1][1:])


def topics(story: Story) -> list[str]:
    """Nouns that the story is about, the most frequent first: three mentions, one of them with an article."""
    counts = Counter(story.words)
    total = {
        noun: counts[noun] + (counts[plural(noun)] if plural(noun) != noun else 0) for noun in words.TOPICS
    }
    often = [noun for noun, count in total.items() if count >= 3 and counts[noun] >= 2]
    article = r"\b(?:[Aa]n?|[Tt]he|[Hh]is|[Hh]er|[Tt]heir|[Mm]y|[Ss]ome)"
    sure = [noun for noun in often if re.search(rf"{article} {_ADJECTIVES}{noun}\b", story.text)]
    return sorted(sure, key=lambda noun: (-total[noun], noun))


def cast(story: Story) -> list[str] | None:
    """Everyone who matters in the story, as one would list them; None unless the rules are sure of it."""
    present = names(story)
    known = {character.name: character for character in named_characters(story)}
    kinds = [
        *_KIND_BEFORE.findall(story.text),
        *((noun, name) for name, noun in _KIND_AFTER.findall(story.text)),
    ]
    for noun, name in kinds:
        if name in present:
            known.setdefault(name, Character(noun, with_article(noun), name))
    nouns = words.CHARACTERS - {character.noun for character in known.values()}
    others = [noun for noun in sorted(nouns) if story.words.count(noun) >= 2]
    if _someone_else(story, present) or (others and len(known) < len(present)):
        return None
    found = {known[name].in_full if name in known else name: story.text.index(name) for name in present}
    found |= {
        with_article(noun): m.start() for noun in others if (m := re.search(rf"\b{noun}\b", story.text))
    }
    for match in _PARENT.finditer(story.text):
        if story.words.count(match[2]) >= 2:
            found.setdefault(match[0], match.start())
    in_order = sorted(found, key=lambda phrase: found[phrase])
    if not in_order or len(in_order) > 4 or found[in_order[0]] > story.ends[min(1, len(story.ends) - 1)]:
        return None
    return in_order


def _someone_else(story: Story, present: Iterable[str]) -> bool:
    """Whether someone may be in the story whom the rules do not see: a crowd, friends, a talking tree."""
    crowds = [noun for noun in words.CHARACTERS if plural(noun) != noun]
    owned = {parent for _, parent in _PARENT.findall(story.text)}
    return (
        any(re.search(rf"\b{name.lower()}\b", story.text) for name in present)  # is Spot a dog or a spot?
        or any(story.words.count(plural(noun)) >= 2 for noun in crowds)
        or any(story.words.count(word) >= 2 for word in words.KIN)
        or any(story.words.count(word) >= 2 and word not in owned for word in _PARENTS)
        or re.search(rf"{_MANY}{_ADJECTIVES}(?:{_NOUN})\b", story.text) is not None
        or _TALKING_THING.search(story.text) is not None
    )


def _naming(story: Story) -> Iterator[Fact]:
    """Questions about a name: only where one, and only one, of its kind is in the story."""
    characters = named_characters(story)
    for character in characters:
        noun, name = character.noun, str(character.name)
        alone = sum(other.noun == noun for other in characters) == 1 and plural(noun) not in story.words
        if alone and not re.search(rf"{_MANY}{_ADJECTIVES}{noun}\b", story.text):
            yield Fact("name_of", {"noun": noun, "name": name})
        yield Fact("who_is", {"name": name, "phrase": character.phrase})
        if noun in words.ANIMALS:
            yield Fact("animal", {"name": name, "noun": with_article(noun)})


def _where(story: Story) -> Iterator[Fact]:
    places = [place for place in words.PLACES if place in story.words or plural(place) in story.words]
    if len(places) == 1 and re.search(
        rf"\b(?:in|to|at|on|into|through|by|near) (?:the|a) {places[0]}\b", story.text
    ):
        yield Fact("where", {"place": words.PLACES[places[0]]})


def _colors(story: Story) -> Iterator[Fact]:
    colors = "|".join(sorted(words.COLORS))
    pairs = re.findall(
        rf"\b({colors}),? (?:[a-z]+ )?({'|'.join(sorted(words.THINGS | words.ANIMALS))})\b", story.text
    )
    for noun in sorted({noun for _, noun in pairs}):
        unclear = re.search(rf"{_MANY}{_ADJECTIVES}{noun}\b|\b(?:{colors}),? (?:and|or) ", story.text)
        shades = {color for color, other in pairs if other == noun}
        if (
            len(shades) == 1
            and story.words.count(noun) >= 2
            and plural(noun) not in story.words
            and not unclear
        ):
            yield Fact("color", {"noun": noun, "color": shades.pop()})


def _deeds(story: Story) -> Iterator[Fact]:
    """What someone loved to do, saw or found, when the story says so exactly once."""
    characters = named_characters(story)
    found: dict[tuple[str, str], list[str]] = {}
    for before, sentence in zip(("", *story.sentences), story.sentences, strict=False):
        match = re.match(r"(\w+) (loved|liked|wanted) to ([a-z](?:(?! but )[^.!?,\"]){4,60})[.!]$", sentence)
        if match:
            who = match[1]
            if who in ("He", "She", "It") and len(characters) == 1 and str(characters[0].name) in before:
                who = str(characters[0].name)
            found.setdefault((who, match[2]), []).append(match[3])
        match = re.match(
            rf"(?:One day, |Then, |Suddenly, )?([A-Z]\w+) ({'|'.join(_SEEN)}) (an? [^.!?,\"]{{3,50}})[.!]$",
            sentence,
        )
        if match:
            found.setdefault((match[1], match[2]), []).append(match[3])
    for (who, verb), what in found.items():
        if len(what) == 1 and who in names(story):
            kind, base = (
                ("saw", _SEEN[verb])
                if verb in _SEEN
                else ("loved", verb.removesuffix("d" if verb != "wanted" else "ed"))
            )
            yield Fact(kind, {"name": who, "verb": verb, "base": base, "what": what[0]})


def _borders(story: Story) -> Iterator[Fact]:
    """How it begins and ends, and what was learned: sentences of the story itself."""
    sentences = [s for s in story.sentences if not re.match(r"the end\W*$", s, re.IGNORECASE)]
    if len(sentences) < 4:
        return
    ending = sentences[-1] if len(sentences[-1]) > 60 else f"{sentences[-2]} {sentences[-1]}"
    if len(ending) <= 240 and '"' not in ending:
        yield Fact("ending", {"text": ending})
    if len(sentences[0]) <= 200 and '"' not in sentences[0]:
        yield Fact("beginning", {"text": sentences[0]})
    lessons = [
        s for s in sentences if re.search(r"\b(?:learned (?:that|to|how|a)|moral of)\b", s) and '"' not in s
    ]
    if len(lessons) == 1 and len(lessons[0]) <= 240:
        yield Fact("lesson", {"text": lessons[0]})
    tail = " ".join(sentences[-3:])
    felt = re.findall(
        rf"\b([A-Z][a-z]+) (?:was|felt) (?:so |very |really )?({'|'.join(sorted(words.FEELINGS))})\b", tail
    )
    moods = words.FEELINGS & set(re.findall(r"[a-z]+", tail))
    if len(felt) == 1 and len(moods) == 1 and felt[0][0] in names(story):
        yield Fact("feeling", {"name": felt[0][0], "feeling": felt[0][1]})


def title_of(story: Story) -> str | None:
    """A title that names hero and thing ("Max and the Ball"), or a hero without a name ("The Brave Bear")."""
    if story.title and re.fullmatch(r"[A-Z][A-Za-z' ]+", story.title):
        return story.title
    hero = unnamed_hero(story)
    if hero:
        inner = hero.phrase.split(" ", 1)[1].replace(",", "")
        return "The " + " ".join(word.capitalize() for word in inner.split())
    main = [name for name, count in names(story).items() if count >= 3]
    kinds = {character.name: character.noun for character in named_characters(story)}
    sure = words.THINGS | words.ANIMALS if all(name in kinds for name in names(story)) else words.THINGS
    things = [noun for noun in topics(story) if noun in sure and noun not in kinds.values()]
    if not 1 <= len(main) <= 2 or not things:
        return None
    return f"{', '.join(main)} and the {things[0].capitalize()}"


def about(story: Story) -> str | None:
    """`a little girl named Lily and a ball`: the hero in full, and the thing mentioned most."""
    characters = named_characters(story)
    hero = characters[0] if len(characters) == 1 else unnamed_hero(story)
    first = story.sentences[0]
    if hero is None or not (hero.noun in first or (hero.name and hero.name in first)):
        return None
    things = [noun for noun in topics(story) if noun in words.THINGS | words.ANIMALS and noun != hero.noun]
    return listing([hero.in_full, *map(with_article, things[:1])])


def facts(story: Story, rng: random.Random) -> list[Fact]:
    """All facts that the rules find; `rng` only chooses what to ask for that is *not* in the story."""
    found = [*_naming(story), *_where(story), *_colors(story), *_deeds(story), *_borders(story)]
    people = cast(story)
    if people:
        found.append(Fact("who", {"who": listing(people)}))
    if title := title_of(story):
        found.append(Fact("title", {"title": title}))
    if subject := about(story):
        found.append(Fact("about", {"about": subject}))
    mentioned = {noun for noun in words.TOPICS if {noun, plural(noun)} & set(story.words)}
    near = mentioned.union(*(group for group in _ALIKE if group & mentioned))
    present = [noun for noun in topics(story) if noun in words.ANIMALS | words.THINGS]
    if present:
        found.append(Fact("present", {"noun": with_article(rng.choice(present))}))
    absent = sorted((words.ANIMALS & words.TOPICS) - near)
    found.append(Fact("absent", {"noun": with_article(rng.choice(absent))}))
    return found
