"""Optimizer state in fewer bytes: what is remembered between steps, rounded.

Training in fp32 keeps 4 bytes for a weight, 4 for its gradient, and 4 (Muon) or 8 (AdamW) for the optimizer's
state. The state is an average over past gradients, noisy by nature, so it bears rounding best. Two formats
besides fp32, each read back to fp32 before the update and rounded after it:

    "bf16"   2 bytes: fp32 without its last 16 bits.
    "8bit"   1 byte and 1/64: a code for each number, and for each block of 256 numbers the largest magnitude,
             which the codes are relative to, so that one outlier spoils its own block only (block-wise
             quantization: Dettmers et al. 2022, arXiv 2110.02861).

The 8-bit code is logarithmic. A linear one would make zeros of what is small beside its block's largest, and
AdamW divides by the root of `square`: a zero there is an explosion. With levels of equal *ratio*, all numbers
are off by the same few percent, whatever their size:

    magnitude = largest · 2^((level - levels) · octaves / levels)        level 0 is zero

    signed (momentum, mean): a bit of sign, 127 levels over 16 octaves    each 9% above the one before
    positive (square):                      255 levels over 32 octaves    each 9% above the one before

**Rounding to the nearest would stop the average.** It moves by a small share of itself at each step, and
where that is less than half a level, nothing moves, ever. So between two levels it is drawn: 3.3 becomes 4 in
30% of cases, else 3, and on average nothing is lost. What stands in for chance is a Weyl sequence, the
fractional part of i · φ + step · √2 for number i: evenly spread over [0, 1) from step to step and from number
to number, cheap, and a function of step and place. So a resumed run rounds the same way.

What lies below the lowest level is drawn too, between it and zero, so that a forgotten direction ends. Only a
square stays at the lowest level, since too large a square makes a step small, and a zero would make it huge.

**An update may be refused** (train/health.py): it is computed and then not taken, and nobody has to wait for
the device to learn which. `put` is where that happens. It chooses and does not multiply by 0, since 0 · NaN
is NaN.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.core.slices import local

Format = Literal["fp32", "bf16", "8bit"]

BLOCK = 256
BYTES: dict[Format, float] = {"fp32": 4, "bf16": 2, "8bit": 1 + 4 / BLOCK}  # for a number
LEVELS = {True: 127, False: 255}  # by whether the numbers have a sign
OCTAVES = {True: 16, False: 32}
# The fractions of φ and √2, times 2^32. Both are odd, so their multiples modulo 2^32 reach every place.
PHI, ROOT = 2_654_435_769, 1_779_033_703

Stored = tuple[Tensor, ...]  # (values,) or (codes, largest of each block)


def empty(name: str, like: Tensor, form: Format) -> dict[str, Tensor]:
    """Zeros shaped like `like`, under the names by which an optimizer keeps them: `name`, `name`.largest."""
    if form == "8bit":
        largest = torch.zeros(-(-like.numel() // BLOCK), device=like.device)
        return {name: torch.zeros_like(like, dtype=torch.uint8), f"{name}.largest": largest}
    return {name: torch.zeros_like(like, dtype=torch.bfloat16 if form == "bf16" else torch.float32)}


def stored(state: Mapping[str, Tensor], name: str) -> Stored:
    """What `empty` has made, from where an optimizer keeps it: this process's slice, if there are slices."""
    largest = state.get(f"{name}.largest")
    values = local(state[name])
    return (values,) if largest is None else (values, largest)


def read(kept: Stored, signed: bool) -> Tensor:
    """The state in fp32; where it is kept in fp32, the very tensor."""
    if len(kept) == 1:
        return kept[0].float()
    codes, largest = kept
    blocks = _blocks(codes).int()
    level = blocks & 127 if signed else blocks
    magnitude = largest[:, None] * torch.exp2((level - LEVELS[signed]) * (OCTAVES[signed] / LEVELS[signed]))
    magnitude = torch.where(level == 0, 0.0, magnitude)
    return _unblocked(torch.where(blocks > 127, -magnitude, magnitude) if signed else magnitude, codes)


def write(values: Tensor, kept: Stored, signed: bool, step: Tensor, take: Tensor | None = None) -> None:
    """Put fp32 values where they are kept, rounded. `step` [] counts the updates; `take` is as in `put`."""
    if len(kept) == 2:
        codes, largest = _quantized(values, signed, step)
        put(codes, kept[0], take)
        put(largest, kept[1], take)
    elif kept[0].dtype == torch.bfloat16:
        put(_as_bf16(values, step), kept[0], take)
    elif kept[0] is not values:
        put(values, kept[0], take)


def put(value: Tensor, place: Tensor, take: Tensor | None) -> None:
    """Write `value` to `place`; where a bool `take` [] is False, leave that as it is, to the bit."""
    place.copy_(value if take is None else torch.where(take, value, place))


def _as_bf16(values: Tensor, step: Tensor) -> Tensor:
    """A draw in [0, 1) of the 16 bits that fall away, added before they do, rounds up that often."""
    draw = (_draws(values, step) * 65_536).int()
    rounded = ((values.view(torch.int32) + draw) & -65_536).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


def _quantized(values: Tensor, signed: bool, step: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in the shape of `values`, and the largest magnitude of each block."""
    blocks, draws = _blocks(values), _blocks(_draws(values, step))
    largest = blocks.abs().amax(-1)
    share = blocks.abs() / largest[:, None].clamp(min=1e-38)
    octaves = OCTAVES[signed] / LEVELS[signed]  # from one level to the next
    lowest = 2.0 ** ((1 - LEVELS[signed]) * octaves)
    level = LEVELS[signed] + torch.log2(share.clamp(min=lowest)) / octaves
    level = (level + draws).floor().clamp(1, LEVELS[signed])
    below = (share / lowest + draws).floor() if signed else (share > 0).float()
    level = torch.where(share < lowest, below, level)
    codes = torch.where(blocks < 0, level + 128, level) if signed else level
    return _unblocked(codes.to(torch.uint8), values), largest


def _draws(values: Tensor, step: Tensor) -> Tensor:
    """Numbers in [0, 1), of the shape of `values`, evenly spread over places and over steps."""
    place = torch.arange(values.numel(), device=values.device).view(values.shape)
    return (((place * PHI + step.long() * ROOT) & 0xFFFFFFFF) >> 8).float() * 2.0**-24


def _blocks(values: Tensor) -> Tensor:
    """Of any shape -> [blocks, 256], the last one filled up with zeros."""
    flat = values.flatten()
    return F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def _unblocked(blocks: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_blocks`, in the shape of `like`."""
    return blocks.flatten()[: like.numel()].view(like.shape)
