"""Checkpoints: a step is on the disk whole and verified, or it is not there.

A step is a folder: one safetensors file for each group of tensors ("model", "optimizer"), `state.json` for
everything else, and `manifest.json` with the size and SHA-256 of each of those files. It is written under
a temporary name, flushed to the disk, and renamed to `step_000500` in one go; only then does `LATEST` name
it, and only then are older steps removed. Wherever the writer is killed, the steps that were whole
stay so.

Reading trusts nothing: `load_latest` checks every file against the manifest, goes from the newest step to
the oldest, tells of each damaged one and takes the first that is whole. `LATEST` is for people and scripts.

    checkpoints/
      LATEST               step_000500
      BEST                 step_000400
      step_000400/         model.safetensors  optimizer.safetensors  state.json  manifest.json
      step_000500/
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pilgrim.core.errors import CheckpointError, PilgrimError
from pilgrim.core.files import explain, explained, sha256_file, sync_file, sync_folder, write_atomic

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
LATEST = "LATEST"
BEST = "BEST"
TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Checkpoint:
    """A step as it was saved: tensors on the CPU by file stem and name, and the state that JSON holds."""

    step: int
    folder: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class CheckpointStore:
    """The steps in one folder. One process may write; any number may read meanwhile."""

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        if keep_last < 1:
            raise ValueError("keep_last must be at least 1")
        self.folder = folder
        self.keep_last = keep_last

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Writes a step durably and returns its folder; then keeps the last few steps and the best.

        `tensors` are file stem -> name -> tensor of any shape, dtype and device; `state` is what JSON
        holds exactly (its floats come back to the bit). A step that is already there is replaced, and
        later steps are dropped: a run that saves step 300 has gone back behind them.

        Raises PilgrimError when the disk is full or writing is not allowed; the steps that were there
        stay as they were.
        """
        final = self._path(step)
        temporary = final.with_name(TEMPORARY + final.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            _write_step(temporary, step, tensors, state)
            if final.exists():
                self._set_aside(final)
            temporary.rename(final)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            why = f"{explain(error, final)}; {self._safe(step)}"
            raise PilgrimError(f"step {step} could not be saved in {self.folder}: {why}") from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        write_atomic(self.folder / LATEST, final.name + "\n")
        with explained("tidied", self.folder):
            self._rotate(step)
        return final

    def mark_best(self, step: int) -> None:
        """Marks a saved step as the best, which is then kept however old it gets."""
        if step not in self.steps():
            raise CheckpointError(f"{self.folder} holds no step {step} to mark as best; save it first")
        write_atomic(self.folder / BEST, self._path(step).name + "\n")

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
        """Reads and verifies one step; with `only`, the state and one file of tensors, such as "model".

        Raises CheckpointError when it is missing or damaged.
        """
        folder = self._path(step)
        if not folder.is_dir():
            known = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{folder} does not exist; the steps there are: {known}")
        files = _verified(folder, step, f"{only}.safetensors" if only else None)
        tensors = {Path(name).stem: _read_tensors(folder / name) for name in files if name != STATE}
        return Checkpoint(step, folder, tensors, json.loads((folder / STATE).read_bytes()))

    def remove(self, step: int) -> None:
        """Removes a step: what it holds is of no use."""
        with explained("tidied", self.folder):
            if self._named(LATEST) == step:
                (self.folder / LATEST).unlink()
            self._set_aside(self._path(step))
            self._remove_leftovers()

    def load_latest(
        self, on_damage: Callable[[str], None], only: str | None = None, before: int | None = None
    ) -> Checkpoint | None:
        """The newest step that is whole, or None when there is no step at all; `only` as for `load`.

        With `before`, only steps before that one count. `on_damage` is told, in one sentence each, of the
        steps that had to be passed over. Raises CheckpointError when there are steps and all are damaged.
        """
        steps = [step for step in self.steps() if before is None or step < before]
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

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def _named(self, pointer: str) -> int | None:
        """The step that LATEST or BEST names, if it is there."""
        try:
            name = (self.folder / pointer).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return next((step for step in self.steps() if self._path(step).name == name), None)

    def _rotate(self, newest: int) -> None:
        steps = self.steps()
        keep = {*[step for step in steps if step <= newest][-self.keep_last :], self.best()}
        for step in steps:
            if step not in keep:
                self._set_aside(self._path(step))
        self._remove_leftovers()

    def _set_aside(self, folder: Path) -> None:
        """Renamed before it is removed, so that a kill in between leaves no step with files missing."""
        folder.rename(folder.with_name(f"{TEMPORARY}old-{folder.name}"))

    def _remove_leftovers(self) -> None:
        """What was set aside, or left by a killed writer. A reader must not do this to a writer at work."""
        for entry in self.folder.glob(TEMPORARY + "*"):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _safe(self, failed: int) -> str:
        earlier = [step for step in self.steps() if step < failed]
        if not earlier:
            return "no earlier step was saved"
        return f"the last good step, {earlier[-1]}, is kept in {self._path(earlier[-1])}"


def _write_step(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    folder.mkdir()
    for stem, named in tensors.items():
        _write_tensors(folder / f"{stem}.safetensors", named)
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
    files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, "step": step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for path in folder.iterdir():
        sync_file(path)
    sync_folder(folder)


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Copies, since safetensors wants contiguous tensors that share no memory (tied weights do).
    layout = torch.contiguous_format
    copies = {name: t.detach().to("cpu", copy=True, memory_format=layout) for name, t in tensors.items()}
    try:
        safetensors.torch.save_file(copies, path)
    except safetensors.SafetensorError as error:  # its way of passing on what the system said
        refusal = re.search(r"os error (\d+)", str(error))
        if refusal is None:
            raise
        raise OSError(int(refusal[1]), os.strerror(int(refusal[1])), str(path)) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _verified(folder: Path, step: int, only: str | None) -> list[str]:
    """The files that the manifest names (of those of tensors, just `only`), all found whole.

    Raises CheckpointError for the first that isn't.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
        is_ours = (
            manifest["format"] == FORMAT and manifest["step"] == step and {STATE, only or STATE} <= set(files)
        )
    except PermissionError as error:
        raise PilgrimError(f"{folder} could not be read: {explain(error, folder / MANIFEST)}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is damaged: its {MANIFEST} can't be read ({error})") from None
    if not is_ours:
        raise CheckpointError(f"{folder} is damaged: its {MANIFEST} belongs to another step or format")
    wanted = [STATE, only] if only else list(files)
    for name in wanted:
        _verify(folder / name, *files[name])
    return wanted


def _verify(path: Path, size: int, sha256: str) -> None:
    try:
        if path.stat().st_size != size:
            raise CheckpointError(f"{path} is damaged: it has {path.stat().st_size} bytes instead of {size}")
        if sha256_file(path) != sha256:
            raise CheckpointError(f"{path} is damaged: its SHA-256 differs from the manifest's")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except PermissionError as error:
        raise PilgrimError(f"{path} could not be read: {explain(error, path)}") from None
    except OSError as error:
        raise CheckpointError(f"{path} is damaged: {error.strerror}") from None
