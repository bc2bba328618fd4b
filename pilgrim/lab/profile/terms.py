"""The glossary behind `pilgrim profile --explain TERM`, and behind the dotted words of the page.

A term is found by its name or by any other that people use for it, however it is spelled: "graph_breaks",
"Graph break" and "graph-break" are one. What isn't found leads to the nearest known terms (difflib's
measure of similarity), never to a guess printed as if it were the answer.
"""

import difflib
import re
import textwrap

from pilgrim.core.errors import PilgrimError
from pilgrim.lab.profile.glossary import CHAPTERS, Term

WIDTH = 80  # columns of a terminal
ALL = "all"  # `--explain all` lists the terms
TERMS = tuple(term for chapter in CHAPTERS for term in chapter.terms)


def explain(term: str) -> str:
    """What `term` means, as text for a terminal; the list of all terms for "all".

    Raises PilgrimError for an unknown term, with the nearest known ones.
    """
    if plainly(term) in ("", ALL, "list"):
        return listing()
    found = find(term)
    if found is None:
        raise PilgrimError(
            f"--explain {term}: no such term; {_nearest(term)}; --explain {ALL} lists all of them"
        )
    return as_text(found)


def find(term: str) -> Term | None:
    """The entry that `term` names, in any spelling."""
    return _spellings().get(plainly(term))


def as_text(term: Term) -> str:
    """A term in a few lines of at most WIDTH columns."""
    parts = [term.what, f"In a profile: {term.see}", f"What to do: {term.do}"]
    lines = [term.name, *(line for part in parts for line in _wrapped(part))]
    if term.related:
        lines += _wrapped(f"See also: {', '.join(term.related)}.")
    return "\n".join(lines)


def listing() -> str:
    """All terms, by chapter."""
    lines = ["pilgrim profile --explain TERM explains one of these:"]
    for chapter in CHAPTERS:
        lines += ["", chapter.title, *_wrapped(", ".join(term.name for term in chapter.terms))]
    return "\n".join(lines)


def plainly(term: str) -> str:
    """A term without what people write differently: case, spaces, hyphens, underscores, a final s."""
    return re.sub(r"[\s_-]+", "", term.casefold()).removesuffix("s")


def identifier(term: Term) -> str:
    """The name of a term's place on the page: "term-graph-break"."""
    return "term-" + re.sub(r"[^a-z0-9]+", "-", term.name.casefold()).strip("-")


def _spellings() -> dict[str, Term]:
    others = {plainly(name): term for term in TERMS for name in term.also}
    return others | {plainly(term.name): term for term in TERMS}


def _nearest(term: str) -> str:
    known = _spellings()
    close = difflib.get_close_matches(plainly(term), known, n=3, cutoff=0.55)
    names = list(dict.fromkeys(known[key].name for key in close))
    return f"the nearest known ones are {', '.join(names)}" if names else "nothing known is like it"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH - 2, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
