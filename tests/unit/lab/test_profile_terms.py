"""The glossary: every term is found however it is written, fits a terminal, and leads only to others that
exist."""

import pytest

from pilgrim.core.errors import PilgrimError
from pilgrim.lab.profile.findings import LOSSES
from pilgrim.lab.profile.glossary import Term
from pilgrim.lab.profile.terms import TERMS, WIDTH, as_text, explain, find, identifier, plainly
from pilgrim.lab.profile.words import IN_SHORT, NAMES, title


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_an_entry_is_short_and_leads_to_others(term: Term) -> None:
    lines = as_text(term).splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    body = [line for line in lines[1:] if not line.startswith("  See also")]
    assert 3 <= len(body) <= 8
    for other in term.related:
        found = find(other)
        assert found is not None and found.name == other != term.name


def test_names_lead_to_one_entry_only() -> None:
    named = [(plainly(name), term.name) for term in TERMS for name in {term.name, *term.also}]
    homes = {spelling: {home for s, home in named if s == spelling} for spelling, _ in named}
    assert {spelling: found for spelling, found in homes.items() if len(found) > 1} == {}
    assert len({identifier(term) for term in TERMS}) == len(TERMS)


def test_every_stair_and_phase_has_an_entry() -> None:
    for name in (*LOSSES, "achieved", "data", "forward", "backward", "optimizer", "sync"):
        assert find(name) is not None, name
    for name in (*LOSSES, "achieved"):
        assert find(title(name)) is not None and IN_SHORT[name] and NAMES[name]


@pytest.mark.parametrize("written", ["graph break", "Graph breaks", "graph_break", "GRAPH-BREAKS"])
def test_spelling_does_not_matter(written: str) -> None:
    assert explain(written).startswith("graph break\n")


@pytest.mark.parametrize("written", ["all", "list", "", " "])
def test_all_terms_are_listed(written: str) -> None:
    listed = " ".join(explain(written).split())
    assert [term.name for term in TERMS if term.name not in listed] == []


def test_an_unknown_term_leads_to_the_nearest() -> None:
    with pytest.raises(PilgrimError, match=r"--explain roofing: .*roofline.*--explain all"):
        explain("roofing")
    with pytest.raises(PilgrimError, match="nothing known is like it"):
        explain("qqqqqq")
