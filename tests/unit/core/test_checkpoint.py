"""Checkpoints: whatever is done to the files, the newest whole step is found, and the rest is told."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pilgrim.core.checkpoint import Checkpoint, CheckpointStore
from pilgrim.core.errors import CheckpointError, PilgrimError

Limit = Callable[[int], AbstractContextManager[None]]
FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def tensors(step: int) -> dict[str, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(step)
    return {
        "model": {
            "matrix": torch.randn(8, 4, generator=draw).to(torch.bfloat16),
            "transposed": torch.randn(8, 4, generator=draw).t(),
            "scalar": torch.tensor(0.1 * step),
            "nothing": torch.zeros(0, 3),
        },
        "optimizer": {"count": torch.tensor([step, 2**40]), "momentum": torch.randn(5, generator=draw)},
    }


def state(step: int) -> dict[str, object]:
    return {
        "step": step,
        "loss": 0.1 + 0.2,
        "least": 5e-324,
        "position": [1, 2],
        "best": float("inf"),
        "none": None,
    }


def saved(folder: Path, *steps: int, keep_last: int = 2) -> CheckpointStore:
    store = CheckpointStore(folder, keep_last)
    for step in steps:
        store.save(step, tensors(step), state(step))
    return store


def assert_is_step(checkpoint: Checkpoint | None, step: int) -> None:
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.state) == (step, state(step))
    expected = tensors(step)
    assert checkpoint.tensors.keys() == expected.keys()
    for stem, named in expected.items():
        assert checkpoint.tensors[stem].keys() == named.keys()
        for name, tensor in named.items():
            found = checkpoint.tensors[stem][name]
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor), name


def latest_with_complaints(store: CheckpointStore) -> tuple[Checkpoint | None, list[str]]:
    complaints: list[str] = []
    return store.load_latest(complaints.append), complaints


def test_a_step_reads_back_to_the_bit(tmp_path: Path) -> None:
    store = saved(tmp_path / "checkpoints", 500)
    checkpoint, complaints = latest_with_complaints(store)
    assert_is_step(checkpoint, 500)
    assert complaints == []
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "step_000500").iterdir()) == sorted(FILES)
    assert (tmp_path / "checkpoints" / "LATEST").read_text() == "step_000500\n"
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


@settings(deadline=None, max_examples=10)
@given(values=st.lists(st.floats(allow_nan=False), min_size=20))
def test_floats_in_the_state_come_back_to_the_bit(
    values: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = CheckpointStore(tmp_path_factory.getbasetemp() / "floats")
    store.save(1, {}, {"values": values})
    assert [value.hex() for value in store.load(1).state["values"]] == [value.hex() for value in values]


def test_tied_weights_and_parameters_can_be_saved(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    CheckpointStore(tmp_path).save(1, {"model": {"embedding": weight, "head": weight, "row": weight[0]}}, {})
    loaded = CheckpointStore(tmp_path).load(1).tensors["model"]
    assert torch.equal(loaded["head"], loaded["embedding"])
    assert torch.equal(loaded["row"], torch.ones(3))


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name, 7)
    for file in FILES:
        first, second = (tmp_path / name / "step_000007" / file for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    assert latest_with_complaints(store) == (None, [])
    assert (store.steps(), store.best()) == ([], None)
    assert not (tmp_path / "none").exists(), "looking makes no folder"
    with pytest.raises(CheckpointError, match="step_000003 does not exist; the steps there are: none"):
        store.load(3)


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    store.mark_best(1)
    for step in (3, 4, 1_000_000):
        store.save(step, tensors(step), state(step))
    assert store.steps() == [1, 4, 1_000_000]
    assert store.best() == 1
    store.mark_best(1_000_000)
    store.save(1_000_001, {}, {})
    assert store.steps() == [1_000_000, 1_000_001]
    with pytest.raises(CheckpointError, match="holds no step 9 to mark as best"):
        store.mark_best(9)


def test_who_goes_back_behind_the_best_gives_it_up(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2, 3)
    store.mark_best(3)
    store.save(2, tensors(2), state(2))
    assert store.steps() == [2], "else the next start would go on from the one that was given up"
    assert store.best() is None


# Damage -------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap_with_the_step_before(path: Path) -> None:
    path.write_bytes((path.parent.parent / "step_000001" / path.name).read_bytes())


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "damage", [flip_a_bit, cut_off, empty, Path.unlink, swap_with_the_step_before, turn_into_a_folder]
)
def test_a_damaged_step_is_told_and_the_one_before_is_used(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    store = saved(tmp_path, 1, 2)
    damage(tmp_path / "step_000002" / file)
    checkpoint, complaints = latest_with_complaints(store)
    assert_is_step(checkpoint, 1)
    assert len(complaints) == 1
    assert "step_000002" in complaints[0] and complaints[0].endswith("; the one before is tried")
    with pytest.raises(CheckpointError, match="step_000002"):
        store.load(2)


def test_a_checkpoint_of_an_earlier_version_is_no_damage(tmp_path: Path) -> None:
    """Nobody should be told to remove it."""
    store = CheckpointStore(tmp_path)
    folder = store.save(1, tensors(1), state(1))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(PilgrimError, match="step_000001 was written by an earlier version of pilgrim"):
        store.load_latest(pytest.fail)


def test_every_bit_of_the_manifest_counts_or_changes_nothing(tmp_path: Path) -> None:
    store = saved(tmp_path, 1)
    path = tmp_path / "step_000001" / "manifest.json"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 37):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert_is_step(store.load(1), 1)
        except CheckpointError:
            continue


def test_folders_that_were_swapped_are_noticed(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    (tmp_path / "step_000002").rename(tmp_path / "other")
    (tmp_path / "step_000001").rename(tmp_path / "step_000002")
    (tmp_path / "other").rename(tmp_path / "step_000001")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints is whole"):
        latest_with_complaints(store)


def test_all_damaged_is_an_error_and_not_a_new_beginning(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    for step in (1, 2):
        flip_a_bit(tmp_path / f"step_00000{step}" / "model.safetensors")
    complaints: list[str] = []
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints is whole; remove the folder"):
        store.load_latest(complaints.append)
    assert len(complaints) == 2


def test_a_stale_latest_does_not_hide_a_newer_step(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    for pointer in ("step_000001\n", "", "\xff"):
        (tmp_path / "LATEST").write_text(pointer)
        assert_is_step(store.load_latest(lambda sentence: None), 2)


def test_a_latest_that_names_a_missing_step_is_told(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "step_000002")
    checkpoint, complaints = latest_with_complaints(store)
    assert_is_step(checkpoint, 1)
    assert complaints == [
        f"{tmp_path / 'LATEST'} names a step that is not there; the newest one there is used"
    ]


def test_saving_over_a_damaged_step_replaces_it_and_drops_what_lies_ahead(tmp_path: Path) -> None:
    store = saved(tmp_path, 10, 20, 30, keep_last=3)
    for step in (20, 30):
        flip_a_bit(tmp_path / f"step_0000{step}" / "model.safetensors")
    assert_is_step(store.load_latest(lambda sentence: None), 10)
    store.save(20, tensors(20), state(20))
    assert store.steps() == [10, 20]
    assert_is_step(store.load(20), 20)


# Death and full disks -----------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9."""


