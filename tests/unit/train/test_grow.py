"""Phases by the step; and a run that grows is the same, to the bit, wherever it was interrupted."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.runlog import read_rows
from pilgrim.data.loader import PackedRows
from pilgrim.model.transformer import Transformer
from pilgrim.train.grow import (
    GrowSettings,
    Phase,
    grown_batches,
    grown_windows,
    mean_tokens,
    phase_at,
    phases,
)
from pilgrim.train.loop import Loop, Parts

MakeParts = Callable[..., Parts]
NewModel = Callable[..., Transformer]

GROW = GrowSettings(context=((0.0, 8), (0.5, 16)), rows=((0.0, 2), (0.25, 4)))


def test_the_lists_become_phases() -> None:
    assert phases(GROW, 12, 4, 16) == [
        Phase(0, 3, 2, 8, 0.5),  # a quarter of the tokens, half the rate
        Phase(3, 6, 4, 8, 0.5**0.5),
        Phase(6, 12, 4, 16, 1.0),
    ]
    assert mean_tokens(GROW, 4, 16) == 0.25 * 16 + 0.25 * 32 + 0.5 * 64


def test_without_lists_there_is_one_phase_and_the_rate_is_as_it_was() -> None:
    for nothing in (None, GrowSettings()):
        assert phases(nothing, 7, 4, 16) == [Phase(0, 7, 4, 16, 1.0)]
        assert mean_tokens(nothing, 4, 16) == 64


def test_the_rate_follows_to_the_power_that_is_asked_for() -> None:
    for power, expected in ((0.0, 1.0), (1.0, 0.25)):
        grow = GROW.model_copy(update={"batch_lr": power})
        assert phases(grow, 12, 4, 16)[0].lr == expected


@pytest.mark.parametrize("steps", range(1, 30))
def test_phases_cover_every_step_once(steps: int) -> None:
    """However few the steps are: a phase without a step is not there."""
    found = phases(GROW, steps, 4, 16)
    assert [step for phase in found for step in range(phase.first, phase.end)] == list(range(steps))
    assert [phase_at(found, step) for step in range(steps)] == [
        phase for phase in found for _ in range(phase.first, phase.end)
    ]
    assert phase_at(found, steps) == found[-1]


def test_batches_have_the_shapes_of_their_phases(make_parts: MakeParts) -> None:
    source, found = make_parts("a").rows, phases(GROW, 12, 4, 16)
    shapes = [tuple(batch.inputs_bt.shape) for batch, _ in grown_batches(source, found, 0, None)]
    assert shapes == [(2, 8)] * 3 + [(4, 8)] * 3 + [(4, 16)] * 6


def test_every_token_of_an_epoch_is_seen_once_over_a_switch(make_parts: MakeParts) -> None:
    """The places that hold tokens sum to the set, within the epoch in which the rows grow."""
    source = make_parts("a").rows
    assert isinstance(source, PackedRows)
    found, before = phases(GROW, 6, 4, 16), 0
    for batch, position in grown_batches(source, found, 0, None):
        assert position["epoch"] == 0
        before += batch.tokens
    after = 0
    for row, there in source.rows(position):
        if there["epoch"] > 0:
            break
        after += row.tokens
    assert before + after == int(source.tokens.lengths.sum())


# A run --------------------------------------------------------------------------------------------


def left_by(folder: Path) -> list[object]:
    last = CheckpointStore(folder / "checkpoints").load(12)
    tensors = {f"{k}/{n}": t.tolist() for k, named in last.tensors.items() for n, t in named.items()}
    return [(folder / "metrics.jsonl").read_bytes(), last.state["position"], tensors]


@pytest.fixture(scope="module")
def undisturbed(parts_in: MakeParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = parts_in(tmp_path_factory.mktemp("grown") / "stage", grow=GROW)
    Loop(parts).run()
    return parts.folder


@pytest.mark.parametrize("stops", [[2], [3], [4], [6], [7], [2, 3, 5, 6, 9]])
def test_resumed_before_at_and_after_a_switch_to_the_same_bits(
    make_parts: MakeParts, undisturbed: Path, stops: list[int]
) -> None:
    for stop in stops:

        def dies(evaluate: Callable[[int], dict[str, float]], at: int = stop) -> object:
            def hooked(step: int) -> dict[str, float]:
                if step == at:
                    raise InterruptedError
                return evaluate(step)

            return hooked

        with pytest.raises(InterruptedError):
            Loop(make_parts("a", grow=GROW, eval_every=1, evaluate=dies)).run()
    Loop(parts := make_parts("a", grow=GROW)).run()
    assert left_by(parts.folder) == left_by(undisturbed)


def test_rates_follow_the_batch(undisturbed: Path, make_parts: MakeParts) -> None:
    Loop(plain := make_parts("plain")).run()
    grown, constant = (
        [row["learning_rate"] for row in read_rows(folder / "metrics.jsonl")]
        for folder in (undisturbed, plain.folder)
    )
    ratios = [a / b for a, b in zip(grown, constant, strict=True)]
    assert ratios == pytest.approx([0.5] * 3 + [0.5**0.5] * 3 + [1.0] * 6)


# Windows ------------------------------------------------------------------------------------------

NARROW = GrowSettings(window=((0.0, 2), (0.5, 6)))


def windowed(new_model: NewModel) -> Transformer:
    return new_model(depth=2, window=6, window_pattern="SL")


def test_the_windows_list_becomes_phases_too() -> None:
    assert phases(NARROW, 12, 4, 16) == [Phase(0, 6, 4, 16, 1.0, 2), Phase(6, 12, 4, 16, 1.0, 6)]


def test_only_training_sees_the_narrow_window(new_model: NewModel) -> None:
    model = windowed(new_model)
    with grown_windows(model, Phase(0, 6, 4, 16, 1.0, 2)):
        assert model.windows == (2, None)
    assert model.windows == (6, None)
    with grown_windows(model, Phase(0, 6, 4, 16, 1.0)):
        assert model.windows == (6, None)


def test_a_narrow_window_changes_the_first_step_and_not_the_first_validation(
    make_parts: MakeParts, new_model: NewModel
) -> None:
    for name, grow in (("narrow", NARROW), ("full", None)):
        Loop(make_parts(name, grow=grow, model=windowed(new_model))).run()
    folders = [make_parts(name).folder for name in ("narrow", "full")]
    narrow, full = ([row["loss"] for row in read_rows(f / "metrics.jsonl")] for f in folders)
    assert narrow[0] != full[0]
    narrow, full = ([row["loss"] for row in read_rows(f / "evals.jsonl")] for f in folders)
    assert narrow[0] == full[0] and narrow[-1] != full[-1]


@pytest.mark.parametrize("stop", [5, 6, 7])
def test_windows_resume_to_the_same_bits(make_parts: MakeParts, new_model: NewModel, stop: int) -> None:
    def dies(evaluate: Callable[[int], dict[str, float]]) -> object:
        def hooked(step: int) -> dict[str, float]:
            if step == stop:
                raise InterruptedError
            return evaluate(step)

        return hooked

    Loop(whole := make_parts("whole", grow=NARROW, model=windowed(new_model))).run()
    with pytest.raises(InterruptedError):
        Loop(make_parts("a", grow=NARROW, eval_every=1, evaluate=dies, model=windowed(new_model))).run()
    Loop(parts := make_parts("a", grow=NARROW, model=windowed(new_model))).run()
    assert left_by(parts.folder) == left_by(whole.folder)
