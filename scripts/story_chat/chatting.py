"""Small talk, and longer conversations that mix it with stories.

Every phrase of the small-talk sections is asked several times and answered in different words: the model is
to learn the thought, not one sentence.
"""

from collections.abc import Iterator

from story_chat.dialogue import MOST_REPLY_BYTES, Dialogue
from story_chat.phrases import Speaker, group
from story_chat.story import Story
from story_chat.telling import question, tell
from story_chat.words import FRIENDS

BY_HAND = "pilgrim"  # the source of what was written for this project
NAME = "Pip"
TELLS_NAME = frozenset(f"identity.{what}" for what in ("name", "name_right", "not_name", "name_like"))


def exchange(section: str, speaker: Speaker) -> tuple[str, str]:
    """A question and an answer of a small-talk section, with the same name and numbers in both."""
    rng = speaker.rng
    fields = {"friend": rng.choice(FRIENDS), "a": str(rng.randint(2, 99)), "b": str(rng.randint(2, 30))}
    return speaker.ask(section, **fields), speaker.answer(section, **fields)


def small_talk(section: str, speaker: Speaker) -> Dialogue:
    """One exchange; after someone has given their name, sometimes the question what it was."""
    dialogue = Dialogue(section, BY_HAND)
    if section != "manners.my_name_is":
        dialogue.turn(*exchange(section, speaker))
        return dialogue
    friend = speaker.rng.choice(FRIENDS)
    for part in (section, "after.my_name")[: speaker.rng.randint(1, 2)]:
        dialogue.turn(speaker.ask(part, friend=friend), speaker.answer(part, friend=friend))
    return dialogue


def chain(speaker: Speaker) -> Dialogue:
    """Three to six exchanges of small talk, in an order that people might have."""
    rng = speaker.rng
    steps = ["manners.greeting"] if rng.random() < 0.6 else []
    steps += ["manners.how_are_you", "manners.user_fine"] if rng.random() < 0.4 else []
    light = [f"manners.{what}" for what in ("what_can_you_do", "joke", "about_user", "favorite", "praise")]
    middle = [*["identity.name"] * 3, *group("identity"), *group("limits"), *group("feelings"), *light]
    steps += rng.sample(middle, 2)
    steps.append(rng.choice([f"manners.{what}" for what in ("thanks", "goodbye", "good_night", "okay")]))
    dialogue = Dialogue("chain", BY_HAND)
    for step in dict.fromkeys(steps):
        dialogue.turn(*exchange(step, speaker))
    return dialogue


def story_hour(stories: Iterator[Story], speaker: Speaker) -> Dialogue | None:
    """A story and the talk around it: a greeting, questions, thanks, perhaps another story."""
    rng = speaker.rng
    story = next(stories)
    told = tell(story, speaker)
    if told is None:
        return None
    dialogue = Dialogue("story_hour", story.source)
    if rng.random() < 0.3:
        before = ["manners.greeting", "manners.how_are_you", "manners.my_name_is", "identity.name"]
        dialogue.turn(*exchange(rng.choice(before), speaker))
    dialogue.messages += told.messages
    heard = Story(str(story.shortened(MOST_REPLY_BYTES)), story.source, story.title)
    asked: set[str] = set()
    for _ in range(rng.choice([0, 1, 1, 2])):
        if more := question(heard, speaker, asked):
            dialogue.turn(*more)
    _afterwards(dialogue, heard, stories, speaker)
    return dialogue


def _afterwards(dialogue: Dialogue, heard: Story, stories: Iterator[Story], speaker: Speaker) -> None:
    """How the story hour ends: with thanks, a complaint, small talk, another story, or there and then."""
    rng = speaker.rng
    choice = rng.random()
    if choice < 0.3:
        dialogue.turn(speaker.ask("after.thanks"), speaker.answer("after.thanks"))
    elif choice < 0.36:
        dialogue.turn(speaker.ask("after.sad"), speaker.answer("after.sad"))
    elif choice < 0.46:
        light = ["identity.name", "manners.what_can_you_do", "manners.joke", "manners.goodbye"]
        dialogue.turn(*exchange(rng.choice([*light, *group("identity"), *group("limits")]), speaker))
    elif choice < 0.7:
        other = next(stories).shortened(MOST_REPLY_BYTES)
        if other and other != heard.text:
            shorter = len(other) < 0.8 * len(heard.text)
            dialogue.turn(speaker.ask("after.shorter" if shorter else "after.another"), other)
