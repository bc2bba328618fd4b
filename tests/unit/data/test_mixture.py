"""A mixture keeps its proportions, and goes on from any position to the same rows."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from pilgrim.core.config import build
from pilgrim.core.errors import SettingsError
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch, PackedRows, Position
from pilgrim.data.mixture import BLOCK, Dealt, Drawn, Mixture, PartSettings, Tagged, contradiction
from pilgrim.data.shards import Document, in_memory


class Counting:
    """Rows that say where they come from: source `number`, row 0, 1, 2 …"""

    def __init__(self, number: int) -> None:
        self.number = number

    def rows(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        at = position["row"] if position else 0
        while True:
            row = torch.tensor([[self.number, at]])
            at += 1
            yield Batch(row, row, torch.zeros_like(row)), {"row": at}

    def at(self, context: int) -> "Counting":
        return self


def mixture(weights: dict[str, float], seed: int = 1) -> Mixture:
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=seed)
    return Mixture(
        {name: Counting(i) for i, name in enumerate(weights)}, Drawn(tuple(weights.values()), runtime)
    )


def drawn(source: Mixture, rows: int, position: Position | None = None) -> list[tuple[int, int]]:
    """(source, its row) of the next rows."""
    found = [row.inputs_bt[0].tolist() for row, _ in islice(source.rows(position), rows)]
    return [(number, at) for number, at in found]


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 0.5, "b": 0.5},
        {"a": 0.9, "b": 0.1},
        {"a": 3, "b": 1, "c": 4},  # need not sum to one
        {"a": 1, "b": 0},
    ],
)
def test_rows_come_in_the_given_proportion(weights: dict[str, float]) -> None:
    n = 5000
    count = Counter(number for number, _ in drawn(mixture(weights), n))
    for number, weight in enumerate(weights.values()):
        share = weight / sum(weights.values())
        spread = (share * (1 - share) / n) ** 0.5
        assert abs(count[number] / n - share) <= 4 * spread


def test_every_source_is_read_in_its_own_order() -> None:
    rows = drawn(mixture({"a": 2, "b": 1, "c": 1}), 3000)
    for number in range(3):
        own = [at for n, at in rows if n == number]
        assert own == list(range(len(own)))


def test_the_draw_is_the_seeds() -> None:
    weights = {"a": 1.0, "b": 1.0}
    assert drawn(mixture(weights), 50) == drawn(mixture(weights), 50)
    assert drawn(mixture(weights), 50) != drawn(mixture(weights, seed=2), 50)


@pytest.mark.parametrize("rare", [0.5, 0.01])
@pytest.mark.parametrize("at", [0, 1, 2, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_it_goes_on_from_any_position(at: int, rare: float) -> None:
    """The position passes through a checkpoint's JSON, also when a source was not drawn from yet."""
    weights = {"a": 1.0, "b": rare}
    everything = drawn(mixture(weights), at + 60)
    positions = [None, *(position for _, position in islice(mixture(weights).rows(None), at))]
    assert drawn(mixture(weights), 60, json.loads(json.dumps(positions[-1]))) == everything[at:]


def test_positions_that_were_handed_out_do_not_change() -> None:
    stream = mixture({"a": 1.0, "b": 1.0}).rows(None)
    first = next(stream)[1]
    copy = json.dumps(first)
    next(stream)
    assert json.dumps(first) == copy


def dealt(rows: tuple[int, ...], seed: int = 1) -> Mixture:
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=seed)
    return Mixture({str(i): Counting(i) for i in range(len(rows))}, Dealt(rows, runtime))


def test_a_deck_has_each_sources_rows_exactly_and_shuffled() -> None:
    rows = [number for number, _ in drawn(dealt((5, 30, 1)), 72)]
    for deck in (rows[:36], rows[36:]):
        assert Counter(deck) == {0: 5, 1: 30, 2: 1}
        assert deck != sorted(deck)
    assert rows[:36] != rows[36:]
    assert rows != [number for number, _ in drawn(dealt((5, 30, 1), seed=2), 72)]


@pytest.mark.parametrize("at", [0, 1, 35, 36, 37, 90])
def test_a_deck_goes_on_from_any_position(at: int) -> None:
    everything = drawn(dealt((5, 30, 1)), at + 40)
    positions = [None, *(position for _, position in islice(dealt((5, 30, 1)).rows(None), at))]
    assert drawn(dealt((5, 30, 1)), 40, json.loads(json.dumps(positions[-1]))) == everything[at:]


@pytest.mark.parametrize(
    ("mixture", "sentence"),
    [
        ({}, "m names no data set; write at least one, such as conversations = { weight = 1 }"),
        ({"a": (1, 2)}, "m.a has both weight and epochs; write one of them, as in a = { weight = 0.5 }"),
        ({"a": (None, None)}, "m.a has neither weight nor epochs; write one of them"),
        ({"a": (1, None), "b": (None, 1)}, "m has weights (a) and epochs, which can't be added up"),
    ],
)
def test_tables_that_make_no_mixture(
    mixture: dict[str, tuple[float | None, float | None]], sentence: str
) -> None:
    parts = {name: PartSettings(weight=weight, epochs=epochs) for name, (weight, epochs) in mixture.items()}
    assert (contradiction(parts, "m") or "").startswith(sentence)
    assert contradiction({"a": PartSettings(weight=1), "b": PartSettings(weight=2)}, "m") is None


@pytest.mark.parametrize("part", [{"weight": float("inf")}, {"weight": float("nan")}, {"epochs": 1e300}])
def test_amounts_without_an_end(part: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=r"^m\.toml: (weight|epochs) = .* should be (a finite|less than)"):
        build(PartSettings, part, "m.toml")


def test_rows_say_where_they_are_from() -> None:
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
    documents = [Document([0, 5, 6], None, "me", 2)] * 3
    packed = PackedRows(in_memory("three", documents, 300), 8, 0, runtime)
    rows = list(islice(Tagged(packed, 4).rows(None), 4))
    for (row, position), (plain, same_position) in zip(rows, packed.rows(None), strict=False):
        assert position == same_position and torch.equal(row.inputs_bt, plain.inputs_bt)
        assert row.extra["source"].tolist() == [[4 if d >= 0 else 0 for d in plain.documents_bt[0].tolist()]]
        filled = plain.documents_bt >= 0
        assert torch.equal(row.extra["epoch"], filled * float(position["epoch"]))
    assert [position["epoch"] for _, position in rows] == [0, 0, 1, 1]
