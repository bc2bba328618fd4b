"""Bad steps: skipped, gone back behind, or the end. Batches are poisoned by what is in them, so that the same
batch is bad whenever it comes, and only that one.
"""

import math
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.runlog import read_rows
from pilgrim.data.loader import Batch, Position, Rows, batches
from pilgrim.model.transformer import Transformer
from pilgrim.optim import schedule
from pilgrim.train.faults import LossSpike, NonFiniteLoss
from pilgrim.train.health import HealthSettings
from pilgrim.train.loop import Loop, Parts
from pilgrim.train.losses import Losses
from pilgrim.train.step import TokenLosses, accumulate

MakeParts = Callable[..., Parts]
Hook = Callable[[TokenLosses], TokenLosses]
ROWS = 4
LONG = {"steps": 100, "eval_every": 50, "checkpoint_every": 20}  # long enough for spikes to be looked for


class Killed(BaseException):
    """The process is gone: nothing of ours catches this."""


def bad(parts: Parts, steps: dict[int, float]) -> Hook:
    """A hook for make_parts(losses=…): the loss of an undisturbed run's batch of a step, times a factor."""
    stream = [batch for batch, _ in islice(batches(parts.rows, ROWS, None), max(steps))]
    factors = {stream[step - 1].inputs_bt[:2].numpy().tobytes(): factor for step, factor in steps.items()}
    assert len(factors) == len(steps)

    def hook(losses: TokenLosses) -> TokenLosses:
        def hooked(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
            found = losses(model, batch, dtype)
            factor = factors.get(batch.inputs_bt.numpy().tobytes(), 1.0)
            return found._replace(total=found.total * factor)

        return hooked

    return hook


class Without:
    """Rows of which some are left out, counted from 0."""

    def __init__(self, source: Rows, first: int, end: int) -> None:
        self.source, self.first, self.end = source, first, end

    def rows(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        for number, row in enumerate(self.source.rows(position)):
            if not self.first <= number < self.end:
                yield row

    def at(self, context: int) -> "Without":
        return self


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder / "events.jsonl") if row["kind"] == kind]


def final(folder: Path, step: int) -> dict[str, Tensor]:
    last = CheckpointStore(folder / "checkpoints").load(step)
    return {f"{stem}/{name}": t for stem, named in last.tensors.items() for name, t in named.items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# Skip ---------------------------------------------------------------------------------------------


def by_hand(parts: Parts, skipped: int) -> dict[str, Tensor]:
    """The slow twin: the same steps one after the other, without the update of one."""
    s, optim = parts.settings, parts.optim
    assert s.steps
    for step, (batch, _) in enumerate(islice(batches(parts.rows, ROWS, None), s.steps)):
        accumulate(parts.model, batch, 2, parts.losses, parts.runtime)
        if step + 1 == skipped:
            parts.model.zero_grad(set_to_none=True)
            continue
        by_step = schedule.learning_rate(step, s.steps, s.warmup, s.decay, s.final_lr, s.decay_shape)
        momentum = schedule.momentum(step, optim.momentum_start, optim.momentum, optim.momentum_warmup)
        parts.optimizers.step(by_step, momentum)
    tensors = {"model": parts.model.weights(), "optimizer": parts.optimizers.tensors()}
    return {f"{stem}/{name}": t.detach() for stem, named in tensors.items() for name, t in named.items()}


@pytest.mark.parametrize(("step", "factor"), [(1, math.nan), (7, math.nan), (8, math.inf), (12, math.nan)])
def test_a_run_that_skips_is_one_that_never_made_that_update(
    make_parts: MakeParts, step: int, factor: float
) -> None:
    parts = make_parts("a")
    Loop(skips := make_parts("b", losses=bad(parts, {step: factor}))).run()
    assert_same(final(skips.folder, 12), by_hand(parts, step))
    (event,) = events(skips.folder, "non_finite_loss")
    assert (event["step"], event["done"]) == (step, "its batch is skipped")
    assert not math.isfinite(float(event["loss"]))
    rows = read_rows(skips.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))


def test_a_spike_is_skipped(make_parts: MakeParts) -> None:
    parts = make_parts("a", **LONG)
    Loop(skips := make_parts("b", losses=bad(parts, {80: 200.0}), **LONG)).run()
    assert_same(final(skips.folder, 100), by_hand(parts, 80))
    (event,) = events(skips.folder, "spike")
    assert event["step"] == 80
    assert event["loss"] > event["loss_limit"] or event["grad_norm"] > event["grad_norm_limit"]


