"""Checkpoints: a step is on the disk whole and verified, or it is not there.

A step is a folder: safetensors files for each group of tensors ("model", "optimizer"), `state.json` for
everything else, and `manifest.json` with the size and SHA-256 of each of those files. It is written under
a temporary name, flushed to the disk, and renamed to `step_000500` in one go; only then does `LATEST` name
it, and only then are older steps removed. Wherever the writer is killed, the steps that were whole
stay so.

Saving is asynchronous: `begin` copies what is to be saved, which takes as long as the copy does, and all the
rest happens in the background (core/checkpoint_write.py); `wait` returns when it is durable, and is where an
error comes up. One save at a time: the next one waits for the last. Of several processes, all call every
method that writes or loads, at the same point; each writes and verifies its share of the files, and all go on
or none.

Reading trusts nothing (core/checkpoint_read.py): `load_latest` checks every file against the manifest, goes
from the newest step to the oldest, tells of each damaged one and takes the first that is whole. `LATEST` is
for people and scripts.

    checkpoints/
      LATEST               step_000500
      BEST                 step_000400
      step_000400/         model.safetensors  optimizer.safetensors  state.json  manifest.json
      step_000500/
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from pilgrim.core.checkpoint_read import (
    MANIFEST,
    STATE,
    StoredTensors,
    manifest_of,
    read_manifest,
    stem_of,
    verify,
)
from pilgrim.core.errors import CheckpointError, PilgrimError
from pilgrim.core.fence import Fence
from pilgrim.core.files import explain, explained, sync_folder, write_atomic
from pilgrim.core.processes import ALONE, Processes
from pilgrim.core.tensorfile import Fingerprint, write_bytes

if TYPE_CHECKING:  # who only reads a checkpoint does not wait for torch.distributed.checkpoint
    import torch.distributed as dist

    from pilgrim.core.checkpoint_write import Background

T = TypeVar("T")
LATEST = "LATEST"
BEST = "BEST"
TEMPORARY = ".tmp-"
LAST_SAVE_S = 30.0  # how long an error waits for the step that is just being saved
TALK_S = 30 * 60  # how long processes wait for one another: a slow disk is no reason to give up


@dataclass(frozen=True)
class Checkpoint:
    """A step as it was saved: tensors on the CPU by file stem and name, and the state that JSON holds."""

    step: int
    folder: Path
    tensors: dict[str, StoredTensors]
    state: dict[str, Any]


class CheckpointStore:
    """The steps in one folder. One run may write; any number of processes may read meanwhile."""

    def __init__(
        self,
        folder: Path,
        keep_last: int = 2,
        processes: Processes = ALONE,
        fence: Fence | None = None,
    ) -> None:
        if keep_last < 1:
            raise ValueError("keep_last must be at least 1")
        self.folder = folder
        self.keep_last = keep_last
        self._processes, self._fence = processes, fence
        self._saving: int | None = None  # the step that is being saved

    # Writing ------------------------------------------------------------------------------------------

    def begin(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Copies what a step consists of, and goes on writing it in the background; `wait` makes it durable.

        `tensors` are file stem -> name -> tensor of any shape, dtype and device; `state` is what JSON
        holds exactly (its floats come back to the bit). Of several processes, each passes what it has: a
        tensor that several have under one name must be the same in all. A step that is already there is
        replaced, and later steps are dropped: a run that saves step 300 has gone back behind them.

        Raises what `wait` does, of the save before.
        """
        from pilgrim.core.checkpoint_write import StepWriter

        self.wait()
        text = json.dumps(state)
        temporary = self._temporary(step)
        writer = StepWriter(
            temporary,
            tensors,
            self._processes,
            prepare=lambda: self._prepare(temporary),
            commit=lambda files: self._commit(temporary, step, text, files),
        )
        staged = self._background.stage(tensors)
        self._saving = step
        self._background.start(staged, writer)

    def wait(self) -> None:
        """Returns when the last `begin` is durable, in every process.

        Raises PilgrimError, in every process, when the disk is full or writing is not allowed in one of
        them, and Fenced if the run was started again; the steps that were there stay as they were.
        """
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        error = self._background.join()
        if error is None:
            return
        if self._processes.first:
            shutil.rmtree(self._temporary(step), ignore_errors=True)
        if isinstance(error, OSError | PilgrimError):
            self._check_fence()  # a ghost's files were removed under its hands: that is why
        if isinstance(error, OSError):
            why = f"{explain(error, self._path(step))}; {self._safe(step)}"
            raise PilgrimError(f"step {step} could not be saved in {self.folder}: {why}") from error
        raise error

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """`wait`. If something else has failed, that is what shall be told, and this waits for a while only;
        if a person insists on stopping, not at all.
        """
        if kind is None:
            self.wait()
        elif self._saving is not None and not issubclass(kind, KeyboardInterrupt):
            self._background.join(LAST_SAVE_S)

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """`begin` and `wait`; returns the step's folder."""
        self.begin(step, tensors, state)
        self.wait()
        return self._path(step)

    def mark_best(self, step: int) -> None:
        """Marks a saved step as the best, which is then kept however old it gets. Waits for its save."""
        self.wait()
        if not self._processes.first:
            return
        if step not in self.steps():
            raise CheckpointError(f"{self.folder} holds no step {step} to mark as best; save it first")
        self._point(BEST, step)

    def remove(self, step: int) -> None:
        """Removes a step, if it is there: one that nobody should go on from."""
        self.wait()
        if self._processes.first and step in self.steps():
            self._check_fence()
            earlier = [s for s in self.steps() if s != step][-1:]
            (self.folder / LATEST).unlink(missing_ok=True)
            with explained("removed", self._path(step)):
                self._set_aside(self._path(step))
                self._remove_leftovers()
            for newest in earlier:
                self._point(LATEST, newest)
        self._gathered(None)

    # Reading ------------------------------------------------------------------------------------------

    def best(self) -> int | None:
        """The step marked best, if it is there."""
        return self._named(BEST)

    def steps(self) -> list[int]:
        """The steps that are there, whole or damaged, from oldest to newest."""
        if not self.folder.is_dir():
            return []
        names = (re.fullmatch(r"step_(\d{6,})", entry.name) for entry in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def load(self, step: int, only: str | None = None) -> Checkpoint:
        """Reads and verifies one step; with `only`, the state and one stem of tensors, such as "model".

        Raises CheckpointError, in every process, when it is missing or damaged.
        """
        folder = self._path(step)
        files: list[Path] = []
        problem: PilgrimError | None = None
        try:
            files = self._verified(step, only)
        except PilgrimError as error:
            problem = error
        for found in self._gathered(problem):
            if found is not None:
                raise found
        stems = sorted({stem_of(file.name) for file in files})
        tensors = {s: StoredTensors([file for file in files if stem_of(file.name) == s]) for s in stems}
        for stored in tensors.values():
            if missing := stored.incomplete():
                raise CheckpointError(f"{folder} is damaged: parts of {missing[0]} are in none of its files")
        return Checkpoint(step, folder, tensors, json.loads((folder / STATE).read_bytes()))

    def load_latest(
        self, on_damage: Callable[[str], None], only: str | None = None, before: int | None = None
    ) -> Checkpoint | None:
        """The newest step that is whole, or None when there is no step at all; `only` as for `load`.

        With `before`, only steps before that one count. `on_damage` is told, in one sentence each, of the
        steps that had to be passed over. Raises CheckpointError when there are steps and all are damaged.
        """
        there = self._gathered(self.steps())[0]  # as the first process sees them
        steps = [step for step in there if before is None or step < before]
        if (self.folder / LATEST).exists() and self._named(LATEST) is None:
            on_damage(f"{self.folder / LATEST} names a step that is not there; the newest one there is used")
        for step in reversed(steps):
            try:
                return self.load(step, only)
            except CheckpointError as damage:
                on_damage(f"{damage}; the one before is tried")
        if steps:
            found = f"none of the {len(steps)} checkpoints is whole"
            raise CheckpointError(f"{self.folder}: {found}; remove the folder to begin anew")
        return None

    def _verified(self, step: int, only: str | None) -> list[Path]:
        """A step's files of tensors, of which this process has verified its share."""
        folder = self._path(step)
        if not folder.is_dir():
            known = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{folder} does not exist; the steps there are: {known}")
        expected = read_manifest(folder, step)
        names = [name for name in expected if name != STATE and only in (None, stem_of(name))]
        if STATE not in expected or (only and not names):
            raise CheckpointError(f"{folder} is damaged: its {MANIFEST} names no {only or STATE}")
        ours = [STATE, *names][self._processes.rank :: self._processes.count]
        for name in ours:
            verify(folder / name, expected[name])
        return [folder / name for name in names]

    # How a step becomes one, in the background, in the first process -----------------------------------

    def _prepare(self, temporary: Path) -> None:
        self._check_fence()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        temporary.mkdir()

    def _commit(self, temporary: Path, step: int, state: str, files: Mapping[str, Fingerprint]) -> None:
        """All files of tensors are durable in `temporary`: complete it, and let it be the newest step."""
        made = {**files, STATE: write_bytes(temporary / STATE, state.encode())}
        write_bytes(temporary / MANIFEST, json.dumps(manifest_of(step, made), indent=2).encode())
        sync_folder(temporary)
        self._check_fence()
        final = self._path(step)
        if final.exists():
            self._set_aside(final)
        temporary.rename(final)
        sync_folder(self.folder)
        self._point(LATEST, step)
        with explained("tidied", self.folder):
            self._rotate(step)

    def _rotate(self, newest: int) -> None:
        steps, best = self.steps(), self.best()
        keep = [step for step in steps if step <= newest][-self.keep_last :]
        for step in steps:
            if step > newest or step not in (*keep, best):  # a later one is given up, were it the best
                self._check_fence()
                self._set_aside(self._path(step))
        self._remove_leftovers()

    def _set_aside(self, folder: Path) -> None:
        """Renamed before it is removed, so that a kill in between leaves no step with files missing."""
        folder.rename(folder.with_name(f"{TEMPORARY}old-{folder.name}"))

    def _remove_leftovers(self) -> None:
        """What was set aside, or left by a killed writer. A reader must not do this to a writer at work,
        nor a ghost to the next start.
        """
        ours = self._fence.epoch if self._fence else 0
        for entry in self.folder.glob(TEMPORARY + "*"):
            epoch = re.search(r"-e(\d+)$", entry.name)
            if epoch and int(epoch[1]) > ours:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    # Small things -------------------------------------------------------------------------------------

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def _temporary(self, step: int) -> Path:
        """Of each start of the run another, so that a ghost's rename finds nothing."""
        epoch = f"-e{self._fence.epoch}" if self._fence else ""
        return self.folder / f"{TEMPORARY}{self._path(step).name}{epoch}"

    def _point(self, pointer: str, step: int) -> None:
        """Let LATEST or BEST name a step."""
        write_atomic(self.folder / pointer, self._path(step).name + "\n", self._check_fence)

    def _named(self, pointer: str) -> int | None:
        """The step that LATEST or BEST names, if it is there."""
        try:
            name = (self.folder / pointer).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return next((step for step in self.steps() if self._path(step).name == name), None)

    def _safe(self, failed: int) -> str:
        earlier = [step for step in self.steps() if step < failed]
        if not earlier:
            return "no earlier step was saved"
        return f"the last good step, {earlier[-1]}, is kept in {self._path(earlier[-1])}"

    def _check_fence(self) -> None:
        if self._fence is not None:
            self._fence.check()

    @cached_property
    def _background(self) -> "Background":
        from pilgrim.core.checkpoint_write import Background

        return Background(self._processes, self._group)

    @cached_property
    def _group(self) -> "dist.ProcessGroup | None":
        """For the messages of saving and loading; all processes come here at the same point."""
        if self._processes.count == 1:
            return None
        import torch.distributed as dist

        group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(seconds=TALK_S))
        return group

    def _gathered(self, value: T) -> list[T]:
        """What each process has passed, in every process."""
        if self._processes.count == 1:
            return [value]
        import torch.distributed as dist

        everyone: list[T] = [value] * self._processes.count
        dist.all_gather_object(everyone, value, self._group)
        return everyone
