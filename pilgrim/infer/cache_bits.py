"""Keys and values in 8 bits: half the cache's memory, and half of what a step reads of it.

A step of writing looks at the keys and values of every token so far. With many texts, or long ones, that is
most of what it fetches, and memory for them is what limits how many texts are written together. So they can
be kept in one byte each. They are rounded once, when they are stored, and attention sees the rounded ones,
the new token's own included. So nothing depends on how a text was divided into passes.

    int8   whole numbers from -127 to 127
    fp8    e4m3: 4 bits of exponent and 3 of precision, up to 448

Either way the entries of one head of one token share a *scale*, which is kept beside them: the largest entry
becomes the largest number. A token's scale is found when the token comes and never changes, so there is
nothing to calibrate, and no later token can spoil an earlier one. It is kept in bf16, 2 bytes beside `d` of
numbers: bf16 has fp32's range, so no scale overflows, and its rounding costs nothing, because entries are
divided by the scale as it is kept. (That is off by 1/256 at most, so the largest entry comes to 127.5 at
most, and is off by half a step at most, like any other.)

Which of them? In fp8 an entry is off by up to a sixteenth of itself, in int8 by up to 1/254 of the largest.
The entries of a head are of much the same size, so int8 is the better one. fp8 is what the tensor cores of
some GPUs could multiply as it is; here they don't.

Infinities and NaNs make their scale infinite or NaN, and all that is read with it NaN: a spoiled model is
noticed as with a cache of full numbers. `rounded_cache` gives a model that rounds its keys and values in the
same way in any forward pass: any measure of that model is what the rounding costs, and it is the slow twin.

Shapes: … anything, d head size.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pilgrim.core.errors import SettingsError
from pilgrim.model.attention import Attend
from pilgrim.model.transformer import Transformer

CacheBits = Literal["full", "int8", "fp8"]
LARGEST = {"int8": 127.0, "fp8": torch.finfo(torch.float8_e4m3fn).max}
SCALE = torch.bfloat16
SMALLEST_SCALE = 1e-12  # for a vector of zeros
FP8_CAPABILITY = (8, 9)
# An e4m3 number's bits, read as fp16's, are the number divided by this: the exponents begin at -7 and -15.
E4M3_IN_FP16 = 256.0


@dataclass(frozen=True)
class Rounded:
    """Vectors in 8 bits. Reads and writes like the tensor that it stands for."""

    numbers: Tensor  # int8 [..., d]; of fp8 the bits, as not every operation of torch knows that format
    scales: Tensor  # bf16 [...]
    bits: CacheBits
    dtype: torch.dtype  # of what is read

    def __getitem__(self, index: Any) -> Tensor:
        """The vectors at `index`, which leaves `d` alone, in full numbers."""
        return unrounded(self.numbers[index], self.scales[index], self.bits, self.dtype)

    def __setitem__(self, index: Any, x: Tensor) -> None:
        self.numbers[index], self.scales[index] = rounded(x, self.bits)

    def unflatten(self, dimension: int, sizes: tuple[int, int]) -> "Rounded":
        """The same memory, with one of the dimensions `…` as two."""
        numbers, scales = (each.unflatten(dimension, sizes) for each in (self.numbers, self.scales))
        return Rounded(numbers, scales, self.bits, self.dtype)


Stored = Tensor | Rounded  # keys or values as a cache has them


def rounded(x: Tensor, bits: CacheBits) -> tuple[Tensor, Tensor]:
    """Numbers [..., d] of 8 bits, as int8, and scales [...]."""
    divided, scales = _divided(x, bits)
    if bits == "int8":
        return divided.round().to(torch.int8), scales
    return divided.to(torch.float8_e4m3fn).view(torch.int8), scales


def unrounded(numbers: Tensor, scales: Tensor, bits: CacheBits, dtype: torch.dtype) -> Tensor:
    """What `rounded` stored: [..., d] in `dtype`."""
    if bits == "fp8":  # by way of fp32, as a CPU makes bf16 of fp16 slowly
        wide = torch.promote_types(dtype, torch.float32)
        factors = scales.to(wide) * E4M3_IN_FP16
        return _in_fp16(numbers).to(wide).mul_(factors[..., None]).to(dtype)
    return numbers.to(dtype).mul_(scales.to(dtype)[..., None])


def _in_fp16(e4m3: Tensor) -> Tensor:
    """Numbers / E4M3_IN_FP16, exactly. torch's own cast takes 4 ns a number on a CPU, ten times as long.

    Sign, 4 bits of exponent and 3 of precision go to where fp16 has its sign, the lower 4 of its 5 bits of
    exponent, and the upper 3 of its 10 of precision. Widened to 16 bits, the sign fills the upper half.
    """
    return ((e4m3.to(torch.int16) << 7) & ~0x4000).view(torch.float16)


def _divided(x: Tensor, bits: CacheBits) -> tuple[Tensor, Tensor]:
    """`x` divided by its scales, within what `bits` can hold, in fp32 or more; and the scales."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    scales = (x.abs().amax(-1) / LARGEST[bits]).clamp(min=SMALLEST_SCALE).to(SCALE)
    divided = x / scales.to(x.dtype)[..., None]
    return divided.clamp(-LARGEST[bits], LARGEST[bits]), scales


def round_trip(x: Tensor, bits: CacheBits) -> Tensor:
    """What a cache of these bits leaves of `x`, in its dtype: the plain formula."""
    if bits == "full":
        return x
    divided, scales = _divided(x, bits)
    whole = divided.round() if bits == "int8" else divided.to(torch.float8_e4m3fn).to(divided.dtype)
    return (whole * scales.to(divided.dtype)[..., None]).to(x.dtype)


def rounding(attend: Attend, bits: CacheBits) -> Attend:
    """`attend` over rounded keys and values."""

    def rounded_attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(layer, q, round_trip(k, bits), round_trip(v, bits))

    return rounded_attend


def rounded_cache(model: Transformer, bits: CacheBits) -> Transformer:
    """The same model, which rounds its keys and values from now on in every forward pass."""

    def round_them(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x_btw, angles, attend, *others = arguments
        return x_btw, angles, rounding(attend, bits), *others

    if bits != "full":
        for block in model.model.layers:
            attention: Any = block.self_attn
            attention.register_forward_pre_hook(round_them)
    return model


def bytes_per_vector(size: int, bits: CacheBits, dtype: torch.dtype) -> int:
    """What the key or value of one head of one token takes, its scale included."""
    return size * dtype.itemsize if bits == "full" else size + SCALE.itemsize


def refuse(bits: CacheBits, device: torch.device) -> None:
    """Raises SettingsError where the device can't do it."""
    if bits != "fp8" or device.type == "cpu":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise SettingsError(
            'cache = "fp8": needs a CPU, or an NVIDIA GPU of compute capability 8.9; '
            "try int8, which loses less anyway"
        )
