"""Weights in 8 or 4 bits: less to fetch for each step of writing, at some cost in how well it is written.

A step multiplies every weight with one number for each text, so what takes the time is fetching the weights.
In 8 bits they are half as much as in bf16. Activations stay as they are, and so do sums: only weights are
rounded ("weight-only"), once, after training.

    int8   each row of a matrix is divided by its largest entry / 127, and rounded: one scale an output
    int4   each 32 inputs of a row go from their least to their largest entry in 15 steps: two numbers
    fp8    e4m3 with a scale for each matrix, and activations rounded alike, as tensor cores want both so

The embedding is not multiplied, and stays; so do the norms. `rounded` gives a model the rounded weights in
full precision: any measure of that model is what the rounding costs. It is the fast layers' slow twin.

On a CPU, torch's kernels for int8 and int4 multiply a few rows quickly and many slowly. So where many tokens
are read, int8 weights become bf16 for the time of the product; int4 ones, which only the kernel can read,
don't.

Shapes: n tokens, i inputs, o outputs.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pilgrim.core.errors import SettingsError
from pilgrim.model.layers import Linear
from pilgrim.model.precision import quantize
from pilgrim.model.transformer import Transformer

Weights = Literal["full", "int8", "int4", "fp8"]
GROUP = 32  # inputs that share two numbers in int4
FEW = 8  # rows that a CPU's int8 kernel multiplies sooner than a bf16 product (journal, 2026-11-23)
INNER_TILES = 8  # how an NVIDIA GPU's int4 kernel has its weights: the only choice that others use
FP8_CAPABILITY = (8, 9)


class Int8Linear(nn.Module):
    """y = x Wᵀ with W in int8 and a scale for each output."""

    numbers: Tensor  # [o, i]
    scales: Tensor  # [o]

    def __init__(self, weight_oi: Tensor) -> None:
        super().__init__()
        numbers, scales = _int8(weight_oi)
        self.register_buffer("numbers", numbers)
        self.register_buffer("scales", scales.bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        x_ni = x.flatten(0, -2)
        if x.device.type == "cpu" and len(x_ni) <= FEW:
            out: Tensor = torch._weight_int8pack_mm(x_ni.bfloat16().contiguous(), self.numbers, self.scales)
        else:  # whole numbers up to 127 are exact in bf16; compiled for a GPU, this is one kernel
            out = F.linear(x_ni, self.numbers.to(x.dtype)) * self.scales.to(x.dtype)
        return _shaped(out, x)


class Int4Linear(nn.Module):
    """y = x Wᵀ with W in int4, and for each group of inputs the step and the middle."""

    packed: Tensor  # as the kernel has it
    steps: Tensor  # [i / GROUP, o, 2]

    def __init__(self, weight_oi: Tensor) -> None:
        super().__init__()
        numbers, steps, middles = _int4(weight_oi)
        if weight_oi.device.type == "cuda":
            pairs = (numbers[:, ::2] << 4 | numbers[:, 1::2]).to(torch.uint8)
            packed = torch.ops.aten._convert_weight_to_int4pack(pairs, INNER_TILES)
        else:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
        self.register_buffer("packed", packed)
        self.register_buffer(
            "steps", torch.stack([steps, middles], -1).transpose(0, 1).bfloat16().contiguous()
        )

    def forward(self, x: Tensor) -> Tensor:
        x_ni = x.flatten(0, -2).bfloat16().contiguous()
        names = torch.ops.aten
        product: Any = names._weight_int4pack_mm if x.is_cuda else names._weight_int4pack_mm_for_cpu
        out: Tensor = product(x_ni, self.packed, GROUP, self.steps)
        return _shaped(out, x)


class Fp8Linear(nn.Module):
    """y = x Wᵀ with both in e4m3."""

    numbers: Tensor  # [o, i]
    scale: Tensor

    def __init__(self, weight_oi: Tensor) -> None:
        super().__init__()
        numbers, scale = quantize(weight_oi, torch.float8_e4m3fn)
        self.register_buffer("numbers", numbers)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        x8, x_scale = quantize(x.flatten(0, -2), torch.float8_e4m3fn)
        out: Tensor = torch._scaled_mm(
            x8, self.numbers.t(), scale_a=x_scale, scale_b=self.scale, out_dtype=torch.bfloat16
        )
        return _shaped(out, x)


def _shaped(out_no: Tensor, x: Tensor) -> Tensor:
    """In the dtype and, but for the last dimension, the shape of `x`."""
    out: Tensor = out_no.to(x.dtype).unflatten(0, x.shape[:-1])
    return out


def bits_per_weight(weights: Weights, dtype: torch.dtype) -> int:
    """What a step fetches for each weight, rounded; in int4 its share of its group's two numbers, too."""
    return {"full": 8 * dtype.itemsize, "int8": 8, "int4": 4 + 2 * 16 // GROUP, "fp8": 8}[weights]


_LAYERS = {"int8": Int8Linear, "int4": Int4Linear, "fp8": Fp8Linear}


@torch.no_grad()
def quantized(model: Transformer, weights: Weights) -> Transformer:
    """The same model, whose linear maps have such weights from now on. Raises SettingsError if they can't."""
    if weights != "full":
        _refuse(model, weights)
        for name, layer in list(_linear_maps(model)):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _LAYERS[weights](layer.weight.float()))
    return model


