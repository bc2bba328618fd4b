"""LoRA: adapt a trained network by small matrices beside its large ones (Hu et al. 2021, arXiv 2106.09685).

Fine-tuning moves a matrix W by some ΔW. LoRA leaves W as it is, and lets ΔW be a product of two thin ones:

    y = W x + (alpha / rank) · B A x        A: [rank, inputs]      B: [outputs, rank]

The rank is small, so A and B have a few percent of W's numbers. What is saved is memory: no gradient and no
optimizer state for W, and a third of the work of its matrix products, those that would make W's gradient.
What is lost is freedom, as ΔW has no more than `rank` directions. That is plenty to learn a tone or a format,
and little to learn a language. It also forgets less of what it knew (Biderman et al. 2024, arXiv 2405.09673).

B begins at zero, so that the first step begins with the very network that there was. A begins at random, or
else neither would ever get a gradient. Dividing by the rank makes a learning rate that fits one rank fit
others, too.

Embedding, head and norms are not adapted, they stay as they are. A stage with LoRA can't teach a new token.
So the turns' marks must have been learned before: midtrain does that.

There is no dropout. It would draw from torch's global randomness in every step, and then a resumed run would
not be the same as one that was never stopped.

Whoever reads a checkpoint need not know of all that: the weights that a stage hands on are `merged` ones,
W + (alpha / rank) B A. In exact arithmetic that is the same network; in fp32 its scores differ by rounding.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pilgrim.core.config import Settings
from pilgrim.core.slices import slice_like, whole
from pilgrim.model.layers import Linear

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ADAPTED = {"all": (*ATTENTION, *MLP), "attention": ATTENTION, "mlp": MLP}
MARK = ".lora."  # in the names of the adapters' parameters, and in no other


class LoraSettings(Settings):
    """`[sft.lora]`, and the same in other stages that go on from a trained network."""

    rank: int = Field(16, ge=1, description="directions in which a matrix may move")
    alpha: float = Field(32.0, gt=0, description="the adapters' product is multiplied by alpha / rank")
    layers: Literal["all", "attention", "mlp"] = Field(
        "all", description="which of the blocks' matrices are adapted"
    )
    lr: float = Field(
        0.003, gt=0, description="peak learning rate of the adapters, in place of [optim]'s and lr_scale"
    )


class Lora(nn.Module):
    """The adapter of one linear map: x [..., inputs] -> what it adds to the map's output."""

    def __init__(self, inputs: int, outputs: int, settings: LoraSettings) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(settings.rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, settings.rank))
        self.scale = settings.alpha / settings.rank

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))

    @torch.no_grad()
    def product(self) -> Tensor:
        """ΔW in fp32, [outputs, inputs]. Of several processes with slices, all must call it."""
        product: Tensor = self.scale * (whole(self.b) @ whole(self.a))
        return product


@torch.no_grad()
def adapt(model: nn.Module, settings: LoraSettings, generator: torch.Generator) -> None:
    """Freeze all of `model`, and put an adapter that changes nothing yet beside each matrix it is to have.

    A's rows are drawn so that A x has the size of a normalized x. Raises nothing but what memory does.
    """
    model.requires_grad_(False)
    for name, layer in model.named_modules():
        if isinstance(layer, Linear) and name.rpartition(".")[2] in ADAPTED[settings.layers]:
            outputs, inputs = layer.weight.shape
            lora = Lora(inputs, outputs, settings)
            lora.a.copy_(torch.randn(lora.a.shape, generator=generator) * inputs**-0.5)
            layer.lora = lora.to(layer.weight.device)


def merged(layer: Linear) -> Tensor:
    """The one matrix that does what the layer and its adapter do; without an adapter, its own."""
    weight = layer.weight.detach()
    if not isinstance(layer.lora, Lora):
        return weight
    return weight + slice_like(layer.lora.product(), weight)


def adapters(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' matrices by name; none where nothing is adapted."""
    return {name: p.detach() for name, p in model.named_parameters() if MARK in name}


def numbers(model: nn.Module) -> int:
    """How many numbers the adapters have."""
    return sum(p.numel() for name, p in model.named_parameters() if MARK in name)
