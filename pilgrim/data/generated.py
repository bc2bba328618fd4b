"""Conversations that are made, not read: about the letters of words, and about who the model is.

**Spelling and counting.** Tokens hide their letters, so how a word is spelled is something to be learned word
by word (nanochat's SpellingBee and SimpleSpelling tasks do that). Half of the rows ask for a word's letters,
half how often one of them occurs, which is answered by spelling first and then asking the calculator. Any
text can be the word list. Words that the bundled evaluation asks about (assets/evals/chat/spelling) are left
out, so that it measures spelling and not memory.

**Identity.** Whatever the training data say, a model is asked who it is, and a base model answers with what
the internet says of others. A name, a maker and a sentence, in questions and answers of many wordings, settle
it.

Both are functions of a seed.
"""

import itertools
import random
import re
from collections.abc import Iterator, Sequence

from pilgrim.core.errors import DataError
from pilgrim.core.files import read_jsonl_zst
from pilgrim.data.adapters import Messages, calling
from pilgrim.data.questions import count_letter, letters_of, spell
from pilgrim.data.sources import find, read_documents

HELD_OUT = "assets:evals/chat/spelling/test.jsonl.zst"

COUNT = (  # the first is how the evaluation asks
    count_letter,
    lambda letter, word: f"How many {letter} are in {word}?",
    lambda letter, word: f'Count the letter "{letter}" in "{word}".',
    lambda letter, word: f"how often is there an {letter} in the word {word}",
)
SPELL = (
    spell,
    lambda word: f"How do you spell {word}?",
    lambda word: f'Which letters is "{word}" made of?',
)

WHO = ("Who are you?", "What is your name?", "What are you called?", "who am I talking to?", "And you are?")
GREETINGS = ("Hi!", "Hello", "Hey there.", "Good morning!", "hi, who is this?")
MAKERS = ("Who made you?", "Who built you?", "Who trained you?", "Where do you come from?")
WHAT = ("What are you?", "Are you a human?", "Are you ChatGPT?", "Tell me about yourself.", "Are you real?")
OPENINGS = ("", "", "Hi! ", "Hello. ", "Excuse me. ", "One question: ")


def words_of(files: Sequence[str]) -> list[str]:
    """The distinct words of 3 to 15 letters a-z in text files, sorted, without those of the evaluation.

    Raises DataError if fewer than ten are left.
    """
    held_out = {row["word"] for _, row in read_jsonl_zst(find(HELD_OUT))}
    found: set[str] = set()
    for text in read_documents(files):
        found.update(re.findall(r"(?<![\w'’])[a-z]{3,15}(?![\w'’])", text.text))
    words = sorted(found - held_out)
    if len(words) < 10:
        raise DataError(
            f"{', '.join(files)}: {len(words)} words of 3 to 15 small letters are too few to learn spelling "
            "from; name a word list, or files with more text"
        )
    return words


def spelling(words: list[str], rows: int, seed: int) -> Iterator[Messages]:
    """`rows` conversations about words drawn from `words`: counting and spelling in turns."""
    random_of = random.Random(f"spelling {seed}")
    for number in range(rows):
        word = random_of.choice(words)
        if number % 2:
            yield _asked(random_of.choice(SPELL)(word), letters_of(word))
            continue
        # Of four counts one is of a letter that may not occur at all.
        letter = random_of.choice(word if random_of.random() < 0.75 else "abcdefghijklmnopqrstuvwxyz")
        count = str(word.count(letter))
        texts = [f"{word} is spelled {letters_of(word)}. Counted: ", f"\n#### {count}"]
        question = random_of.choice(COUNT)(letter, word)
        yield [
            {"role": "user", "content": question},
            *calling(texts, [(f'"{word}".count("{letter}")', count)]),
        ]


def identity(name: str, maker: str, about: str, rows: int | None, seed: int) -> Iterator[Messages]:
    """Conversations of one or two turns about who the model is, all different; None: all there are."""
    who = (
        f"I am {name}.",
        f"My name is {name}.",
        f"I'm {name}, and happy to talk.",
        f"You can call me {name}.",
    )
    made = (
        f"I was made by {maker}.",
        f"{maker[:1].upper()}{maker[1:]} made me.",
        f"I am the work of {maker}.",
    )
    what = (f"I am {name}. {about}", f"{about} My name is {name}.", about)
    hello = (f"Hello! I am {name}. How can I help?", f"Hi! This is {name}. What can I do for you?")
    pairs = [
        *itertools.product(WHO, who),
        *itertools.product(MAKERS, made),
        *itertools.product(WHAT, what),
        *itertools.product(GREETINGS, hello),
    ]
    wordings = [(f"{opening}{q}", a) for opening in dict.fromkeys(OPENINGS) for q, a in pairs]
    random_of = random.Random(f"identity {seed}")
    random_of.shuffle(wordings)
    for question, answer in wordings[:rows]:
        messages = _asked(question, answer)
        if random_of.random() < 0.25:  # and once more, in the middle of a conversation
            messages += _asked(*random_of.choice(pairs))
        yield messages


def _asked(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
