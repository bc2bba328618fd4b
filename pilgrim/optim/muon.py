"""Muon: momentum whose matrices are orthogonalized before they are applied.

A gradient matrix usually has a few large singular values and many small ones, so plain momentum moves
mostly along a few directions. Muon (Jordan et al. 2024) replaces the momentum matrix M = U S Vᵀ by
about U Vᵀ: every direction moves equally far. Three refinements, each from a published record:

- Polar Express (Amsel et al. 2025, arXiv 2505.16932): the polynomial that drives all singular values
  to one, with coefficients that are optimal for each of its five iterations.
- NorMuon (Li et al. 2025, arXiv 2510.05491): a running second moment for every output neuron evens out
  the sizes of the rows, without changing the size of the whole update.
- Cautious weight decay (Chen et al. 2025, arXiv 2510.12402): decay only the entries that the update
  is shrinking anyway.

Matrices of one shape are stacked and treated together: a few large batched products, not many small ones.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Iteration k maps each singular value s to a·s + b·s³ + c·s⁵. Optimal for five iterations from
# [0.001, 1], with a safety factor of 1.02 (Amsel et al. 2025, as used by modded-nanogpt and nanochat).
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(matrices_nrc: Tensor, dtype: torch.dtype) -> Tensor:
    """About U Vᵀ for every matrix of a stack [n, rows, columns]; the products run in `dtype`."""
    x = matrices_nrc.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the products are between rows: fewer rows, less work
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = x.mT if tall else x
    return out


def muon_update(
    weights: Tensor,
    gradients: Tensor,
    momentum: Tensor,
    row_moment: Tensor,
    lr: Tensor,
    beta: Tensor,
    beta2: float,
    weight_decay: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step for a stack of matrices [n, rows, columns]: new weights, momentum and row moments.

    `row_moment` is [n, rows, 1]. All state is fp32.
    """
    momentum = torch.lerp(momentum, gradients, 1 - beta)
    update = orthogonalize(torch.lerp(gradients, momentum, beta), dtype).float()  # Nesterov's look ahead

    size = update.norm(dim=(-2, -1), keepdim=True)
    row_moment = torch.lerp(row_moment, update.square().mean(-1, keepdim=True), 1 - beta2)
    update = update * torch.rsqrt(row_moment + 1e-10)
    update = update * (size / (update.norm(dim=(-2, -1), keepdim=True) + 1e-10))

    rows, columns = weights.shape[-2:]
    update = update * max(1.0, rows / columns) ** 0.5  # the same change of output size for every shape
    shrinking = (update * weights) > 0
    return weights - lr * (update + weight_decay * weights * shrinking), momentum, row_moment


class Muon(torch.optim.Optimizer):
    """Muon for matrices. Group settings: `lr`, `beta` (momentum), `beta2`, `weight_decay`."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        beta: float = 0.95,
        beta2: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
        compile: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "beta2": beta2, "weight_decay": weight_decay})
        self._dtype = dtype
        self._update = torch.compile(muon_update, dynamic=False) if compile else muon_update

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[tuple(p.shape)].append(p)
            for matrices in by_shape.values():
                self._step_stack(matrices, group)

    def _step_stack(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state_of(p) for p in matrices]
        # Numbers that change from step to step go in as tensors, so that compiled code is reused.
        lr, beta, decay = (
            torch.tensor(group[k], device=matrices[0].device) for k in ("lr", "beta", "weight_decay")
        )
        weights, momentum, row_moment = self._update(
            torch.stack(matrices),
            torch.stack([p.grad for p in matrices if p.grad is not None]),
            torch.stack([s["momentum"] for s in states]),
            torch.stack([s["row_moment"] for s in states]),
            lr,
            beta,
            group["beta2"],
            decay,
            self._dtype,
        )
        torch._foreach_copy_(matrices, list(weights.unbind()))
        torch._foreach_copy_([s["momentum"] for s in states], list(momentum.unbind()))
        torch._foreach_copy_([s["row_moment"] for s in states], list(row_moment.unbind()))

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
            state["row_moment"] = torch.zeros_like(p[:, :1])
        return state
