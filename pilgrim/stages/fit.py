"""Whether a recipe can be trained on this machine at all, asked before the first stage begins.

A run that is out of memory shows it hours after its start, when text has been tokenized. So the memory of
a microbatch of one row is estimated (model/memory.py) and compared with the device's. What the estimate
leaves out only adds to it: a recipe that is refused could not have been trained. Left out are a teacher's
weights, the model that rewards hold as a reference, and the engine's copy with its cache. How many rows go
through a GPU at once is another question: it is measured when they are there (train/fit.py).
"""

from dataclasses import dataclass

import torch

from pilgrim.core import gpu, machine
from pilgrim.core.errors import SettingsError
from pilgrim.core.runtime import GB, Runtime
from pilgrim.model.memory import TrainingBytes, training_bytes
from pilgrim.optim.state import BYTES
from pilgrim.stages.recipe import Recipe


@dataclass(frozen=True)
class Room:
    """The memory of what computes. `taken` says who holds so much of it that it matters."""

    name: str
    total_bytes: int
    free_bytes: int
    taken: str | None = None


def check(recipe: Recipe, runtime: Runtime) -> list[str]:
    """Notes about the device's memory. Raises SettingsError if the (resolved) recipe cannot fit."""
    room = _room(runtime.device, runtime.processes.count)
    config = recipe.model_of(recipe.stage_before("evaluate")).config(recipe.tokenizer.vocab_size)
    needed = training_bytes(
        config,
        1,
        runtime.dtype,
        runtime.compile,
        recompute=recipe.runtime.checkpoint_activations,
        state_bytes=BYTES[recipe.optim.state],
        parallel=runtime.parallel,
        processes=runtime.processes.count,
    )
    if why := cannot_fit(recipe, needed, room, runtime.processes.count > 1):
        raise SettingsError(why)
    return [f"{room.taken[0].upper()}{room.taken[1:]}."] if room.taken else []


def cannot_fit(recipe: Recipe, needed: TrainingBytes, room: Room, of_several: bool = False) -> str | None:
    """The sentence for a recipe that needs more memory than there is; None if it may fit."""
    if needed.total <= room.free_bytes:
        return None
    parts = ("weights", "gradients", "optimizer", "activations", "loss")
    listed = ", ".join(f"{part} {getattr(needed, part) / GB:.1f}" for part in parts)
    sentence = (
        f"{recipe.name}: training needs {needed.total / GB:.1f} GB even with one row at a time ({listed}), "
        f"and {room.name} has {room.total_bytes / GB:.1f} GB"
    )
    if needed.total <= room.total_bytes:
        free = f"of which {room.free_bytes / GB:.1f} are free"
        return f"{sentence}, {free}: {room.taken or 'end other programs'}"
    if needed.activations > needed.fixed:
        first = (
            ""
            if recipe.runtime.checkpoint_activations
            else "write runtime.checkpoint_activations = true, or "
        )
        return f"{sentence}; {first}lower {_longest(recipe)}, or model.depth = {recipe.model.depth}"
    divide = (
        'write runtime.parallel = "fsdp", or ' if of_several and recipe.runtime.parallel != "fsdp" else ""
    )
    return f"{sentence}; {divide}lower model.depth = {recipe.model.depth}"


def _longest(recipe: Recipe) -> str:
    """The setting that says how long rows get."""
    if recipe.midtrain and recipe.midtrain.context:
        return f"midtrain.context = {recipe.midtrain.context}"
    return f"model.context = {recipe.model.context}"


def _room(device: torch.device, processes: int) -> Room:
    """A CPU's memory counts whole: what other programs hold of it can be moved to disk.

    Each of several processes has a GPU of its own, but they share a CPU's memory.
    """
    if device.type == "cuda":
        found = machine.gpu_occupancy()
        return Room(found.name, found.total_bytes, found.free_bytes, gpu.crowded(found))
    if device.type == "mps":
        most = torch.mps.recommended_max_memory()
        return Room(machine.processor_name(), most, most)
    total, _ = machine.memory_bytes()
    return Room("this machine" if processes == 1 else "each process", total // processes, total // processes)
