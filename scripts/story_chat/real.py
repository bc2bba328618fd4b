"""A few real conversations from open collections, after a hard filter.

Most of what people say in those collections is about football teams, films and their own lives, or comes
from a bot that claims to be another. What may stay: the first exchange, short, in words that the stories
know, and without a claim that a small story model could not make.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from story_chat.dialogue import Dialogue

_FEWEST_MENTIONS = 12
_MOST_WORDS = 18
_CLAIMS = re.compile(
    r"\b(?:football|soccer|sports|team|season|watch|play|pool|swim|pets?|dogs?|dancing|rock|country|radio|"
    r"computer|robot|human|people|house|I have|move|walk|eat|money|paid|metal|born|eyes?|news|life|joke|"
    r"feelings?|evening|tonight|amazing|interesting|morning to you)\b|\d|[^\x00-\x7f]|_|http",
    re.IGNORECASE,
)


def vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """The words that at least a dozen stories know."""
    stories_with: Counter[str] = Counter()
    for text in texts:
        stories_with.update(set(re.findall(r"[a-z']+", text.lower())))
    return frozenset(word for word, count in stories_with.items() if count >= _FEWEST_MENTIONS)


def tidy(text: str) -> str:
    """Spacing before marks, a capital at the beginning, I instead of i, a mark at the end."""
    clean = re.sub(r"\s+([.,!?])", r"\1", " ".join(text.split()))
    clean = re.sub(r"\bi\b", "I", clean)
    clean = re.sub(r"([.!?]) ([a-z])", lambda m: f"{m[1]} {m[2].upper()}", clean[0].upper() + clean[1:])
    clean = re.sub(r"([.!?])[.!?]+", r"\1", clean).rstrip(" ,;-")
    if clean[-1] in ".!?":
        return clean
    return clean + ("?" if re.search(r"\b(?:you|yourself)$", clean) and "thank" not in clean.lower() else ".")


def conversations(rows: Iterable[dict[str, Any]], known: frozenset[str]) -> Iterator[Dialogue]:
    """The first exchange of each row that passes the filter; none twice."""
    seen: set[tuple[str, str]] = set()
    for row in rows:
        messages = row["messages"]
        whole = row["source"] == "topical-chat" or len(messages) == 2
        if not whole or messages[0]["role"] != "user":
            continue
        user, reply = (m["content"] for m in messages[:2])
        both = re.findall(r"[a-z']+", f"{user} {reply}".lower())
        plain = known.issuperset(both) and not _CLAIMS.search(f"{user} {reply}")
        if not plain or max(len(user.split()), len(reply.split())) > _MOST_WORDS or len(reply.split()) < 2:
            continue
        pair = tidy(user), tidy(reply)
        if pair not in seen:
            seen.add(pair)
            dialogue = Dialogue("real", row["source"])
            dialogue.turn(*pair)
            yield dialogue
