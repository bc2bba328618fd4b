"""The benchmark of stages over seeds: means, intervals, and runs that can't be averaged."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import stages as bench

from pilgrim.core.errors import PilgrimError


def run(folder: Path, text: float, ended: float, n: int = 10) -> Path:
    """A run that was evaluated: bits per byte 1.0 before the last stage, and a share after it."""

    def values(**of: float) -> dict[str, Any]:
        return {stage: {"value": value, "n": n} for stage, value in of.items()}

    bits = {"name": "text", "kind": "bits", "main": True, "values": values(pretrain=1.0, sft=text)}
    share = {"name": "ended", "kind": "share", "main": False, "values": values(sft=ended), "changes": {}}
    bits["changes"] = {"sft": {"difference": text - 1.0}}
    (folder / "evaluate").mkdir(parents=True)
    result = {"stages": ["pretrain", "sft"], "measures": [bits, share]}
    (folder / "evaluate" / "stages.json").write_text(json.dumps(result))
    return folder


def test_means_and_their_intervals(tmp_path: Path) -> None:
    """Three runs: t is 4.303, and the interval s t / sqrt(3) to both sides."""
    mean, reach = bench.mean_and_reach([1.1, 1.2, 1.3])
    assert mean == pytest.approx(1.2)
    assert reach == pytest.approx(0.1 * 4.303 / math.sqrt(3))
    runs = [run(tmp_path / name, text, ended) for name, text, ended in (("a", 1.2, 0.9), ("b", 1.22, 1.0))]
    table = bench.table(bench.results_of(runs, ("behaviour",), None, again=False), main_only=False)
    assert table[2:] == [
        "| text | pretrain | 1.0000 | all alike | – | – |",
        "| text | sft | 1.2100 | 1.0829 to 1.3371 | **+0.2100** | +0.0829 to +0.3371 |",
        "| ended | sft | 95.0% | 31.5% to 100.0% | – | – |",
    ]
    results = bench.results_of(runs, ("behaviour",), None, again=False)
    assert len(bench.table(results, main_only=True)) == 2 + 2


def test_what_was_asked_otherwise_is_not_averaged(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", 1.2, 0.9), run(tmp_path / "b", 1.2, 0.9, n=11)]
    with pytest.raises(PilgrimError, match=r"b was asked other questions, or has other stages, than .*; add"):
        bench.results_of(runs, ("behaviour",), None, again=False)
