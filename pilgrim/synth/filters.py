"""Is a conversation worth keeping? Each check gives the reason why it isn't, or None.

They look at what the assistant says; calls of tools are not looked at. "Ends like a sentence" is a question
of the last sign: a full stop and what is like it in other scripts, a bracket, a quote, an end of code. A list
or a verse may end without one, so `filters.ends` can be turned off.
"""

import unicodedata
from collections.abc import Sequence

from pilgrim.core.errors import DataError
from pilgrim.evals.tasks.own import searched
from pilgrim.synth.answers import Wire
from pilgrim.synth.settings import FilterSettings
from pilgrim.text.chat import messages_from_row
from pilgrim.text.tokenizer import SPECIAL_TOKENS

ENDINGS = frozenset(".!?…。！？؟।;:)]}»”’\"'`*>~")


def reason_against(messages: Sequence[Wire], cut: bool, filters: FilterSettings) -> str | None:
    """Why the conversation can't be kept, in a few words; None if it can."""
    try:
        messages_from_row({"messages": list(messages)}, "it")
    except DataError as error:
        return f"no conversation: {error}"
    said = [str(m.get("content") or "").strip() for m in messages if m["role"] == "assistant"]
    spoken = [text for text in said if text]
    if not spoken or messages[-1]["role"] != "assistant" or not said[-1]:
        return "empty: the assistant says nothing"
    if cut and filters.ends:
        return "cut off: it was longer than max_tokens"
    users = sum(message["role"] == "user" for message in messages)
    if users < filters.least_turns:
        return f"few turns: {users}, less than {filters.least_turns}"
    return (
        _marks(spoken) or _lengths(spoken, filters) or _script(spoken, filters) or _patterns(spoken, filters)
    )


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
