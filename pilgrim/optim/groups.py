"""Which parameter gets which optimizer, and how a schedule reaches them.

Matrices inside the blocks map one space to another: Muon. The embedding is a table of rows of which a
batch touches few, the head is as wide as the vocabulary, norms are vectors: AdamW, each with a rate of
its own. Where a network is adapted (model/lora.py), nothing but adapters moves, by AdamW: they are factors
of an update and no maps by themselves, published rates are for it, and Muon did no better with the pocket
model (0.874 bits per byte of conversations with either, one seed).
`Optimizers` holds both, applies the schedule, and saves its state under the parameters' names.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pilgrim.core.config import Settings
from pilgrim.core.errors import ChangedRecipe
from pilgrim.core.runtime import Parallel
from pilgrim.core.slices import local, slice_like
from pilgrim.optim.adamw import AdamW
from pilgrim.optim.muon import Muon
from pilgrim.optim.state import BYTES, Format


class OptimSettings(Settings):
    """`[optim]` of a recipe. Rates that are None follow from the width (optim/scaling.py)."""

    matrix_lr: float | None = Field(default=None, ge=0, description="peak learning rate of Muon's matrices")
    embedding_lr: float | None = Field(
        default=None, ge=0, description="peak learning rate of the embedding table"
    )
    head_lr: float | None = Field(default=None, ge=0, description="peak learning rate of the head")
    norm_lr: float | None = Field(default=None, ge=0, description="peak learning rate of the norms' gains")
    weight_decay: float = Field(default=0.0, ge=0, description="cautious weight decay of the matrices")
    head_weight_decay: float = Field(default=0.0, ge=0, description="weight decay of the head")
    momentum_start: float = Field(default=0.85, ge=0, lt=1, description="Muon's momentum at the first step")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="Muon's momentum once warmed up")
    momentum_warmup: int = Field(default=100, ge=0, description="steps from the one to the other")
    state: Format = Field(
        default="fp32", description="how the optimizers' memory is kept: 4, 2 or 1 bytes a number"
    )

    def with_rates(self, matrix: float, embedding: float, head: float, norm: float) -> "OptimSettings":
        """The same settings with the rates that are None set to the given ones."""
        given = {"matrix_lr": matrix, "embedding_lr": embedding, "head_lr": head, "norm_lr": norm}
        return self.model_copy(update={k: v for k, v in given.items() if getattr(self, k) is None})


class Optimizers:
    """Muon and AdamW over one model, as one thing with one step."""

    def __init__(
        self,
        model: nn.Module,
        settings: OptimSettings,
        dtype: torch.dtype,
        compile: bool,
        parallel: Parallel = "alone",
        adapter_lr: float | None = None,
    ) -> None:
        """`settings` must be resolved (no rate None). Muon's products run in `dtype`.

        Parameters without a gradient are left alone. `adapter_lr` is the rate of adapters, if there are some.

        With `parallel` "zero", each process keeps the state of some parameters and updates only these; with
        "fsdp" the parameters are slices already.
        """
        self._names: dict[Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        kinds: dict[str, list[Tensor]] = {}
        for parameter, name in self._names.items():
            kinds.setdefault(kind_of(name, parameter), []).append(parameter)
        rates = {kind: getattr(settings, f"{kind}_lr") for kind in ("matrix", "embedding", "head", "norm")}
        rates["adapter"] = adapter_lr
        if any(rates[kind] is None for kind in kinds):
            raise ValueError(f"optimizer rates must be resolved first: {rates}")
        self.peak_lr: float = rates["adapter" if "adapter" in kinds else "matrix"]  # the one that is shown
        decay = dict.fromkeys(rates, 0.0) | {
            "matrix": settings.weight_decay,
            "head": settings.head_weight_decay,
        }
        groups = {
            kind: {"params": kinds[kind], "base_lr": rates[kind], "weight_decay": decay[kind]}
            for kind in ("matrix", "embedding", "head", "norm", "adapter")
            if kind in kinds
        }
        matrices = [groups.pop("matrix")] if "matrix" in groups else []
        self._parallel = parallel
        self._form: Format = settings.state
        self.muon = self._made(Muon, matrices, dtype=dtype, compile=compile, form=settings.state)
        self.adamw = self._made(AdamW, [*groups.values()], compile=compile, form=settings.state)
        self.all = [optimizer for optimizer in (self.muon, self.adamw) if optimizer is not None]

    def _made(self, kind: type[torch.optim.Optimizer], groups: list[dict[str, Any]], **settings: Any) -> Any:
        if not groups:
            return None
        if self._parallel != "zero":
            return kind(groups, **settings)
        with warnings.catch_warnings():  # torch's own: what it imports there uses its old compiler
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch.distributed.optim import ZeroRedundancyOptimizer
        return ZeroRedundancyOptimizer(groups, optimizer_class=kind, **settings)

    def _own(self) -> Iterator[torch.optim.Optimizer]:
        """Muon and AdamW with what this process keeps of them."""
        for optimizer in self.all:
            own: torch.optim.Optimizer = optimizer.optim if self._parallel == "zero" else optimizer
            yield own

    def step(self, multiplier: float, momentum: float, take: Tensor | None = None) -> None:
        """Update all parameters with their peak rates times `multiplier`, and clear the gradients.

        With a bool `take` [] on the device, only if it is True; else weights and state stay, to the bit.
        """
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * multiplier
                if optimizer is self.muon:
                    group["beta"] = momentum
            optimizer.step(take=take)
            # Of several processes, gradients keep their places among those that are sent together.
            optimizer.zero_grad(set_to_none=self._parallel in ("alone", "fsdp"))

    def rehearse(self, take: Tensor | None = None) -> None:
        """Make a step that changes nothing, from gradients of any kind, which it clears.

        It compiles what the real steps will run. With a rate of 0 the weights stay to the bit; the state is
        put aside meanwhile.
        """
        kept = {name: local(value).to("cpu", copy=True) for name, value in self.tensors().items()}
        self.step(0.0, 0.0, take)
        if not kept:
            for optimizer in self._own():
                optimizer.state.clear()
        for name, value in self.tensors().items():
            local(value).copy_(kept[name])

    def missing_bytes(self) -> int:
        """What the first step will allocate for state here, and keep; 0 once it has."""
        numbers = 0
        for optimizer in self._own():
            states = 1 if isinstance(optimizer, Muon) else 2
            missing = (p for p in _parameters(optimizer) if p not in optimizer.state)
            numbers += states * sum(local(p).numel() for p in missing)
        return round(numbers * BYTES[self._form])

    def tensors(self) -> dict[str, Tensor]:
        """The state under names like "model.norm.weight/mean", as far as this process keeps it."""
        return {f"{name}/{key}": value for name, key, value in self._state()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what this process keeps of a state from `tensors()`, or of all processes' together.

        To the bit, and for the present one. Raises ChangedRecipe if it is in another format.
        """
        found = _form_of(tensors)
        if found not in (None, self._form):
            raise ChangedRecipe(
                f'optim.state = "{self._form}", but the state in the checkpoint is "{found}"; go back to '
                "that, or give this run another name with name=…"
            )
        for optimizer in self._own():
            optimizer.state.clear()
        own = {self._names[p]: (p, optimizer) for optimizer in self._own() for p in _parameters(optimizer)}
        for key in tensors:
            name, _, what = key.rpartition("/")
            if name in own:  # else it is read by another process
                parameter, optimizer = own[name]
                optimizer.state[parameter][what] = slice_like(tensors[key].to(parameter.device), parameter)

    def _state(self) -> Iterator[tuple[str, str, Tensor]]:
        for optimizer in self._own():
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    yield self._names[parameter], key, value


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _form_of(tensors: Mapping[str, Tensor]) -> Format | None:
    """The format of a state from `Optimizers.tensors`; None if it is empty."""
    forms: dict[torch.dtype, Format] = {torch.uint8: "8bit", torch.bfloat16: "bf16", torch.float32: "fp32"}
    kept = (tensors[name] for name in tensors if name.endswith(("/momentum", "/mean")))
    return next((forms[value.dtype] for value in kept), None)


def kind_of(name: str, parameter: Tensor) -> str:
    """ "embedding", "head", "norm", "matrix" or "adapter": which learning rate, and which optimizer."""
    if ".lora." in name:  # as model/lora.py names them (MARK); rooms beside each other don't know each other
        return "adapter"
    if parameter.ndim < 2:
        return "norm"
    if "embed_tokens" in name:
        return "embedding"
    return "head" if "lm_head" in name else "matrix"