def test_where_nothing_happens_the_policy_changes_nothing(make_parts: MakeParts) -> None:
    left = []
    for policy in ("skip", "roll_back", "stop"):
        health = HealthSettings.model_validate({"on_spike": policy, "on_non_finite": policy})
        Loop(parts := make_parts(policy, health=health)).run()
        left.append((final(parts.folder, 12), (parts.folder / "metrics.jsonl").read_bytes()))
    for tensors, rows in left[1:]:
        assert rows == left[0][1]
        assert_same(tensors, left[0][0])


@pytest.mark.parametrize("kill", range(13, 24, 2))
def test_killed_around_a_skip(make_parts: MakeParts, kill: int) -> None:
    poison = bad(make_parts("none"), {8: math.nan, 9: math.nan})
    Loop(whole := make_parts("whole", losses=poison)).run()
    killed_and_gone_on(make_parts, kill, poison)
    assert_same_run(whole.folder, whole.folder.with_name("killed"))


def test_ignored_spikes_are_told_and_learned_from(make_parts: MakeParts) -> None:
    poison = bad(make_parts("none"), {80: 200.0})
    health = HealthSettings(on_spike="ignore")
    Loop(parts := make_parts("a", losses=poison, health=health, **LONG)).run()
    assert [event["step"] for event in events(parts.folder, "spike")] == [80]
    Loop(skips := make_parts("b", losses=poison, **LONG)).run()
    a, b = final(parts.folder, 100), final(skips.folder, 100)
    assert any(not torch.equal(a[name], b[name]) for name in a)


# Too many -----------------------------------------------------------------------------------------


def test_too_many_in_a_row(make_parts: MakeParts) -> None:
    poison = bad(make_parts("none"), {step: math.nan for step in (2, 6, 7, 8)})
    health = HealthSettings(faults_in_a_row=3)
    with pytest.raises(NonFiniteLoss) as error:
        Loop(parts := make_parts("a", losses=poison, health=health)).run()
    assert str(error.value) == (
        f"{parts.folder}: training diverged, at step 8 loss = nan and grad_norm = nan, the last of 3 bad "
        "steps in a row (health.faults_in_a_row); the checkpoint of step 4 is kept; "
        "lower the learning rates of [optim] and run again with --accept-changes"
    )
    done = [event["done"] for event in events(parts.folder, "non_finite_loss")]
    assert done == ["its batch is skipped"] * 3 + ["stopped"]


def test_too_many_in_all(make_parts: MakeParts) -> None:
    poison = bad(make_parts("none"), {step: math.nan for step in (2, 4, 7)})
    with pytest.raises(NonFiniteLoss, match=r"the last of 3 bad steps \(health.faults\)"):
        Loop(make_parts("a", losses=poison, health=HealthSettings(faults_in_a_row=2, faults=3))).run()


def test_a_spike_may_be_the_end(make_parts: MakeParts) -> None:
    poison = bad(make_parts("none"), {81: 200.0})
    with pytest.raises(LossSpike) as error:
        Loop(parts := make_parts("a", losses=poison, health=HealthSettings(on_spike="stop"), **LONG)).run()
    sentence = str(error.value)
    assert ": training is unstable, at step 81 loss = " in sentence and "against limits of" in sentence
    assert sentence.endswith(
        "the checkpoint of step 80 is kept; lower the learning rates of [optim], "
        'or write health.on_spike = "roll_back", and run again with --accept-changes'
    )
    assert CheckpointStore(parts.folder / "checkpoints").steps() == [60, 80]


# Roll back ----------------------------------------------------------------------------------------

BACK = HealthSettings(on_spike="roll_back", on_non_finite="roll_back")


