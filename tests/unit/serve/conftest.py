"""Run folders whose models say exactly what a test wants; see tests/helpers/chain_runs.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
from chain_runs import chain_run

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run(text) makes a run whose model says `text`, in which no character must come twice."""

    def make(text: str, stage: str = "sft", ends: bool = True, context: int = 256) -> Path:
        return chain_run(tmp_path, text, [stage], ends, context)

    return make
