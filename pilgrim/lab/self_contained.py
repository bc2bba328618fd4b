"""Pages that are one file: style and scripts put inside, nothing loaded, nothing allowed that isn't named.

The report of a run and the page of a profile are both made here. What stands on them may come from anywhere
(a model's words, a kernel's name), so three walls keep it text: the template engine escapes whatever isn't
`Markup`; JSON within a page writes `<`, `>` and `&` as `\\u003c` and so on (htmlsafe_json_dumps); and the
page's Content-Security-Policy admits no network at all, and no style or script but those whose sha256 it
names.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pilgrim.lab.report_text import clock, compact, duration, number, percent, plain

ASSETS = "report_assets"  # templates, styles and scripts of all pages lie together, since they share them
FILTERS: dict[str, Callable[..., Any]] = {
    "clock": clock,
    "compact": compact,
    "duration": duration,
    "number": number,
    "percent": percent,
    "plain": plain,
}


def page(
    template: str,
    values: dict[str, Any],
    styles: Sequence[str],
    scripts: Sequence[str],
    filters: dict[str, Callable[..., Any]] | None = None,
) -> str:
    """The HTML of `template`, with these style sheets and scripts put inside, in that order."""
    style, script = ("".join(map(_asset, names)) for names in (styles, scripts))
    environment = Environment(
        loader=PackageLoader("pilgrim.lab", ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS | (filters or {})
    inside = {"style": style, "script": script, "policy": _policy(style, script)}
    return environment.get_template(template).render(values | inside)


def _asset(name: str) -> str:
    """One of the files that lie beside the templates."""
    return resources.files("pilgrim.lab").joinpath(ASSETS, name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy that allows this style, this script, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
