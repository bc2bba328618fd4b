"""Is a conversation worth keeping? Each check gives the reason why it isn't, or None.

They look at what the assistant says; calls of tools are not looked at. "Ends like a sentence" is a question
of the last sign: a full stop and what is like it in other scripts, a bracket, a quote, an end of code. A list
or a verse may end without one, so `filters.ends` can be turned off.
"""

import unicodedata
from collections.abc import Sequence

from pilgrim.core.errors import DataError
from pilgrim.data.conversations import conversation_of
from pilgrim.evals.tasks.own import searched
from pilgrim.synth.answers import Wire
from pilgrim.synth.settings import FilterSettings
from pilgrim.text.tokenizer import SPECIAL_TOKENS

ENDINGS = frozenset(".!?…。！？؟।;:)]}»”’\"'`*>~")


def reason_against(messages: Sequence[Wire], cut: bool, filters: FilterSettings) -> str | None:
    """Why the conversation can't be kept, in a few words; None if it can."""
    said = spoken_turns(messages)
    if not said or not all(said):
        return "empty: the assistant says nothing"
    try:
        conversation_of({"messages": list(messages)}, "it", "synth")
    except DataError as error:
        return f"no conversation: {error}"
    if cut and filters.ends:
        return "cut off: it was longer than max_tokens"
    users = sum(message["role"] == "user" for message in messages)
    if users < filters.least_turns:
        return f"few turns: {users}, less than {filters.least_turns}"
    return _marks(said) or _lengths(said, filters) or _script(said, filters) or _patterns(said, filters)


def spoken_turns(messages: Sequence[Wire]) -> list[str]:
    """The assistant's words of each turn; those before and after a call of a tool are one turn."""
    turns: list[str] = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        words = str(message.get("content") or "")
        if turns and messages[place - 1]["role"] in ("assistant", "tool"):
            turns[-1] += words
        else:
            turns.append(words)
    return [turn.strip() for turn in turns]


def _marks(said: Sequence[str]) -> str | None:
    """A writer that spells out the signs of a chat template has lost its way."""
    found = [mark for mark in SPECIAL_TOKENS for text in said if mark in text]
    return f"marks: it spells out {found[0]}" if found else None


def _lengths(said: Sequence[str], filters: FilterSettings) -> str | None:
    short, long = min(map(len, said)), max(map(len, said))
    if short < filters.least_chars:
        return f"short: {short} characters, less than {filters.least_chars}"
    if filters.most_chars is not None and long > filters.most_chars:
        return f"long: {long:,} characters, more than {filters.most_chars:,}"
    if filters.ends and any(text[-1] not in ENDINGS for text in said):
        return "no end: a message does not end like a sentence"
    return None


def _script(said: Sequence[str], filters: FilterSettings) -> str | None:
    if filters.script is None:
        return None
    letters = [sign for text in said for sign in text if sign.isalpha()]
    fitting = sum(unicodedata.name(sign, "").startswith(filters.script.upper()) for sign in letters)
    share = fitting / len(letters) if letters else 0.0
    return (
        f"script: {share:.0%} of the letters are {filters.script}" if share < filters.script_share else None
    )


def _patterns(said: Sequence[str], filters: FilterSettings) -> str | None:
    text = "\n\n".join(said)
    for pattern in filters.required:
        if not searched(pattern, text).right:
            return f"required: {pattern} is not in it"
    for pattern in filters.forbidden:
        found = searched(pattern, text)
        if found.right or found.note:
            return f"forbidden: {pattern}{': ' + found.note if found.note else ' is in it'}"
    return None
