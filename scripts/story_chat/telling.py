"""Conversations in which a story is told, told in two parts, gone on with, or carried one step further.

The request names something that is true of the story (its animal, its hero, its words), so the model learns
to listen to the request; and the reply ends where the story ends, so it learns to stop.
"""

import re
from collections.abc import Callable

from story_chat import words
from story_chat.dialogue import MOST_REPLY_BYTES, Dialogue
from story_chat.facts import (
    facts,
    listing,
    named_characters,
    names,
    plural,
    title_of,
    topics,
    unnamed_hero,
    with_article,
)
from story_chat.phrases import Speaker
from story_chat.story import Story

_HAPPY_END = re.compile(r"\b(?:happy|happily|smiled|laughed|friends|fun|proud|best day|glad|loved)\b")
_UNHAPPY_END = re.compile(
    r"\b(?:sad|cried|never|lost|alone|broken|sorry|scared|hurt|not|gone|angry|but)\b|n't\b"
)
_INTRO_SHARE = 0.25


def _by_topic(story: Story, speaker: Speaker) -> tuple[str, str] | None:
    found = [t for t in topics(story)[:2] if t not in ("girl", "boy", "man", "lady", "woman", "kid", "child")]
    if not found:
        return None
    noun = speaker.rng.choice(found)
    many = noun if noun in words.MASS_TOPICS else plural(noun)
    fields = {"topic": with_article(noun), "topics": many}
    return speaker.ask("tell.topic", **fields), speaker.answer("tell.topic", **fields)


def _by_hero(story: Story, speaker: Speaker) -> tuple[str, str] | None:
    characters = named_characters(story)
    hero = unnamed_hero(story)
    if characters and str(characters[0].name) in story.sentences[0]:
        fields = {"who": characters[0].in_full, "name": str(characters[0].name)}
    elif hero and hero.phrase.count(" ") >= 2:
        fields = {"who": hero.phrase, "name": "the " + hero.phrase.split(" ", 1)[1]}
    else:
        return None
    return speaker.ask("tell.who", **fields), speaker.answer("tell.who", **fields)


def _by_name(story: Story, speaker: Speaker) -> tuple[str, str] | None:
    main = [name for name, count in names(story).items() if count >= 4]
    if not main:
        return None
    return speaker.ask("tell.name", name=main[0]), speaker.answer("tell.name", name=main[0])


def _by_words(story: Story, speaker: Speaker) -> tuple[str, str] | None:
    nouns = [noun for noun in words.TOPICS | set(words.PLACES) if noun in story.words]
    if len(nouns) < 3:
        return None
    chosen = speaker.rng.sample(sorted(nouns), 3)
    return speaker.ask("tell.words", words=listing(chosen)), ""


def _by_title(story: Story, speaker: Speaker) -> tuple[str, str] | None:
    title = title_of(story)
    return (speaker.ask("tell.title", title=title), "") if title else None


def _by_length(story: Story, speaker: Speaker) -> tuple[str, str] | None:
    return (speaker.ask("tell.short"), "") if story.size <= 450 else None


def _by_ending(story: Story, speaker: Speaker) -> tuple[str, str] | None:
    end = " ".join(story.sentences[-2:])
    happy = _HAPPY_END.search(end) and not _UNHAPPY_END.search(end)
    return (speaker.ask("tell.happy"), "") if happy else None


def _plainly(story: Story, speaker: Speaker) -> tuple[str, str] | None:
    return speaker.ask("tell.plain"), ""


_Request = Callable[[Story, Speaker], tuple[str, str] | None]
_REQUESTS: dict[str, tuple[_Request, int]] = {
    "tell.topic": (_by_topic, 8),
    "tell.who": (_by_hero, 6),
    "tell.name": (_by_name, 2),
    "tell.words": (_by_words, 3),
    "tell.title": (_by_title, 2),
    "tell.short": (_by_length, 3),
    "tell.happy": (_by_ending, 1),
    "tell.plain": (_plainly, 3),
}


_FOR_HALVES = ("tell.topic", "tell.who", "tell.plain")  # what a first half can already fulfil


