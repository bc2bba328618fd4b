"""The closed lists of words.txt that the story rules rely on.

The rules in `facts` speak only about words listed there. A closed list finds less than a tagger would, and is
wrong far less often; what a tiny model learns from wrong answers it repeats for ever.
"""

from pathlib import Path


def _read(path: Path) -> dict[str, list[str]]:
    """Section name -> its lines. A heading is `## name (note)`."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("## "):
            lines = found.setdefault(line[3:].partition(" (")[0], [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return found


_SECTIONS = _read(Path(__file__).parent / "words.txt")


def _words(section: str) -> frozenset[str]:
    return frozenset(" ".join(_SECTIONS[section]).split())


def _pairs(section: str) -> dict[str, str]:
    return {left: right for left, _, right in (line.partition(": ") for line in _SECTIONS[section])}


PEOPLE, ANIMALS = _words("people"), _words("animals")
CHARACTERS = PEOPLE | ANIMALS
THINGS, MASS_TOPICS = _words("things"), _words("mass topics")
TOPICS = CHARACTERS | THINGS | MASS_TOPICS
PLACES = _pairs("places")
COLORS, FEELINGS = _words("colors"), _words("feelings")
KIN = _words("kin")
ADJECTIVES = _words("adjectives")
ALIKE = tuple(_SECTIONS["alike"])
NOT_NAMES = _words("not names")
UNKIND = _words("unkind")
POLITENESS = _words("politeness")
FRIENDS = tuple(" ".join(_SECTIONS["friends"]).split())
IRREGULAR_PLURALS = _pairs("plurals")
