"""How the weights begin.

Matrices that read the residual stream start at the scale that keeps a normalized input's size
(std = 1/sqrt(inputs)). Those that write back to it (o_proj, down_proj) start at zero, so that every
block begins as the identity and the first steps are well behaved at any depth. The head starts small,
so that the first loss is ln(vocab_size), and norms start at one.
"""

import torch
from torch import Tensor

from pilgrim.model.transformer import Transformer


@torch.no_grad()
def initialize(model: Transformer, generator: torch.Generator) -> None:
    """Fill every parameter in place. Drawn on the CPU, so that a seed means the same on all devices."""
    for name, parameter in model.named_parameters():
        parameter.copy_(_drawn(name, parameter.shape, model.config.tied, generator))


def _drawn(name: str, shape: torch.Size, tied: bool, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape)
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return torch.zeros(shape)
    if name.endswith("lm_head.weight"):
        std = 0.001
    elif name.endswith("embed_tokens.weight"):
        # A tied table is the head too, which must start small; the first norm makes up for the size.
        std = 0.02 if tied else 1.0
    else:
        std = shape[1] ** -0.5
    return torch.randn(shape, generator=generator) * std