def request(
    story: Story, speaker: Speaker, kinds: tuple[str, ...] = tuple(_REQUESTS)
) -> tuple[str, str, str]:
    """(kind, what the person asks, how the reply may begin): a request that this story fulfils."""
    while True:
        kind = speaker.rng.choices(kinds, [_REQUESTS[kind][1] for kind in kinds])[0]
        made = _REQUESTS[kind][0](story, speaker)
        if made:
            return kind, *made


def tell(story: Story, speaker: Speaker) -> Dialogue | None:
    """The whole story in one reply; None if it is too long for one."""
    text = story.shortened(MOST_REPLY_BYTES)
    if text is None:
        return None
    told = Story(text, story.source, story.title)
    kind, ask, intro = request(told, speaker)
    if intro and speaker.rng.random() < _INTRO_SHARE and len(intro) + len(text) + 2 <= MOST_REPLY_BYTES:
        text = f"{intro}\n\n{text}"
    dialogue = Dialogue(kind, story.source)
    dialogue.turn(ask, text)
    return dialogue


def tell_in_parts(story: Story, speaker: Speaker) -> Dialogue | None:
    """A longer story: its first half and the question whether to go on, then the second half."""
    parts = story.in_two_parts(MOST_REPLY_BYTES - 50)
    if parts is None:
        return None
    _, ask, _ = request(Story(parts[0], story.source), speaker, _FOR_HALVES)
    dialogue = Dialogue("go_on", story.source)
    dialogue.turn(ask, f"{parts[0]}\n\n{speaker.answer('part.more')}")
    dialogue.turn(speaker.ask("part.more"), parts[1])
    return dialogue


def continue_story(story: Story, speaker: Speaker) -> Dialogue | None:
    """The person gives the opening, the model tells the rest."""
    found = list(story.openings(MOST_REPLY_BYTES))
    if not found:
        return None
    opening, rest = speaker.rng.choice(found)
    dialogue = Dialogue("continue", story.source)
    dialogue.turn(speaker.ask("continue", opening=opening), rest)
    return dialogue


def next_step(story: Story, speaker: Speaker) -> Dialogue | None:
    """The person gives a piece of the story, the model the one or two sentences that follow."""
    sentences, ends = story.sentences, story.ends
    if len(sentences) < 8:
        return None
    first = speaker.rng.randrange(0, len(sentences) - 5)
    middle = first + speaker.rng.randint(2, 4)
    last = min(middle + speaker.rng.randint(1, 2), len(sentences) - 1)
    start = 0 if first == 0 else ends[first - 1]
    piece, following = story.text[start : ends[middle - 1]], story.text[ends[middle - 1] : ends[last - 1]]
    dialogue = Dialogue("next", story.source)
    dialogue.turn(speaker.ask("next", piece=piece.strip()), following.strip())
    return dialogue if 20 <= len(following) <= 300 and len(piece) <= 500 else None


def question(story: Story, speaker: Speaker, asked: set[str]) -> tuple[str, str] | None:
    """A question about the story and its true answer, of a kind not yet in `asked` (to which it is added)."""
    found = [fact for fact in facts(story, speaker.rng) if fact.kind not in asked]
    if not found:
        return None
    weights = [0.35 if fact.kind in ("beginning", "ending", "absent", "present") else 1.0 for fact in found]
    fact = speaker.rng.choices(found, weights)[0]
    asked.add(fact.kind)
    return speaker.ask(f"fact.{fact.kind}", **fact.fields), speaker.answer(f"fact.{fact.kind}", **fact.fields)


def talk_about(story: Story, speaker: Speaker) -> Dialogue | None:
    """The person brings a story and asks about it, once or twice."""
    if story.size > 800:
        return None
    asked: set[str] = set()
    first = question(story, speaker, asked)
    if first is None:
        return None
    dialogue = Dialogue("question", story.source)
    dialogue.turn(speaker.ask("paste", text=story.text, question=first[0]), first[1])
    while speaker.rng.random() < 0.5 and (more := question(story, speaker, asked)):
        dialogue.turn(*more)
    return dialogue
