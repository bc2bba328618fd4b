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

Matrices of one shape are treated together: a few large batched products, not many small ones.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pilgrim.core.compiling import compiled
from pilgrim.core.slices import is_sliced, local
from pilgrim.optim.slices import RowSlices
from pilgrim.optim.state import Format, Stored, empty, put, read, stored, write

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
        x = x.mT.contiguous()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        # b·gram + c·gram², then a·x + that·x: sum and product in one kernel, and rounded once
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    out: Tensor = x.mT if tall else x
    return out


def muon_update(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    row_moments: list[Tensor],
    lr: Tensor,
    beta: Tensor,
    beta2: float,
    weight_decay: Tensor,
    dtype: torch.dtype,
    slices: RowSlices | None = None,
    *,
    take: Tensor | None = None,
) -> None:
    """One step, in place, for matrices [rows, columns] of one shape; momenta are like them, and fp32 too.

    Only what goes through the products is copied into a stack: the rest is read and written where it lies,
    in one pass before the products and one after them. `row_moments` are [rows, 1]. With `slices`, all of
    them are this process's slices. Where `take` refuses the step, weights and row moments stay; the momenta
    move all the same.
    """
    rows, columns = slices.shape if slices else weights[0].shape
    for momentum, gradient in zip(momenta, gradients, strict=True):
        momentum.lerp_(gradient, 1 - beta)
    ahead = [torch.lerp(g, m, beta).to(dtype) for g, m in zip(gradients, momenta, strict=True)]  # Nesterov
    if slices is None:
        updates_nrc = orthogonalize(torch.stack(ahead), dtype)
    else:
        updates_nrc = slices.whole(torch.stack(ahead), lambda matrices: orthogonalize(matrices, dtype))

    # NorMuon: divide each row by its running size, then bring the whole back to the size it had.
    squares_nr1 = updates_nrc.float().square().sum(-1, keepdim=True)
    moments_nr1 = torch.lerp(torch.stack(row_moments), squares_nr1 / columns, 1 - beta2)
    scales_nr1 = torch.rsqrt(moments_nr1 + 1e-10)
    before, after = squares_nr1.sum(-2, keepdim=True), (squares_nr1 * scales_nr1**2).sum(-2, keepdim=True)
    if slices:
        before, after = slices.summed(before), slices.summed(after)
    # The same change of output size for every shape: tall matrices step further.
    scales_nr1 = scales_nr1 * (before / (after + 1e-20)).sqrt() * max(1.0, rows / columns) ** 0.5

    for i, weight in enumerate(weights):
        put(moments_nr1[i], row_moments[i], take)
        update = updates_nrc[i].float() * scales_nr1[i]
        shrinking = (update * weight) > 0
        put(weight - lr * (update + weight_decay * weight * shrinking), weight, take)


def muon_step(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Stored],
    row_moments: list[Tensor],
    step: Tensor,
    take: Tensor | None,
    *settings: Any,
) -> None:
    """The same, with the momenta as they are kept (optim/state.py); `step` counts, to round them.

    Where `take` refuses the step, nothing changes: so the momenta are moved in a copy.
    """
    moved = [read(kept, signed=True) for kept in momenta]
    if take is not None:
        moved = [momentum.clone() for momentum in moved]
    muon_update(weights, gradients, moved, row_moments, *settings, take=take)
    for momentum, kept in zip(moved, momenta, strict=True):
        write(momentum, kept, signed=True, step=step, take=take)


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
        form: Format = "fp32",
    ) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "beta2": beta2, "weight_decay": weight_decay})
        self._dtype = dtype
        self._form = form
        self._update = compiled(muon_step) if compile else muon_step

    @torch.no_grad()
    def step(self, closure: None = None, take: Tensor | None = None) -> None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient; none if `take` [] is False."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[tuple(p.shape)].append(p)
            for matrices in by_shape.values():
                self._step_stack(matrices, group, take)

    def _step_stack(self, matrices: list[Tensor], group: dict[str, Any], take: Tensor | None) -> None:
        states = [self._state_of(p) for p in matrices]
        torch._foreach_add_([state["step"] for state in states], 1 if take is None else take.float())
        # Numbers that change from step to step go in as tensors, so that compiled code is reused; they are
        # filled where they belong, as a copy to a GPU would be waited for.
        lr, beta, decay = (
            torch.full((), group[k], device=matrices[0].device) for k in ("lr", "beta", "weight_decay")
        )
        update, slices = self._update, None
        if is_sliced(matrices[0]):
            update, slices = muon_step, RowSlices(matrices[0])
        update(
            [local(p) for p in matrices],
            [local(p.grad) for p in matrices if p.grad is not None],
            [stored(state, "momentum") for state in states],
            [local(state["row_moment"]) for state in states],
            states[0]["step"],
            take,
            lr,
            beta,
            group["beta2"],
            decay,
            self._dtype,
            *((slices,) if slices else ()),
        )

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state |= empty("momentum", p, self._form)
            state["step"] = torch.zeros((), device=p.device)
            state["row_moment"] = torch.zeros_like(p[:, :1])
        return state
