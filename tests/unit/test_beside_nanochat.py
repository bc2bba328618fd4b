"""The nanochat benchmark: what it says without a checkout, and the parts that are written anew for it."""

import importlib.util
import subprocess
import sys
from itertools import chain, islice, repeat
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "beside_nanochat.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_nanochat", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def document(length: int, mark: int) -> list[int]:
    """A beginning (0) and `length` - 1 times the same id."""
    return [0] + [mark] * (length - 1)


def test_a_folder_without_nanochat_gets_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--repo", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert done.returncode == 1
    assert done.stderr.startswith(f"--repo {tmp_path}: there is no nanochat/gpt.py; git clone ")
    assert done.stderr.count("\n") == 1


def test_the_longest_that_fits_goes_first_and_the_shortest_is_cropped(bench: ModuleType) -> None:
    documents = [document(4, 4), document(6, 6), document(20, 20), document(5, 5)]
    assert list(bench.best_fit_rows(documents, 10)) == [
        document(6, 6) + document(4, 4),
        document(5, 5) + document(20, 20)[:5],
    ]


def test_rows_are_full_and_begin_with_a_beginning(bench: ModuleType) -> None:
    documents = [document(3 + n * 7 % 23, 1 + n) for n in range(50)]
    rows = list(islice(bench.best_fit_rows(chain.from_iterable(repeat(documents)), 16), 200))
    assert all(len(row) == 16 and row[0] == 0 for row in rows)


def test_whole_documents_have_every_token_as_a_target_once(bench: ModuleType) -> None:
    documents = [list(range(10, 10 + n)) for n in (3, 8, 9, 21)]
    inputs, targets = bench.whole_batch(documents, 8, end_id=0)
    found = targets[targets != bench.IGNORED].tolist()
    assert found == [target for ids in documents for target in [*ids[1:], 0]]
    assert inputs[2].tolist() == documents[2][:8]  # a long one is cut, without overlap
    assert inputs[3].tolist() == [documents[2][8]] + [0] * 7


def test_the_schedule_is_nanochats(bench: ModuleType) -> None:
    assert bench.schedule(0, 300) == (1 / 40, 0.85, 1.0)
    assert bench.schedule(105, 300)[0] == 1.0
    rate, momentum, decay = bench.schedule(299, 300)
    assert rate == pytest.approx(0.05 + 0.95 / 195)
    assert momentum == pytest.approx(0.85 + 0.12 * 299 / 400)
    assert decay == pytest.approx(0, abs=1e-4)
    assert bench.schedule(999, 1000)[1] == pytest.approx(0.97 - 0.07 * 649 / 650)
    assert bench.rates(8192, 4)["matrix_lr"] == pytest.approx(0.02 * 4 / 8)
