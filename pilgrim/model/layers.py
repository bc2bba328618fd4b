"""The small parts of a block: linear maps, RMSNorm, rotary positions, and the gated MLP.

Weights are kept in fp32 (the master copy that the optimizer updates) and cast to the activations'
dtype where they are used. That is all that "mixed precision" means here: no autocast, no hidden rules.
The one exception is asked for: with `runtime.fp8` the blocks' linear maps train in fp8 (precision.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pilgrim.model.config import ModelConfig
from pilgrim.model.precision import fp8_linear


class Linear(nn.Module):
    """y = x Wᵀ without a bias; `weight` has shape [out, in], like torch's.

    Beside it there may be an adapter, which adds to the output what it makes of the input (lora.py).
    """

    fp8 = False  # whether it trains in fp8; evaluation never does

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.lora: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.adapted(x, _product(x, self.weight, self.fp8 and self.training))

    def adapted(self, x: Tensor, out: Tensor) -> Tensor:
        """`out` = x Wᵀ, and what the adapter adds to it."""
        return out if self.lora is None else out + self.lora(x)


def _product(x: Tensor, weight: Tensor, fp8: bool) -> Tensor:
    return fp8_linear(x, weight) if fp8 else F.linear(x, weight.to(x.dtype))


def joint_linear(x: Tensor, *layers: Linear) -> tuple[Tensor, ...]:
    """Several linear maps of one input as a single, wider matrix product: fuller use of the machine.

    The weights stay separate parameters, because the optimizer orthogonalizes each map by itself. So they are
    joined anew every time, which pays off over a training batch, and not for the few tokens of generation.
    """
    if not torch.is_grad_enabled():
        return tuple(layer(x) for layer in layers)
    weight = torch.cat([layer.weight for layer in layers])
    out = _product(x, weight, all(layer.fp8 and layer.training for layer in layers))
    outs = out.split([layer.weight.shape[0] for layer in layers], dim=-1)
    return tuple(layer.adapted(x, out) for layer, out in zip(layers, outs, strict=True))


def softcapped(scores: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(scores / cap), in fp32 and back: no score beyond ± cap, and small ones as they are.

    It keeps a network from being ever more certain of what it has learned by heart (Gemma 2, arXiv
    2408.00118, caps at 30; modded-nanogpt and nanochat at 15). None: the scores as they are.
    """
    return scores if cap is None else (cap * torch.tanh(scores.float() / cap)).to(scores.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension, computed in fp32 (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x.dtype) * x32.to(x.dtype)


def rotary_angles(positions: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE's angles (Su et al. 2021) for integer `positions` of any shape [...].

    Returns two fp32 tensors of shape [..., head_size], ready for `rotate`: (cos, cos) and (-sin, sin).
    Pair i turns by position · theta^(-2i/head_size); the two halves of a head hold the two coordinates
    of its pairs, as in Llama and Qwen.
    """
    pairs = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[..., None] * theta ** (-pairs / head_size)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + half]) of the last dimension by the given angles.

    The textbook writes (x1·cos - x2·sin, x2·cos + x1·sin) and glues the halves together; here the halves
    are swapped by a flip instead, which compilers turn into vector code (4x faster on a CPU).
    """
    halves = x.unflatten(-1, (2, -1))
    swapped = halves.flip(-2) * sin.to(x.dtype).unflatten(-1, (2, -1))
    out: Tensor = (halves * cos.to(x.dtype).unflatten(-1, (2, -1)) + swapped).flatten(-2)
    return out


def taken(x_btw: Tensor, places_bn: Tensor) -> Tensor:
    """Of each row the places `places_bn`: [b, n, w]."""
    return x_btw.gather(1, places_bn[..., None].expand(-1, -1, x_btw.shape[-1]))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): down( silu(gate x) ⊙ up x )."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.width, config.mlp_width)
        self.up_proj = Linear(config.width, config.mlp_width)
        self.down_proj = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = joint_linear(x, self.gate_proj, self.up_proj)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out
