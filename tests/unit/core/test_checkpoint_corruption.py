"""Two hundred seeded corruptions of a checkpoint: each is found. `benchmarks/corrupt.py` makes thousands."""

import importlib.util
from collections import Counter
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "corrupt.py"


def test_every_corruption_is_found_and_the_step_before_is_taken(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_of_corruptions", SCRIPT)
    assert spec and spec.loader
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    found, missed = bench.corrupted(tmp_path, times=200, seed=1)
    assert missed == Counter()
    assert found.total() == 200
    assert set(found) == set(bench.KINDS), "every kind has come up"
