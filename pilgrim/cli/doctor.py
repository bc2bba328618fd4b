"""`pilgrim doctor`: what this machine is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pilgrim.cli.base import app, guarded

if TYPE_CHECKING:
    from pilgrim.core.runtime import Fact


@app.command()
@guarded()
def doctor() -> None:
    """Look at this machine: what will be used, what will be slow, and what to do about it.

    Changes nothing. The same facts are kept with every run, in provenance.json.
    """
    from pilgrim.core.runtime import facts

    _show_facts(facts())


def _show_facts(facts: "Sequence[Fact]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colors = {"good": "green", "slow": "yellow", "bad": "bold red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("what", "found here", "verdict"):
        table.add_column(header, overflow="fold")
    for fact in facts:
        table.add_row(fact.name, Text(fact.value), Text(fact.verdict, style=colors[fact.verdict]))
    console = Console(highlight=False)
    console.print(table)
    value = {fact.name: fact.value for fact in facts}
    console.print(
        f"\nA run computes on {value['device']} in {value['dtype']}, torch.compile {value['compile']}.",
        markup=False,
    )
    for fact in facts:
        if fact.advice:
            console.print(
                Text.assemble((f"{fact.name}: ", colors[fact.verdict]), fact.advice), soft_wrap=True
            )