def killed_and_gone_on(make_parts: MakeParts, call: int, poison: Hook, **changes: Any) -> None:
    """A run that is killed in the call-th microbatch, counted over all that it makes, and started again."""
    calls = count(1)

    def dies(losses: TokenLosses) -> TokenLosses:
        def hooked(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
            if next(calls) == call:
                raise Killed
            return poison(losses)(model, batch, dtype)

        return hooked

    with pytest.raises(Killed):
        Loop(make_parts("killed", losses=dies, **changes)).run()
    Loop(make_parts("killed", losses=poison, **changes)).run()


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert_same(final(a, 12), final(b, 12))


@pytest.mark.parametrize(
    ("at", "back_to"),
    [(3, 0), (5, 0), (6, 4), (9, 5), (10, 8), (12, 10)],  # saved: 0, 4, 5, 8, 10; the last is in doubt
)
def test_back_to_a_good_checkpoint_and_on_behind_the_batch(
    make_parts: MakeParts, at: int, back_to: int
) -> None:
    """The twin is a run to which these batches were never given."""
    poison = bad(make_parts("none"), {at: math.nan})
    Loop(parts := make_parts("a", losses=poison, health=BACK)).run()
    twin = make_parts("b", rows=lambda source: Without(source, back_to * ROWS, at * ROWS))
    Loop(twin).run()
    assert_same_run(parts.folder, twin.folder)
    best, twins = (CheckpointStore(p.folder / "checkpoints").best() for p in (parts, twin))
    assert best == twins, "what was bad once, and is good now, is saved and marked like any other"
    (event,) = events(parts.folder, "non_finite_loss")
    assert event["done"] == f"back to step {back_to}, and on with the data behind it"
    assert [row["step"] for row in read_rows(parts.folder / "metrics.jsonl")] == list(range(1, 13))


@pytest.mark.parametrize("kill", range(15, 42, 3))
def test_killed_around_a_way_back(make_parts: MakeParts, kill: int) -> None:
    poison = bad(make_parts("none"), {9: math.nan, 12: math.inf})
    Loop(whole := make_parts("whole", losses=poison, health=BACK)).run()
    assert len(events(whole.folder, "non_finite_loss")) == 2
    killed_and_gone_on(make_parts, kill, poison, health=BACK)
    assert_same_run(whole.folder, whole.folder.with_name("killed"))


def test_the_microbatch_does_not_go_back(make_parts: MakeParts) -> None:
    """Memory runs out at step 1, and step 3 is bad: back to step 0, which was saved before that."""
    calls = count(1)

    def short_of_memory(losses: TokenLosses) -> TokenLosses:
        def hooked(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
            call, found = next(calls), losses(model, batch, dtype)
            if call == 1:
                raise torch.OutOfMemoryError
            return found._replace(total=found.total * math.nan) if call == 2 + 2 * ROWS else found

        return hooked

    Loop(parts := make_parts("a", losses=short_of_memory, health=BACK)).run()
    assert len(events(parts.folder, "out_of_memory")) == len(events(parts.folder, "non_finite_loss")) == 1
    assert parts.micro.tokens == parts.model.config.context


def test_back_from_a_spike(make_parts: MakeParts) -> None:
    poison = bad(make_parts("none"), {85: 200.0})
    health = HealthSettings(on_spike="roll_back")
    Loop(parts := make_parts("a", losses=poison, health=health, **LONG)).run()
    (event,) = events(parts.folder, "spike")
    assert (event["step"], event["done"]) == (85, "back to step 80, and on with the data behind it")
    assert len(read_rows(parts.folder / "metrics.jsonl")) == 100


def test_back_from_weights_that_an_evaluation_finds_spoiled(make_parts: MakeParts) -> None:
    """At step 10 once: the weights of step 10 are not gone back to, and step 10 is made again."""
    evaluations = count()

    def once(evaluate: Callable[[int], dict[str, float]]) -> Callable[[int], dict[str, float]]:
        return lambda step: {"bpb": math.nan} if next(evaluations) == 2 else evaluate(step)

    Loop(parts := make_parts("a", evaluate=once, health=BACK)).run()
    (event,) = events(parts.folder, "non_finite_loss")
    assert (event["step"], event["done"]) == (10, "back to step 8, and on with the data behind it")
    Loop(twin := make_parts("b", rows=lambda source: Without(source, 8 * ROWS, 10 * ROWS))).run()
    assert_same_run(parts.folder, twin.folder)


def test_where_the_first_step_is_bad_there_is_no_way_back(make_parts: MakeParts) -> None:
    poison = bad(make_parts("none"), {1: math.nan})
    with pytest.raises(NonFiniteLoss, match=r"at step 1 loss = nan .*; there was no good checkpoint yet"):
        Loop(make_parts("a", losses=poison, health=BACK)).run()


def test_back_again_and_again_comes_to_an_end(make_parts: MakeParts) -> None:
    poison = bad(make_parts("none"), {step: math.nan for step in range(6, 40)})
    health = BACK.model_copy(update={"faults_in_a_row": 3})
    with pytest.raises(NonFiniteLoss, match=r"3 bad steps in a row .*; the checkpoint of step 4 is kept"):
        Loop(parts := make_parts("a", losses=poison, health=health)).run()
    assert [event["step"] for event in events(parts.folder, "non_finite_loss")] == [6, 5, 5]
