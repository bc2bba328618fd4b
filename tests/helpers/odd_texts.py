"""Texts and conversations of what tokenizers stumble over: scripts, white space, signs, half a template."""

import random

from pilgrim.text.chat import Message

WORDS = ("Hello", " there", "Once upon a time", "it's", "I'LL", "1234", "x_y", "assistant", "user", "system")
SPACES = (
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n ",
    "\u00a0",
    "\u2028",
    "\x1c",
    "\x85",
    "\u200b",
    "\ufeff",
)
SIGNS = (
    "!",
    "...",
    "<|",
    "|>",
    "im_end",
    "</",
    "{{ messages }}",
    "{% if %}",
    "\\n",
    '"',
    "'",
    "&amp;",
    "\x00",
)
SCRIPTS = ("é", "e\u0301", "ﬁ", "Ω", "日本語", "한국어", "ไทย", "العربية", "שלום", "\u202eabc", "\U0001d518")
EMOJI = ("👩\u200d👩\u200d👧", "🇩🇪", "👍🏽", "\U0010ffff")
FRAGMENTS = (*WORDS, *SPACES, *SIGNS, *SCRIPTS, *EMOJI)


def odd_text(dice: random.Random, fragments: tuple[str, ...] = FRAGMENTS) -> str:
    longest = 400 if dice.random() < 0.03 else 8
    return "".join(dice.choices(fragments, k=dice.randint(0, longest)))


def odd_conversation(dice: random.Random, fragments: tuple[str, ...] = FRAGMENTS) -> list[Message]:
    """Ends with the assistant."""
    messages = [Message("system", odd_text(dice, fragments))] if dice.random() < 0.5 else []
    for _ in range(dice.randint(1, 4)):
        messages += [
            Message("user", odd_text(dice, fragments)),
            Message("assistant", odd_text(dice, fragments)),
        ]
    return messages
