"""Attention: grouped queries, QK-norm, rotary positions; and who may look at whom.

The network asks for attention through one function, `attend(layer, q, k, v)`. Training hands in one
that sees a packed row (`packed_attention`: causal, never across the border of two documents, and in layers
with a sliding window not farther back than that); generation hands in one that reads and extends a KV
cache. The network itself knows neither.

`packed_attention` has several backends, which compute the same. Those for CPUs and the plain formula are
here, those for NVIDIA GPUs in attention_kernels.py; attention_choice.py finds out which of them a machine
has and which is fastest there.

Shapes: b rows, h heads, g key/value heads, t tokens, d head size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pilgrim.model.attention_kernels import FLASH, Backend, Layout, flex_attention, prepare, varlen_attention
from pilgrim.model.attention_spans import Attend as Attend
from pilgrim.model.attention_spans import Windows, different, window_of
from pilgrim.model.attention_spans import document_mask as document_mask
from pilgrim.model.config import ModelConfig
from pilgrim.model.document_attention import document_attention
from pilgrim.model.layers import Linear, RMSNorm, rotate, taken

BLOCK = 256  # queries at a time


def packed_attention(
    documents_bt: Tensor,
    dtype: torch.dtype,
    window: Windows = None,
    backend: Backend | None = None,
    layout: Layout = None,
) -> Attend:
    """Attention within the documents of packed rows, and within `window` tokens: one for all layers, or each.

    `backend` is what attention_choice.py chose, and None what needs no choosing: torch's fused kernel with
    a dense mask, or in compiled code for a CPU our own blocks. `layout` is what `prepare` makes of a batch
    for the backends of a GPU; left out, it is made here, which only serves outside of compiled code.
    """
    if backend in (*FLASH, "flex"):
        layout = prepare(documents_bt, None, window, backend) if layout is None else layout
        if isinstance(layout, dict):
            return flex_attention(layout, window)
        assert layout is not None
        return varlen_attention(layout, window)
    if backend == "documents":
        return document_attention(documents_bt, window)
    if backend == "reference":
        return reference_attention(documents_bt, window)
    if backend is None:
        in_blocks = torch.compiler.is_compiling() and documents_bt.device.type == "cpu"
    else:
        in_blocks = backend == "blocks"
    return _dense_attention(documents_bt, dtype, window, in_blocks)


def _dense_attention(documents_bt: Tensor, dtype: torch.dtype, window: Windows, in_blocks: bool) -> Attend:
    """By torch's fused kernel, or compiled on a CPU in blocks, with a mask of every pair.

    The mask is added to the scores (0 or -inf) in the activations' dtype: on CPUs that is up to twice
    as fast as a boolean mask, and as fast as no mask at all (journal, 2026-11-23).
    """

    def bias_for(window: int | None) -> Tensor:
        allowed = document_mask(documents_bt, window)
        return torch.zeros((), dtype=dtype, device=allowed.device).masked_fill(~allowed, float("-inf"))

    biases = {each: bias_for(each) for each in different(window)}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = biases[window_of(window, layer)]
        groups = q.shape[1] // k.shape[1]
        if not in_blocks:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=groups > 1)
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out: Tensor = BlockAttention.apply(q, k, v, bias)  # type: ignore[no-untyped-call]
        return out

    return attend


class BlockAttention(torch.autograd.Function):
    """softmax(q kᵀ / sqrt(d) + bias) v, a block of queries at a time; `bias` [b, 1, t, t] must be causal.

    torch's fused kernel saves memory: it keeps no scores, and backward computes them again. At training
    lengths that fit a CPU's cache it is faster to keep them, in what torch.compile makes of these lines
    (1.7 to 2 times for contexts of 256 to 1,024; memory grows with the context's square). A block of
    queries meets only the keys before its end. The softmax's division waits until after the product with
    v, where there are d numbers to divide and not t. With weights P, o = P v and gradients do and dP:

        dv = Pᵀ do      dP = do vᵀ      d(scores) = P · (dP - sum(do · o))      (Dao et al. 2022, appendix B)
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        mixed, weights, sums = [], [], []
        for begin, end in _blocks(q.shape[2]):
            scores = (q[:, :, begin:end] @ k[:, :, :end].mT).float() * q.shape[3] ** -0.5
            scores = scores + bias[:, :, begin:end, :end]
            # Rounded before it is summed: so it is computed once, and kept in half the room.
            weight = (scores - scores.amax(-1, keepdim=True)).exp().to(q.dtype)
            mixed.append(weight @ v[:, :, :end])
            weights.append(weight)
            sums.append(weight.float().sum(-1, keepdim=True))
        share = 1 / torch.cat(sums, 2)
        out = (torch.cat(mixed, 2) * share).to(q.dtype)
        ctx.save_for_backward(q, k, v, share, out, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, share, out, *weights = ctx.saved_tensors
        d_mixed = (d_out * share).to(q.dtype)
        along = (d_mixed.float() * out).sum(-1, keepdim=True)
        d_q = []
        d_k, d_v = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        for weight, (begin, end) in zip(weights, _blocks(q.shape[2]), strict=True):
            d_weight = (d_mixed[:, :, begin:end] @ v[:, :, :end].mT).float() - along[:, :, begin:end]
            d_scores = (weight * d_weight * q.shape[3] ** -0.5).to(q.dtype)
            d_q.append(d_scores @ k[:, :, :end])
            d_k[:, :, :end] += d_scores.mT @ q[:, :, begin:end]
            d_v[:, :, :end] += weight.mT @ d_mixed[:, :, begin:end]
        return torch.cat(d_q, 2), d_k.to(k.dtype), d_v.to(v.dtype), None


def _blocks(t: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + BLOCK, t)) for begin in range(0, t, BLOCK)]