class Trap:
    """Refuses this process's file-system calls: Python tells an audit hook of each before it is made.

    A kill at the n-th call looks to the disk as if that call and all later ones, tidying up included, were
    refused; a disk that is full for a moment as if just one was. (Hooks can't be removed, so there is one.)
    """

    EVENTS = frozenset(
        {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree"}
    )

    def __init__(self) -> None:
        self.calls_left: int | None = None
        self.sprung = False
        self.refusal: BaseException = Killed()
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.calls_left is None or event not in self.EVENTS:
            return
        self.calls_left -= 1
        if self.calls_left == -1 or (self.calls_left < 0 and isinstance(self.refusal, Killed)):
            self.sprung = True
            raise self.refusal

    @contextmanager
    def set(self, calls: int, refusal: BaseException) -> Iterator[None]:
        self.calls_left, self.refusal, self.sprung = calls, refusal, False
        try:
            yield
        finally:
            self.calls_left = None


@pytest.fixture(scope="module")
def trap() -> Trap:
    return Trap()


def copied(base: Path, folder: Path) -> CheckpointStore:
    """A store like the one in `base`, faster than saved anew."""
    shutil.copytree(base, folder)
    return CheckpointStore(folder)


def save_refused_at(trap: Trap, store: CheckpointStore, calls: int, refusal: BaseException) -> str | None:
    """What was raised; "" if the refusal did no harm; None if the save makes fewer calls than that."""
    contents = tensors(3), state(3)
    with trap.set(calls, refusal):
        try:
            store.save(3, *contents)
        except (Killed, PilgrimError) as error:
            return str(error) or "killed"
    return "" if trap.sprung else None


def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_newest_step(tmp_path: Path, trap: Trap) -> None:
    saved(tmp_path / "base", 1, 2)
    reached = []
    for calls in itertools.count():
        folder = tmp_path / str(calls)
        killed = save_refused_at(trap, copied(tmp_path / "base", folder), calls, Killed())
        store = CheckpointStore(folder)
        checkpoint, complaints = latest_with_complaints(store)
        assert complaints == []
        assert checkpoint is not None
        assert_is_step(checkpoint, checkpoint.step)
        reached.append(checkpoint.step)
        store.save(4, tensors(4), state(4))  # the next writer tidies up
        assert_is_step(store.load_latest(pytest.fail), 4)
        assert not list(folder.glob(".tmp-*"))
        if killed is None:
            break
    assert reached == sorted(reached) and set(reached) == {2, 3}
    assert len(reached) > 15, "the trap has seen the calls"


def test_a_refusal_at_any_moment_of_a_save_is_told_and_tidied(tmp_path: Path, trap: Trap) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    saved(tmp_path / "base", 1, 2)
    for calls in itertools.count():
        folder = tmp_path / str(calls)
        store = copied(tmp_path / "base", folder)
        error = save_refused_at(trap, store, calls, full)
        checkpoint, complaints = latest_with_complaints(store)
        assert complaints == []
        assert checkpoint is not None
        assert_is_step(checkpoint, checkpoint.step)
        if error is None:
            break
        assert checkpoint.step == 3 or "the disk is full" in error
        if checkpoint.step == 2:
            assert not list(folder.glob(".tmp-*"))
            assert f"the last good step, 2, is kept in {folder / 'step_000002'}" in error
    assert calls > 15


def test_a_kill_while_a_step_is_replaced_leaves_one_before_it(tmp_path: Path, trap: Trap) -> None:
    saved(tmp_path / "base", 2, 3)
    for calls in itertools.count():
        folder = tmp_path / str(calls)
        killed = save_refused_at(trap, copied(tmp_path / "base", folder), calls, Killed())
        checkpoint = CheckpointStore(folder).load_latest(lambda sentence: None)
        assert checkpoint is not None
        assert_is_step(checkpoint, checkpoint.step)
        if killed is None:
            break


def test_leftovers_of_a_killed_writer_are_no_step(tmp_path: Path) -> None:
    store = saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step_000001", tmp_path / ".tmp-step_000002")
    (tmp_path / ".tmp-LATEST-123").write_text("step_000002\n")
    assert_is_step(CheckpointStore(tmp_path).load_latest(pytest.fail), 1)
    assert (tmp_path / ".tmp-step_000002").exists(), "a reader leaves a writer's files alone"
    store.save(2, tensors(2), state(2))
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_file_that_can_not_grow_leaves_the_last_good_step(tmp_path: Path, no_file_beyond: Limit) -> None:
    store = saved(tmp_path, 1)
    for stem in ("model", "optimizer"):
        large = tensors(2) | {stem: {"large": torch.zeros(100_000)}}
        with (
            no_file_beyond(50_000),
            pytest.raises(PilgrimError, match=r"the last good step, 1, is kept in .*step_000001"),
        ):
            store.save(2, large, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step_000001"]
    assert_is_step(store.load_latest(pytest.fail), 1)


def test_a_really_full_disk_leaves_the_last_good_step(small_disk: Path) -> None:
    store = CheckpointStore(small_disk / "checkpoints", keep_last=99)
    with pytest.raises(PilgrimError, match=r"the disk is full \(0 MB free\); make room and start again"):
        for step in range(1, 99):
            store.save(step, {"model": {"large": torch.full((50_000,), float(step))}}, {})
    assert not list(store.folder.glob(".tmp-*"))
    last = store.load_latest(pytest.fail)
    assert last is not None
    assert last.step == store.steps()[-1] > 1
    assert torch.equal(last.tensors["model"]["large"], torch.full((50_000,), float(last.step)))


def test_no_permission_is_told(foreign_folder: Path) -> None:
    with pytest.raises(
        PilgrimError, match=r"step 1 could not be saved in .*: Permission denied; .*no earlier step"
    ):
        saved(foreign_folder / "checkpoints", 1)


def test_something_that_json_does_not_hold_is_our_mistake_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        CheckpointStore(tmp_path).save(1, {}, {"tensor": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


# Behind training's back ---------------------------------------------------------------------------


def test_training_goes_on_while_a_step_is_written(tmp_path: Path) -> None:
    """What is saved is what there was when `begin` was called, however soon it changes."""
    store = CheckpointStore(tmp_path)
    large = {"model": {"large": torch.zeros(2_000_000)}}  # takes longer to write than to change
    for step in range(1, 4):
        store.begin(step, large, {"step": step})
        large["model"]["large"] += 1
    store.wait()
    for step in (2, 3):
        found = store.load(step)
        assert found.state == {"step": step}
        assert torch.equal(found.tensors["model"]["large"], torch.full((2_000_000,), step - 1.0))


def test_an_error_in_the_background_comes_up_at_the_next_save_or_wait(
    tmp_path: Path, no_file_beyond: Limit
) -> None:
    store = saved(tmp_path, 1)
    with no_file_beyond(50):
        store.begin(2, tensors(2), state(2))
        with pytest.raises(PilgrimError, match=r"step 2 could not be saved .*the last good step, 1, is kept"):
            store.begin(3, tensors(3), state(3))
        store.wait()  # told once, and step 3 was not begun
        store.begin(4, tensors(4), state(4))
        with pytest.raises(PilgrimError, match="step 4 could not be saved"):
            store.wait()
    assert store.steps() == [1]
    store.save(5, tensors(5), state(5))
    assert_is_step(store.load_latest(pytest.fail), 5)


def test_at_the_end_of_a_block_all_is_durable_or_told(tmp_path: Path, no_file_beyond: Limit) -> None:
    with CheckpointStore(tmp_path) as store:
        store.begin(1, tensors(1), state(1))
    assert_is_step(store.load(1), 1)
    with no_file_beyond(50), pytest.raises(PilgrimError, match="step 2 could not be saved"), store:
        store.begin(2, tensors(2), state(2))
    with pytest.raises(ZeroDivisionError), store:  # what went wrong first is what is told
        store.begin(3, tensors(3), state(3))
        raise ZeroDivisionError
    assert_is_step(CheckpointStore(tmp_path).load(3), 3)


def test_a_step_that_nobody_should_go_on_from_is_removed(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    store.remove(2)
    store.remove(2)
    assert (store.steps(), (tmp_path / "LATEST").read_text()) == ([1], "step_000001\n")
    store.remove(1)
    assert list(tmp_path.iterdir()) == []


def test_who_reads_does_not_wait_for_what_writes() -> None:
    code = "import sys, pilgrim.infer.load; sys.exit('torch.distributed.checkpoint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# The weights alone --------------------------------------------------------------------------------


def test_the_weights_alone_are_those_of_the_newest_step_where_they_are_whole(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    flip_a_bit(tmp_path / "step_000002" / "optimizer.safetensors")  # of no account here
    damages: list[str] = []
    newest = store.load_latest(damages.append, only="model")
    assert newest is not None and newest.step == 2 and not damages
    assert list(newest.tensors) == ["model"]
    flip_a_bit(tmp_path / "step_000002" / "model.safetensors")
    before = store.load_latest(damages.append, only="model")
    assert before is not None and before.step == 1
    assert "model.safetensors is damaged: its SHA-256 differs" in damages[0]


def test_a_damaged_state_is_found_with_the_weights_alone_too(tmp_path: Path) -> None:
    store = saved(tmp_path, 1)
    flip_a_bit(tmp_path / "step_000001" / "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        store.load(1, only="model")


def test_a_step_without_weights_is_told(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"optimizer": {}}, {})
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints is whole"):
        store.load_latest(lambda sentence: None, only="model")
