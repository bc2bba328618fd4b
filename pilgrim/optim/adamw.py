"""AdamW (Loshchilov & Hutter 2019), for what is no matrix map: embedding, head and norm gains.

Every entry keeps a running mean m of its gradient and v of its square; it moves by m / sqrt(v), both
corrected for having started at zero. Weight decay is applied to the weight itself, not to the gradient.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pilgrim.core.compiling import compiled
from pilgrim.core.slices import local
from pilgrim.optim.state import Format, Stored, empty, put, read, stored, write


def adamw_update(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step for one parameter of any shape: new weight, mean and square; `step` counts from 1."""
    mean = torch.lerp(mean, gradient, 1 - beta1)
    square = torch.lerp(square, gradient.square(), 1 - beta2)
    size = (square / (1 - beta2**step)).sqrt() + eps
    update = mean / (1 - beta1**step) / size
    return weight * (1 - lr * weight_decay) - lr * update, mean, square


def adamw_step(
    weight: Tensor,
    gradient: Tensor,
    mean: Stored,
    square: Stored,
    step: Tensor,
    take: Tensor | None,
    *settings: Any,
) -> None:
    """The same in place, with mean and square as they are kept, unless `take` refuses it (optim/state.py)."""
    means, squares = read(mean, signed=True), read(square, signed=False)
    updated, means, squares = adamw_update(weight, gradient, means, squares, step, *settings)
    write(means, mean, signed=True, step=step, take=take)
    write(squares, square, signed=False, step=step, take=take)
    put(updated, weight, take)


class AdamW(torch.optim.Optimizer):
    """AdamW. Group settings: `lr`, `betas`, `eps`, `weight_decay`."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.8, 0.95),
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        compile: bool = False,
        form: Format = "fp32",
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._form = form
        self._step = compiled(adamw_step) if compile else adamw_step

    @torch.no_grad()
    def step(self, closure: None = None, take: Tensor | None = None) -> None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient; none if `take` [] is False."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), device=p.device)
                    state |= empty("mean", p, self._form) | empty("square", p, self._form)
                state["step"] += 1 if take is None else take
                self._step(
                    local(p),
                    local(p.grad),
                    stored(state, "mean"),
                    stored(state, "square"),
                    state["step"],
                    take,
                    torch.full((), group["lr"], device=p.device),  # filled there: a copy would be waited for
                    beta1,
                    beta2,
                    group["eps"],
                    group["weight_decay"],
                )