def causal_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain causal attention without windows: every row is one document."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def reference_attention(documents_bt: Tensor, window: Windows = None) -> Attend:
    """The slow twin of `packed_attention`: the formula, in fp32, for tests."""
    masks = {each: document_mask(documents_bt, each) for each in different(window)}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        allowed = masks[window_of(window, layer)]
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1).float(), v.repeat_interleave(groups, 1).float()
        scores = q.float() @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        out: Tensor = scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v
        return out.to(q.dtype)

    return attend


class Attention(nn.Module):
    """Queries, keys and values of every head; RMSNorm on q and k (Henry et al. 2020); RoPE; mix; project."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_size = layer, config.head_size
        inner, kv_inner = config.heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = Linear(config.width, inner)
        self.k_proj = Linear(config.width, kv_inner)
        self.v_proj = Linear(config.width, kv_inner)
        self.o_proj = Linear(inner, config.width)
        self.q_norm = RMSNorm(config.head_size, config.norm_eps)
        self.k_norm = RMSNorm(config.head_size, config.norm_eps)

    def forward(
        self,
        x_btw: Tensor,
        angles: tuple[Tensor, Tensor],
        attend: Attend,
        wanted_bn: Tensor | None = None,
    ) -> Tensor:
        """The mix for every token, or of each row for the tokens at the places `wanted_bn` alone."""
        asking, asking_angles = x_btw, angles
        if wanted_bn is not None:
            asking = taken(x_btw, wanted_bn)
            cos, sin = (part.expand(len(x_btw), -1, -1, -1)[:, 0] for part in angles)
            asking_angles = taken(cos, wanted_bn)[:, None], taken(sin, wanted_bn)[:, None]
        q, k, v = (
            part.unflatten(2, (-1, self.head_size)).transpose(1, 2)
            for part in (self.q_proj(asking), self.k_proj(x_btw), self.v_proj(x_btw))
        )
        q, k = rotate(self.q_norm(q), *asking_angles), rotate(self.k_norm(k), *angles)
        mixed_bhtd = attend(self.layer, q, k, v)
        out: Tensor = self.o_proj(mixed_bhtd.transpose(1, 2).flatten(2))
        return out
