"""What a checkpoint of training holds, and how it is put back.

Everything that determines the future: weights, optimizer state, the loader's position, the step, the size of
a microbatch, the recent course by which steps are judged, the best so far, and what was spent. Schedules, and
what grows over a run, are functions of the step, and random numbers have names (core/runtime.py), so there is
nothing else to save.

Of an adapted network (model/lora.py) "model" has the merged weights, which is what everybody else wants, and
a file "adapter" has the adapters. What they were merged into is not saved again: the stage began with it, and
does so again when it is resumed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pilgrim.core.checkpoint import Checkpoint, CheckpointStore
from pilgrim.core.checkpoint_read import StoredTensors
from pilgrim.core.errors import ChangedRecipe
from pilgrim.core.slices import local, slice_like, whole
from pilgrim.data.loader import Position
from pilgrim.model.lora import adapters
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers
from pilgrim.train.fit import MicroBatch


@dataclass
class State:
    """Where a stage is. Plain values: saved with every checkpoint as JSON."""

    step: int = 0  # updates made
    tokens: int = 0  # tokens trained on, padding not counted
    position: Position | None = None  # of the loader
    micro_tokens: int | None = None  # of a microbatch, where it was measured or halved (train/fit.py)
    micro_rows: int | None = None  # what the recipe said about it then
    data_wait_s: float = 0.0  # seconds spent waiting for batches, over all resumptions
    train_s: float = 0.0  # seconds spent in steps, over all resumptions
    elapsed_s: float = 0.0  # seconds spent on all of it, evaluations too, over all resumptions
    device_s: float = 0.0  # the same, times the processes that ran at a time: what one pays for
    best_bpb: float | None = None  # the lowest of the evaluations before this step
    health: dict[str, Any] | None = None  # the recent course of loss and gradient norm (train/health.py)
    faults: int = 0  # bad steps so far (train/faults.py)
    faults_in_a_row: int = 0
    fault_step: int = 0  # the last bad step
    fault_updates: int = 0  # how many updates the weights had when the row of faults began
    back_to: int = -1  # the step that was rolled back to; it stays known to be good


ROUNDING = 1e-4  # two machines may merge adapters with other roundings; another network differs by far more
# Of a State: they go on, also where all else is put back.
COUNTS = ("faults", "faults_in_a_row", "fault_step", "fault_updates", "back_to")


def keep(
    store: CheckpointStore, state: State, model: Transformer, optimizers: Optimizers, micro: MicroBatch
) -> None:
    """Begin to save all of it as the checkpoint of `state.step`; `store.wait` returns when that is durable.

    Returns as soon as training may go on and change it.
    """
    state.micro_tokens, state.micro_rows = micro.tokens, micro.given
    tensors = {"model": model.weights(), "optimizer": optimizers.tensors()}
    if adapted := adapters(model):
        tensors["adapter"] = adapted
    store.begin(state.step, tensors, {**asdict(state), "model_config": model.config.model_dump()})


def put_back(found: Checkpoint, model: Transformer, optimizers: Optimizers, micro: MicroBatch) -> State:
    """Load what `keep` has saved. Raises ChangedRecipe if it is of another network or another format."""
    if adapters(model) or "adapter" in found.tensors:
        load_adapters(model, found)
    else:
        load_weights(model, found.tensors["model"], found.state["model_config"], found.folder)
    optimizers.load(found.tensors["optimizer"])
    state = State(**{k: v for k, v in found.state.items() if k != "model_config"})
    if state.micro_rows == micro.given:  # else the recipe's new word counts
        micro.tokens = state.micro_tokens
    return state


def load_weights(
    model: Transformer, weights: Mapping[str, Tensor], config: Mapping[str, Any], place: Path
) -> None:
    """Give `model` the weights found at `place`, of a network whose settings were `config`.

    Raises ChangedRecipe if that network had another shape.
    """
    if _shapes(weights) != _shapes(model.weights()):
        now = model.config.model_dump()
        changes = [f"{key}: {config.get(key)} -> {now[key]}" for key in now if config.get(key) != now[key]]
        raise ChangedRecipe(
            f"{place}: the weights there are of a model of another shape ({', '.join(changes)}), and what "
            "is trained keeps its shape; go back to it, or give this run another name with name=…"
        )
    own = model.weights()
    model.load_weights({name: slice_like(weights[name], own[name]) for name in weights})


@torch.no_grad()
def load_adapters(model: Transformer, found: Checkpoint) -> None:
    """Give `model`, which has the weights that the stage began with, the adapters of a checkpoint.

    Raises ChangedRecipe if they are of another rank or place, or belong to other weights.
    """
    own = adapters(model)
    stored: Mapping[str, Tensor] = found.tensors.get("adapter", {})
    if _shapes(stored) != _shapes(own):
        raise ChangedRecipe(
            f"{found.folder}: it was trained {_lora_in_words(stored)}, and the recipe now says "
            f"{_lora_in_words(own)}; go back to that, or give this run another name with name=…"
        )
    for name, adapter in own.items():
        adapter.copy_(slice_like(stored[name], adapter))
    for name, weight in model.weights().items():
        before, now = local(slice_like(found.tensors["model"][name], weight)), local(weight)
        if not torch.allclose(now, before.to(now.device), rtol=ROUNDING, atol=ROUNDING):
            raise ChangedRecipe(
                f"{found.folder}: its adapters belong to other weights than those that the stage before has "
                f"now ({name} differs); train this stage anew, by removing its folder"
            )


def weights_hash(model: Transformer) -> str:
    """The SHA-256 of a network's weights, adapters merged. Where weights are sliced, all processes must call
    this.
    """
    digest = sha256()
    for name, weight in sorted(model.weights().items()):
        digest.update(name.encode())
        digest.update(whole(weight).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _lora_in_words(adapted: Mapping[str, Tensor]) -> str:
    ranks = {shape[0] for name, shape in _shapes(adapted).items() if name.endswith(".a")}
    if not ranks:
        return "without LoRA"
    return f"with LoRA of rank {min(ranks)} in {len(adapted) // 2} matrices"


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    if isinstance(weights, StoredTensors):  # which need not be read for that
        return {name: weights.shape(name) for name in weights}
    return {name: tuple(weight.shape) for name, weight in weights.items()}
