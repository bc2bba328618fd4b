"""A story as the builder sees it: clean text, cut into sentences, with its possible endings.

A sentence border inside quotes is none: cutting there would leave half a speech behind. Everything else here
asks one question: is this piece of text fit to be a whole reply?
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from story_chat import words

_TYPOGRAPHY = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "...", "\xa0": " "}
)
_SENTENCE_END = re.compile(r'(?<!Mr)(?<!Mrs)(?<!Ms)(?<!Dr)[.!?]+"?(?=\s+["A-Z])')
_SPEECH_TAG = re.compile(
    r"\s+(?:[A-Z]\w*|[Tt]he \w+|[Hh]is \w+|[Hh]er \w+|[Aa]n? \w+)(?: and (?:\w+ )?\w+)? "
    r"(?:said|says|asked|asks|shouted|replied|cried|called|yelled|exclaimed|answered|whispered|thought)\b"
)
_ENDING = re.compile(
    r"\b(?:the end|ever after|from that day|from then on|best friends|good friends|hugged|learned|"
    r"the best day|never forgot|always remember|lived happily|all day|every day|the moral|so much fun|"
    r"went home|(?:were|was|felt) (?:very |so )?(?:happy|proud))\b",
    re.IGNORECASE,
)
_FRAGMENT = re.compile(
    r"^(?:So|But|And|Then|He|She|They|His|Her|It(?! was a)|Suddenly|Finally|Later|After|However|That|"
    r"The(?! sun))\b"
)
_GRIM = re.compile(
    r"never (?:saw|seen|came|heard)\b.* again|n't save|ate (?:him|her|it|them) (?:up|all|for)|"
    r"took the (?:little )?(?:girl|boy) away"
)
_STORY_OPENING = re.compile(
    r"^(?:Once|One (?:day|sunny|morning|night|time)|There (?:was|were|lived)|Long ago|In a |A long time|"
    r"It was a)"
)


@dataclass(frozen=True)
class Story:
    """One document: `title` (only some sources have one), `text` without it, and where it comes from."""

    text: str
    source: str
    title: str | None = None

    @property
    def size(self) -> int:
        """Length in UTF-8 bytes."""
        return len(self.text.encode())

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Offsets in `text` just behind each sentence, the last being the end of the text."""
        found = []
        for match in _SENTENCE_END.finditer(self.text):
            inside_quotes = self.text.count('"', 0, match.end()) % 2 == 1
            spoken = match[0].endswith('"') and _SPEECH_TAG.match(self.text, match.end())
            if not inside_quotes and not spoken:
                found.append(match.end())
        return (*found, len(self.text))

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The text, sentence by sentence, without the white space between them."""
        starts = (0, *self.ends[:-1])
        return tuple(self.text[a:b].strip() for a, b in zip(starts, self.ends, strict=True))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Every word, lower-case, in order."""
        return tuple(re.findall(r"[a-z]+(?:'[a-z]+)?", self.text.lower()))

    def is_fit_to_tell(self) -> bool:
        """True if the text is whole, plain and kind enough for a reply."""
        return (
            self.text.isascii()
            and self.text.count('"') % 2 == 0
            and self.text[-1] in '.!?"'
            and self.text[0].isupper()
            and not _FRAGMENT.match(self.text)
            and not re.search(r"[\[\]{}*_<>|\\#@]|http|\d{3}|''|\s[.,!?]", self.text)
            and not words.UNKIND & set(self.words)
            and not _GRIM.search(self.text)
            and (self.source == "tinystories" or bool(_STORY_OPENING.match(self.text)))
        )

    def shortened(self, most_bytes: int) -> str | None:
        """The whole story if it has at most `most_bytes`, else cut behind a sentence that reads as an end.

        At most a fifth may be dropped: what is cut is the epilogue, never the plot. None if there is no such
        ending.
        """
        if self.size <= most_bytes:
            return self.text
        for sentence, end in reversed(list(zip(self.sentences, self.ends, strict=True))):
            if end > most_bytes or end < 0.8 * len(self.text):
                continue
            if _ENDING.search(sentence) and not sentence.endswith('?"'):
                return self.text[:end]
        return None

    def in_two_parts(self, most_bytes: int) -> tuple[str, str] | None:
        """Two halves of at most `most_bytes` each, cut at the paragraph border nearest to the middle."""
        borders = [m.start() for m in re.finditer(r"\n\n", self.text) if m.start() in self.ends]
        for border in sorted(borders, key=lambda b: abs(b - len(self.text) // 2)):
            parts = self.text[:border].strip(), self.text[border:].strip()
            if max(map(len, parts)) <= most_bytes and min(map(len, parts)) >= 150:
                return parts
        return None

    def openings(self, most_bytes: int) -> Iterator[tuple[str, str]]:
        """(opening, rest): the first sentences and what remains, for every rest of at most `most_bytes`."""
        for end in self.ends[:-1]:
            opening, rest = self.text[:end], self.text[end:].strip()
            if 30 <= len(opening) <= 420 and 120 <= len(rest) <= most_bytes:
                yield opening, rest


def read_story(text: str, source: str) -> Story:
    """A story from a row of the corpus: typography made plain, the title split off where there is one."""
    clean = "\n".join(" ".join(line.split()) for line in text.translate(_TYPOGRAPHY).strip().split("\n"))
    clean = re.sub(r"\n{2,}", "\n\n", clean)
    clean = re.sub(r"(?<=[a-z][.!?])(?=[A-Z][a-z])", " ", clean)
    if source == "tinystories":
        return Story(clean, source)
    title, _, rest = clean.partition("\n\n")
    return Story(rest.strip() or clean, source, title if rest and len(title) <= 40 else None)
