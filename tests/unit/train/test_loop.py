"""The loop: stopped or killed anywhere, it goes on to the same bits; what goes wrong is told and survived."""

import math
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import ChangedRecipe, CheckpointError, Stopped
from pilgrim.core.files import read_json
from pilgrim.core.runlog import read_rows
from pilgrim.data.loader import Batch, Position, Rows
from pilgrim.model.transformer import Transformer
from pilgrim.optim import schedule
from pilgrim.train import stopping
from pilgrim.train.faults import NonFiniteLoss
from pilgrim.train.health import HealthSettings
from pilgrim.train.keeping import State
from pilgrim.train.loop import Loop, Parts
from pilgrim.train.losses import Losses
from pilgrim.train.settings import TrainSettings
from pilgrim.train.step import TokenLosses
from pilgrim.train.stopping import stop_asked

MakeParts = Callable[..., Parts]
Evaluate = Callable[[int], dict[str, float]]

STEPS, ROWS, MICROBATCHES, EVALUATED = 12, 4, 2, [0, 5, 10, 12]


class Killed(BaseException):
    """The process is gone: nothing of ours catches this."""


class RowsThat:
    """Rows that do something when the n-th (from 1) is drawn, counted from when they were made."""

    def __init__(self, source: Rows, at: int, work: Callable[[], object]) -> None:
        self.source, self.when, self.work = source, at, work
        self.drawn = 0

    def rows(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        for row in self.source.rows(position):
            self.drawn += 1
            if self.drawn == self.when:
                self.work()
            yield row

    def at(self, context: int) -> "RowsThat":
        self.source = self.source.at(context)
        return self


def in_row(at: int, work: Callable[[], object]) -> Callable[[Rows], Rows]:
    """A hook for make_parts(rows=…)."""
    return lambda source: RowsThat(source, at, work)


def in_step(at: int, work: Callable[[], object]) -> Callable[[TokenLosses], TokenLosses]:
    """A hook for make_parts(losses=…): do something in the at-th step, counted from when it was made."""

    def hook(losses: TokenLosses) -> TokenLosses:
        calls = count(1)

        def hooked(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
            if next(calls) == at * MICROBATCHES:
                work()
            return losses(model, batch, dtype)

        return hooked

    return hook


def in_evaluation(at: int, work: Callable[[], object], after: bool = False) -> Callable[[Evaluate], Evaluate]:
    """A hook for make_parts(evaluate=…): do something before or after the evaluation of a step."""

    def hook(evaluate: Evaluate) -> Evaluate:
        def hooked(step: int) -> dict[str, float]:
            if step == at and not after:
                work()
            measures = evaluate(step)
            if step == at and after:
                work()
            return measures

        return hooked

    return hook


def die() -> None:
    raise Killed


def ask_to_stop(number: signal.Signals = signal.SIGINT) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def left_by(folder: Path) -> tuple[bytes, bytes, dict[str, Tensor]]:
    """What two runs must have in common: the logs' bytes, and all that is in the last checkpoint."""
    last = CheckpointStore(folder / "checkpoints").load(STEPS)
    tensors = {f"{stem}/{name}": t for stem, named in last.tensors.items() for name, t in named.items()}
    logs = [(folder / name).read_bytes() for name in ("metrics.jsonl", "evals.jsonl")]
    return logs[0], logs[1], tensors


def same(a: Path, b: Path) -> bool:
    (metrics, evals, tensors), (metrics_b, evals_b, tensors_b) = left_by(a), left_by(b)
    assert metrics == metrics_b
    assert evals == evals_b
    assert tensors.keys() == tensors_b.keys()
    return all(torch.equal(tensors[name], tensors_b[name]) for name in tensors)


def kinds(folder: Path) -> list[str]:
    return [row["kind"] for row in read_rows(folder / "events.jsonl")]


@pytest.fixture(scope="module")
def reference(parts_in: MakeParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that nothing has disturbed. To be looked at only."""
    parts = parts_in(tmp_path_factory.mktemp("undisturbed") / "stage")
    Loop(parts).run()
    return parts.folder


@pytest.fixture
def finished(reference: Path, tmp_path: Path) -> Path:
    """The same, to be spoiled: make_parts("finished") works on it."""
    return shutil.copytree(reference, tmp_path / "finished")


# What it leaves -----------------------------------------------------------------------------------


def test_every_step_has_its_row_and_every_evaluation_too(reference: Path) -> None:
    rows = read_rows(reference / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[0].keys() == {"step", "loss", "grad_norm", "learning_rate", "tokens"}
    assert [row["step"] for row in read_rows(reference / "evals.jsonl")] == EVALUATED
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_learning_rate_is_the_schedules(make_parts: MakeParts) -> None:
    parts = make_parts("a", lr_scale=0.5, optim={"matrix_lr": 0.04})
    Loop(parts).run()
    s = parts.settings
    expected = [
        0.04 * (0.5 * schedule.learning_rate(step, STEPS, s.warmup, s.decay, s.final_lr, s.decay_shape))
        for step in range(STEPS)
    ]
    assert [row["learning_rate"] for row in read_rows(parts.folder / "metrics.jsonl")] == expected


def test_tokens_are_counted_without_padding(make_parts: MakeParts) -> None:
    parts = make_parts("a")
    rows = [row for row, _ in islice(parts.rows.rows(None), STEPS * ROWS)]
    assert Loop(parts).run().tokens == sum(row.tokens for row in rows) < STEPS * ROWS * 16


def test_the_best_is_marked_and_kept(make_parts: MakeParts) -> None:
    measured = {0: 1.0, 5: 3.0, 10: 4.0, 12: 5.0}  # the untrained network is the best, but it is no step
    parts = make_parts("a", evaluate=lambda evaluate: lambda step: {"bpb": measured[step]})
    Loop(parts).run()
    store = CheckpointStore(parts.folder / "checkpoints")
    assert (store.best(), store.steps()) == (None, [10, 12])

    measured |= {0: 9.0}
    parts = make_parts("b", evaluate=lambda evaluate: lambda step: {"bpb": measured[step]})
    Loop(parts).run()
    store = CheckpointStore(parts.folder / "checkpoints")
    assert (store.best(), store.steps()) == (5, [5, 10, 12])


def test_how_often_it_saves_and_looks_changes_nothing(make_parts: MakeParts, reference: Path) -> None:
    for every in (1, 7, 100):
        parts = make_parts(f"every {every}", checkpoint_every=every)
        Loop(parts).run()
        assert same(parts.folder, reference)


def test_a_finished_stage_has_nothing_more_to_do(
    make_parts: MakeParts, finished: Path, reference: Path
) -> None:
    state = Loop(make_parts("finished", rows=in_row(1, die), evaluate=in_evaluation(12, die))).run()
    assert state.step == STEPS
    assert same(finished, reference)


# Killed, and gone on ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_killed_in_any_step(make_parts: MakeParts, reference: Path, step: int) -> None:
    with pytest.raises(Killed):
        Loop(make_parts("a", rows=in_row((step - 1) * ROWS + 1 + step % ROWS, die))).run()
    Loop(parts := make_parts("a")).run()
    assert same(parts.folder, reference)


@pytest.mark.parametrize("step", EVALUATED)
@pytest.mark.parametrize("after", [False, True])
def test_killed_in_any_evaluation(make_parts: MakeParts, reference: Path, step: int, after: bool) -> None:
    with pytest.raises(Killed):
        Loop(make_parts("a", evaluate=in_evaluation(step, die, after))).run()
    Loop(parts := make_parts("a")).run()
    assert same(parts.folder, reference)


@pytest.mark.parametrize("seed", range(8))
def test_killed_again_and_again(make_parts: MakeParts, reference: Path, seed: int) -> None:
    """Each attempt is killed somewhere, in a row or in an evaluation, until one gets through."""
    dice = random.Random(seed)
    for attempt in count():
        hooks = (
            {"rows": in_row(dice.randint(1, 30), die)}
            if dice.random() < 0.7
            else {"evaluate": in_evaluation(dice.choice(EVALUATED), die, after=dice.random() < 0.5)}
        )
        parts = make_parts("a", **hooks)
        try:
            Loop(parts).run()
        except Killed:
            assert attempt < 60
            continue
        break
    assert same(parts.folder, reference)


def test_a_line_that_a_kill_has_torn_is_written_anew(make_parts: MakeParts, reference: Path) -> None:
    with pytest.raises(Killed):
        Loop(parts := make_parts("a", rows=in_row(7 * ROWS, die))).run()
    for name in ("metrics.jsonl", "evals.jsonl"):
        with (parts.folder / name).open("ab") as file:
            file.write(b'{"step": 5, "lo')
    Loop(make_parts("a")).run()
    assert same(parts.folder, reference)


def test_time_before_an_interruption_counts(make_parts: MakeParts) -> None:
    """Nearly all of it, here: the second attempt has one step left."""
    parts = make_parts("a", losses=in_step(11, ask_to_stop()))
    with pytest.raises(KeyboardInterrupt):
        Loop(parts).run()
    before = CheckpointStore(parts.folder / "checkpoints").load(11).state
    assert before["elapsed_s"] > before["train_s"] > 0  # evaluations and checkpoints are in it
    state = Loop(make_parts("a")).run()
    assert state.elapsed_s > before["elapsed_s"]
    assert state.train_s > before["train_s"]


# Asked to stop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 4, 7, 12])
def test_a_signal_ends_the_step_and_saves_it(
    make_parts: MakeParts, reference: Path, number: signal.Signals, step: int
) -> None:
    before = signal.getsignal(number)
    parts = make_parts("a", losses=in_step(step, ask_to_stop(number)))
    with pytest.raises(KeyboardInterrupt):
        Loop(parts).run()
    assert CheckpointStore(parts.folder / "checkpoints").steps()[-1] == step
    stopped = read_rows(parts.folder / "events.jsonl")[-1]
    assert (stopped["kind"], stopped["step"]) == ("stopped", step)
    assert signal.getsignal(number) == before
    Loop(make_parts("a")).run()
    assert kinds(parts.folder) == ["start", "stopped", "resume"]
    assert same(parts.folder, reference)


@pytest.mark.parametrize(("during", "stops_at"), [(0, 1), (5, 6), (12, 12)])
def test_a_signal_during_an_evaluation_is_heard(
    make_parts: MakeParts, reference: Path, during: int, stops_at: int
) -> None:
    """Also during the last one, after which no step would come: the next stage must not begin."""
    parts = make_parts("a", evaluate=in_evaluation(during, ask_to_stop()))
    with pytest.raises(KeyboardInterrupt):
        Loop(parts).run()
    assert during in [row["step"] for row in read_rows(parts.folder / "evals.jsonl")]
    assert CheckpointStore(parts.folder / "checkpoints").steps()[-1] == stops_at
    Loop(make_parts("a")).run()
    assert same(parts.folder, reference)


def test_the_second_signal_ends_at_once(
    make_parts: MakeParts, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "ONE_WAVE_S", 0.0)

    def twice() -> None:
        ask_to_stop()()
        ask_to_stop()()
        raise AssertionError("still here")

    parts = make_parts("a", losses=in_step(2, twice))
    with pytest.raises(KeyboardInterrupt):
        Loop(parts).run()
    assert CheckpointStore(parts.folder / "checkpoints").steps() == []
    Loop(make_parts("a")).run()
    assert same(parts.folder, reference)


def test_two_signals_of_one_wave_count_as_one(make_parts: MakeParts, reference: Path) -> None:
    """A machine that shuts down tells every process, and a launcher tells those that it has started."""

    def twice() -> None:
        ask_to_stop(signal.SIGTERM)()
        ask_to_stop(signal.SIGTERM)()

    parts = make_parts("a", losses=in_step(2, twice))
    with pytest.raises(Stopped) as stopped:
        Loop(parts).run()
    assert stopped.value.signal_number == signal.SIGTERM
    assert CheckpointStore(parts.folder / "checkpoints").steps() == [2]
    Loop(make_parts("a")).run()
    assert same(parts.folder, reference)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), stop_asked() as stop:
        assert not stop()
        assert signal.getsignal(signal.SIGINT) is not before[0]
        raise ZeroDivisionError
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    with stop_asked() as stop:
        ask_to_stop(signal.SIGTERM)()
        assert stop() == signal.SIGTERM
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_asked() as stop:
            ask_to_stop()()
            assert not stop()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_trains_outside_the_main_thread(make_parts: MakeParts, reference: Path) -> None:
    parts = make_parts("a")
    thread = threading.Thread(target=Loop(parts).run)
    thread.start()
    thread.join()
    assert same(parts.folder, reference)


# Damage -------------------------------------------------------------------------------------------


def damage(folder: Path, step: int) -> None:
    file = folder / "checkpoints" / f"step_{step:06d}" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    make_parts: MakeParts, reference: Path
) -> None:
    with pytest.raises(Killed):
        Loop(parts := make_parts("a", rows=in_row(9 * ROWS, die))).run()
    damage(parts.folder, 8)
    Loop(make_parts("a")).run()
    assert kinds(parts.folder) == ["start", "damaged_checkpoint", "resume"]
    told, resumed = read_rows(parts.folder / "events.jsonl")[1:]
    assert "step_000008/model.safetensors is damaged" in told["what"]
    assert resumed["step"] == 5
    assert same(parts.folder, reference)


def test_damaged_checkpoints_only_are_no_beginning(make_parts: MakeParts, finished: Path) -> None:
    logs = left_by(finished)[:2]
    for step in CheckpointStore(finished / "checkpoints").steps():
        damage(finished, step)
    with pytest.raises(CheckpointError, match=r"none of the \d checkpoints is whole; remove the folder"):
        Loop(make_parts("finished")).run()
    assert [(finished / name).read_bytes() for name in ("metrics.jsonl", "evals.jsonl")] == list(logs)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"width": 24}, "width: 16 -> 24"), ({"depth": 2}, "depth: 1 -> 2"), ({"tied": True}, "tied")],
)
def test_another_shape_under_a_checkpoint(
    make_parts: MakeParts,
    new_model: Callable[..., Transformer],
    finished: Path,
    changes: dict[str, int],
    told: str,
) -> None:
    with pytest.raises(ChangedRecipe) as error:
        Loop(make_parts("finished", model=new_model(**changes))).run()
    sentence = str(error.value)
    assert told in sentence and "step_000012" in sentence and "\n" not in sentence
    assert sentence.endswith("give this run another name with name=…")
    assert [row["step"] for row in read_rows(finished / "evals.jsonl")] == EVALUATED


# Divergence ---------------------------------------------------------------------------------------

HUGE = {"matrix_lr": 1e30, "embedding_lr": 1e30, "head_lr": 1e30, "norm_lr": 1e30}
STOPS = HealthSettings(on_non_finite="stop")


def test_a_huge_learning_rate_is_told(make_parts: MakeParts) -> None:
    parts = make_parts("a", optim=HUGE, checkpoint_every=100, eval_every=100, health=STOPS)
    with pytest.raises(NonFiniteLoss) as error:
        Loop(parts).run()
    sentence = str(error.value)
    assert sentence.startswith(f"{parts.folder}: training diverged, at step 2 loss = ")
    assert "there was no good checkpoint yet" in sentence
    assert sentence.endswith("lower the learning rates of [optim] and run again with --accept-changes")
    event = read_rows(parts.folder / "events.jsonl")[-1]
    assert (event["kind"], event["step"], event["kept"]) == ("non_finite_loss", 2, [])
    last = read_rows(parts.folder / "metrics.jsonl")[-1]
    assert last["step"] == 2
    assert not (math.isfinite(float(last["loss"])) and math.isfinite(float(last["grad_norm"])))


def test_what_diverged_goes_on_from_the_last_good_checkpoint(make_parts: MakeParts, reference: Path) -> None:
    with pytest.raises(Killed):
        Loop(make_parts("a", rows=in_row(6 * ROWS, die))).run()
    parts = make_parts("a", optim=HUGE, eval_every=100)
    with pytest.raises(NonFiniteLoss, match="the checkpoint of step 5 is kept"):
        Loop(parts).run()
    kept = CheckpointStore(parts.folder / "checkpoints").load(5)
    assert all(tensor.isfinite().all() for named in kept.tensors.values() for tensor in named.values())
    Loop(make_parts("a")).run()
    assert same(parts.folder, reference)


@pytest.mark.parametrize("health", [HealthSettings(), STOPS], ids=["skips", "stops"])
@pytest.mark.parametrize("eval_every", [5, 100])
def test_a_checkpoint_of_spoiled_weights_is_not_kept(
    make_parts: MakeParts, reference: Path, eval_every: int, health: HealthSettings
) -> None:
    """The update of step 5 spoils the weights; its own loss was finite, so step 5 had been saved.

    With an evaluation at step 5 it is the validation that finds out, else step 6. Skipping can't help there,
    and must not save so often that the last good step is pushed out.
    """
    with pytest.raises(Killed):
        Loop(make_parts("a", checkpoint_every=1, rows=in_row(4 * ROWS + 1, die))).run()
    parts = make_parts("a", optim=HUGE, checkpoint_every=1, eval_every=eval_every, health=health)
    with pytest.raises(NonFiniteLoss, match="the checkpoint of step 4 is kept"):
        Loop(parts).run()
    assert CheckpointStore(parts.folder / "checkpoints").steps()[-1] == 4
    Loop(make_parts("a")).run()
    assert "damaged_checkpoint" not in kinds(parts.folder)
    assert same(parts.folder, reference)


def test_when_only_spoiled_weights_were_saved_it_begins_anew(make_parts: MakeParts, reference: Path) -> None:
    with pytest.raises(NonFiniteLoss, match="there was no good checkpoint yet"):
        Loop(parts := make_parts("a", optim=HUGE, checkpoint_every=1, health=STOPS)).run()
    Loop(make_parts("a")).run()
    assert kinds(parts.folder) == ["start", "non_finite_loss", "start"]
    assert same(parts.folder, reference)


def test_poisoned_weights_stop_before_the_first_step(
    make_parts: MakeParts, new_model: Callable[..., Transformer]
) -> None:
    model = new_model()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(NonFiniteLoss, match="at step 0 bpb = nan"):
        Loop(parts := make_parts("a", model=model)).run()
    assert not (parts.folder / "metrics.jsonl").exists()


# Settings -----------------------------------------------------------------------------------------


def test_settings_that_contradict_each_other() -> None:
    assert TrainSettings(steps=10, warmup=9, rows=8, micro_rows=2).contradiction("sft") is None
    assert TrainSettings(warmup=9, micro_rows=3).contradiction("sft") is None  # not known yet
    warmup, micro = TrainSettings(steps=20, warmup=20), TrainSettings(rows=8, micro_rows=6)
    assert warmup.contradiction("sft") == "sft.warmup = 20 must be less than sft.steps = 20; try 2"
    assert micro.contradiction("pretrain") == ("pretrain.micro_rows = 6 must divide pretrain.rows = 8; try 2")


def test_the_state_is_json(reference: Path) -> None:
    """What a checkpoint's state.json holds is a State again, and the shape of the network."""
    state = read_json(reference / "checkpoints" / "step_000012" / "state.json")
    assert state.pop("model_config")["width"] == 16
    assert State(**state).step == STEPS
