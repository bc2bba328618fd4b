"""A recipe against a server that behaves as a test says."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from odd_endpoint import OddEndpoint, Script, odd_endpoint

from pilgrim.core.console import Console
from pilgrim.stages.synth import synthesize

RECIPE = """
out = "{out}"
wanted = 8
[endpoint]
url = "{url}"
model = "m"
wait_s = 0.001
tries = 4
price_in = 1.0
price_out = 2.0
[slots.topic]
values = ["dogs", "rain", "kites", "soup"]
[slots.style]
values = ["short", "long", "odd"]
[[prompts]]
id = "tale"
turns = ["Write a {{style}} tale of {{topic}}."]
"""


@pytest.fixture
def served() -> Iterator[Callable[[Script], OddEndpoint]]:
    """served(script) starts a server."""
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(odd_endpoint(script))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """make(url, "wanted=3") runs the recipe; what comes out is in tmp_path / "out"."""

    def call(url: str, *overrides: str, more: str = "", consent: bool = True) -> dict[str, Any]:
        file = tmp_path / "recipe.toml"
        file.write_text(RECIPE.format(out=tmp_path / "out", url=url) + more)
        return synthesize(file, list(overrides), lambda question: consent, Console(quiet=True))

    return call