@torch.no_grad()
def rounded(model: Transformer, weights: Weights) -> Transformer:
    """The same model, whose weights have the values that `weights` leaves of them, in their old dtype."""
    for _, layer in _linear_maps(model) if weights != "full" else ():
        if layer.weight is model.model.embed_tokens.weight:  # tied: only the head is rounded
            layer.weight = nn.Parameter(layer.weight.clone())
        layer.weight.copy_(_round_trip(layer.weight.float(), weights))
    return model


def _linear_maps(model: Transformer) -> list[tuple[str, Linear]]:
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear)]


def _round_trip(weight_oi: Tensor, weights: Weights) -> Tensor:
    if weights == "int8":
        numbers, scales = _int8(weight_oi)
        return numbers * scales.bfloat16()[:, None].float()
    if weights == "int4":
        numbers, steps, middles = _int4(weight_oi)
        steps, middles = (x.bfloat16().float().repeat_interleave(GROUP, 1) for x in (steps, middles))
        return (numbers - 8) * steps + middles
    numbers, scale = quantize(weight_oi, torch.float8_e4m3fn)
    return numbers.float() * scale


def _int8(weight_oi: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [o, i] and scales [o]; a row of zeros has any scale."""
    scales = (weight_oi.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    # Divided by the scale as it will be kept, or a rounded one would be off by up to 0.4%.
    return (weight_oi / scales.bfloat16().float()[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def _int4(weight_oi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers 0 … 15 [o, i] as int32, and for each group its step and what 8 stands for, [o, groups]."""
    grouped = weight_oi.unflatten(1, (-1, GROUP))
    least, largest = grouped.amin(2), grouped.amax(2)
    steps = ((largest - least) / 15).clamp(min=1e-6)
    numbers = ((grouped - least[..., None]) / steps[..., None]).round().clamp(0, 15)
    return numbers.flatten(1).to(torch.int32), steps, least + 8 * steps


def _refuse(model: Transformer, weights: Weights) -> None:
    """Raises SettingsError where the kernels can't do it."""
    device, config = model.model.norm.weight.device, model.config
    place = f'weights = "{weights}"'
    if device.type == "mps":
        raise SettingsError(f'{place}: Apple\'s GPU has no kernels for it here; write weights = "full"')
    if weights == "fp8" and (
        device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY
    ):
        raise SettingsError(f"{place}: needs an NVIDIA GPU of compute capability 8.9; try int8")
    multiple = {"int8": 16, "fp8": 16, "int4": 128 if device.type == "cuda" else GROUP}[weights]
    sizes = {
        "width": config.width,
        "heads x head_size": config.heads * config.head_size,
        "kv_heads x head_size": config.kv_heads * config.head_size,
        "mlp_width": config.mlp_width,
        "vocab_size": config.vocab_size,
    }
    for name, size in sizes.items():
        least = 16 if name == "vocab_size" else multiple
        if size % least:
            raise SettingsError(
                f"{place}: the model's {name} = {size} is no multiple of {least}, which its kernel wants; "
                'write weights = "full"'
            )
