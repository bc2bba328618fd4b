"""Run folders whose models say exactly what a test wants; see tests/helpers/chain_runs.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
from chain_runs import Said, chain_run

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run(text) makes a run whose model says `text`, in which no character must come twice.

    For a model that calls a tool, it is a list of texts and of the marks' ids: what it says behind the answer
    follows after END_OF_CALL, END_OF_RESPONSE.
    """

    def make(text: Said, stage: str = "sft", ends: bool = True, context: int = 256) -> Path:
        return chain_run(tmp_path, text, [stage], ends, context)

    return make
