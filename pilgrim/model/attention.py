"""Attention: grouped queries, QK-norm, rotary positions; and who may look at whom.

The network asks for attention through one function, `attend(layer, q, k, v)`. Training hands in one
that sees a packed row (`packed_attention`: causal, and never across the border of two documents);
generation hands in one that reads and extends a KV cache. The network itself knows neither.

Shapes: b rows, h heads, g key/value heads, t tokens, d head size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pilgrim.model.config import ModelConfig
from pilgrim.model.layers import Linear, RMSNorm, rotate

# (layer index, q_bhtd, k_bgtd, v_bgtd) -> out_bhtd
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def document_mask(documents_bt: Tensor) -> Tensor:
    """Which tokens may look at which: bool [b, 1, t, t], True where query i may see key j.

    `documents_bt` numbers the document of every token in a packed row; a token sees itself and what
    came before it in its own document, so packing changes nothing for a document.
    """
    t = documents_bt.shape[1]
    same = documents_bt[:, :, None] == documents_bt[:, None, :]
    causal = torch.ones(t, t, dtype=torch.bool, device=documents_bt.device).tril()
    return (same & causal)[:, None]


def packed_attention(documents_bt: Tensor, dtype: torch.dtype) -> Attend:
    """Attention within the documents of packed rows, by torch's fused kernel.

    The mask is added to the scores (0 or -inf) in the activations' dtype: on CPUs that is up to twice
    as fast as a boolean mask, and as fast as no mask at all (journal, 2026-11-23).
    """
    allowed = document_mask(documents_bt)
    bias = torch.zeros((), dtype=dtype, device=allowed.device).masked_fill(~allowed, float("-inf"))

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=q.shape[1] != k.shape[1])

    return attend


def causal_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain causal attention: every row is one document."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def reference_attention(documents_bt: Tensor) -> Attend:
    """The slow twin of `packed_attention`: the formula, in fp32, for tests."""
    allowed = document_mask(documents_bt)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
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

    def forward(self, x_btw: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        b, t, _ = x_btw.shape
        q, k, v = (
            part.view(b, t, -1, self.head_size).transpose(1, 2)
            for part in (self.q_proj(x_btw), self.k_proj(x_btw), self.v_proj(x_btw))
        )
        q, k = rotate(self.q_norm(q), *angles), rotate(self.k_norm(k), *angles)
        mixed_bhtd = attend(self.layer, q, k, v)
        out: Tensor = self.o_proj(mixed_bhtd.transpose(1, 2).reshape(b, t, -1))
        return out
