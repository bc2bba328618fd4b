"""Linear layers in fp8: numbers of eight bits in matrix products, at about twice the speed of bf16.

Eight bits hold a sign, and either 4 bits of exponent and 3 of precision (e4m3, up to 448) or 5 and 2 (e5m2,
up to 57,344). Activations and weights want precision and are rounded to e4m3; gradients spread over more
orders of magnitude and are rounded to e5m2 (Micikevicius et al. 2022, arXiv 2209.05433). Neither range is
enough as it is. So each tensor is divided by a *scale*, which is found anew every time and puts its largest
entry at the format's largest number; the product is multiplied by both scales. Sums are kept in fp32 by the
hardware, results are bf16, and the gradient of a weight is fp32.

    y  = x wᵀ        e4m3 · e4m3           dx = dy w        e5m2 · e4m3        dw = dyᵀ x      e5m2 · e4m3

Only the layers in `FP8_LAYERS` do that, and only while training: embedding, head, norms, softmax and the
products of attention stay in bf16, and so does every evaluation and every reply. A weight's master copy is
fp32 as ever.

torch's `_scaled_mm` wants the first factor in rows, the second in columns ("column-major": that is how
tensor cores read them), and all sizes to be multiples of 16. It is a function with an underscore, as torch's
fp8 products still were in 2.13; torchao's float8 training calls it too.

Shapes: n tokens, i inputs, o outputs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pilgrim.core.errors import SettingsError
from pilgrim.model.config import ModelConfig

FP8_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MULTIPLE = 16  # of all sizes
SMALLEST_SCALE = 1e-12  # for a tensor of zeros


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` as `dtype` and the fp32 scale to multiply that with: the largest entry becomes the largest number.

    Infinities and NaNs become NaN, so that a diverged run is noticed.
    """
    largest = torch.finfo(dtype).max
    scale = (x.abs().amax().float() / largest).clamp(min=SMALLEST_SCALE)
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def in_columns(x: Tensor) -> Tensor:
    """The same matrix, with its columns and not its rows in one piece of memory."""
    return x.t().contiguous().t()


class Fp8Product(torch.autograd.Function):
    """(x_ni in bf16, weight_oi in fp32) -> x wᵀ in x's dtype. What is kept for backward is fp8 already."""

    @staticmethod
    def forward(ctx: Any, x_ni: Tensor, weight_oi: Tensor) -> Tensor:
        x8, x_scale = quantize(x_ni, torch.float8_e4m3fn)
        w8, w_scale = quantize(weight_oi, torch.float8_e4m3fn)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        # Fast accumulation: Hopper's tensor cores keep fewer bits of a sum. Good enough forward only.
        out_no: Tensor = torch._scaled_mm(
            x8, w8.t(), scale_a=x_scale, scale_b=w_scale, out_dtype=x_ni.dtype, use_fast_accum=True
        )
        return out_no

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor | None]:
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        d8, d_scale = quantize(d_out, torch.float8_e5m2)
        d_x: Tensor = torch._scaled_mm(
            d8.contiguous(), in_columns(w8), scale_a=d_scale, scale_b=w_scale, out_dtype=d_out.dtype
        )
        if not ctx.needs_input_grad[1]:  # frozen (lora.py)
            return d_x, None
        d_weight: Tensor = torch._scaled_mm(
            d8.t().contiguous(), in_columns(x8), scale_a=d_scale, scale_b=x_scale, out_dtype=torch.float32
        )
        return d_x, d_weight


def fp8_linear(x: Tensor, weight_oi: Tensor) -> Tensor:
    """y = x Wᵀ in fp8, for `x` of any shape [..., i]."""
    out_no: Tensor = Fp8Product.apply(x.flatten(0, -2), weight_oi)  # type: ignore[no-untyped-call]
    out: Tensor = out_no.unflatten(0, x.shape[:-1])
    return out


def train_in_fp8(blocks: nn.Module) -> None:
    """Let the linear layers within `blocks` that `FP8_LAYERS` names multiply in fp8 while they train."""
    for name, layer in blocks.named_modules():
        if name.rpartition(".")[2] in FP8_LAYERS:
            layer.fp8 = True


def refuse_odd_sizes(config: ModelConfig, tokens: int) -> None:
    """Raises SettingsError if a size of the network, or a microbatch of `tokens` tokens, doesn't fit fp8."""
    sizes = {
        "model.width": config.width,
        "model.heads x model.head_size": config.heads * config.head_size,
        "model.kv_heads x model.head_size": config.kv_heads * config.head_size,
        "model.mlp_width": config.mlp_width,
        "micro_rows x model.context": tokens,
    }
    for name, size in sizes.items():
        if size % MULTIPLE:
            raise SettingsError(
                f'runtime.fp8 = "on": {name} = {size} must be a multiple of {MULTIPLE}; '
                f'try {-(-size // MULTIPLE) * MULTIPLE}, or write runtime.fp8 = "off"'
            )
