"""The network as the engine runs it: the same weights and formulas as in pilgrim/model, in fewer operations.

In training, an operation works on thousands of tokens at once, and a compiler joins the small ones. A step of
writing has one token for each text: every operation is small, and what Python and torch do around it takes as
long as the arithmetic. So here are fewer of them: queries, keys and values come from one product, gate and up
projection from another, norms are torch's own, and RoPE's angles are looked up in a table.

    x → norm → [q k v] → norm, rotate → attend → o + x → norm → [gate up] → silu · → down + x → …

Nothing is stored twice: the joined weights are the model's own parameters, which become views of them. So
whoever loads other weights into the model changes them here, too. What is computed differs from the model's
forward by rounding only; that is the slow twin.

Shapes: n new tokens of all texts behind each other, w width, h heads, g key/value heads, d head size.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pilgrim.model.attention import Attend
from pilgrim.model.layers import Linear, RMSNorm, softcapped
from pilgrim.model.transformer import Transformer

Product = Callable[[Tensor], Tensor]  # [n, inputs] -> [n, outputs]


class Network:
    """A `Transformer` for passes of the engine; shares its weights."""

    def __init__(self, model: Transformer) -> None:
        self._model, self._config = model, model.config
        self._blocks = [_Block(block) for block in model.model.layers]
        dtype = model.model.norm.weight.dtype
        self._cos_td, self._sin_td = model.cos_td.to(dtype), model.sin_td.to(dtype)

    def hidden(self, ids_n: Tensor, positions_n: Tensor, attend: Attend) -> Tensor:
        """Hidden states [n, w] after the final norm."""
        x_nw = F.embedding(ids_n, self._model.model.embed_tokens.weight)
        cos_n1d, sin_n1d = self._cos_td[positions_n][:, None], self._sin_td[positions_n][:, None]
        for layer, block in enumerate(self._blocks):
            q, k, v = self._heads(block, block.attention_norm(x_nw))
            mixed = attend(
                layer,
                *(_first(part) for part in (_turned(q, cos_n1d, sin_n1d), _turned(k, cos_n1d, sin_n1d), v)),
            )
            x_nw = x_nw + block.out(mixed[0].transpose(0, 1).flatten(1))
            gate, up = block.gate_up(block.mlp_norm(x_nw)).chunk(2, -1)
            x_nw = x_nw + block.down(F.silu(gate) * up)
        return _normed(self._model.model.norm)(x_nw)

    def scores(self, hidden_bw: Tensor) -> Tensor:
        """Scores [b, v] of what follows."""
        return softcapped(self._model.lm_head(hidden_bw), self._config.softcap)

    def _heads(self, block: "_Block", x_nw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [n, h, d], keys and values [n, g, d], of which the first two are normed."""
        h, g = self._config.heads, self._config.kv_heads
        q, k, v = block.qkv(x_nw).unflatten(1, (h + 2 * g, -1)).split((h, g, g), 1)
        return block.q_norm(q), block.k_norm(k), v


class _Block:
    """What one block does, as functions."""

    def __init__(self, block: Any) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.attention_norm, self.mlp_norm = (
            _normed(norm) for norm in (block.input_layernorm, block.post_attention_layernorm)
        )
        self.q_norm, self.k_norm = _normed(attention.q_norm), _normed(attention.k_norm)
        self.qkv = joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = joined(mlp.gate_proj, mlp.up_proj)
        self.out, self.down = joined(attention.o_proj), joined(mlp.down_proj)


def joined(*layers: nn.Module) -> Product:
    """Several linear maps of one input as one product; their weights become parts of one tensor."""
    if not all(type(layer) is Linear for layer in layers):  # quantized, each with numbers of its own
        return layers[0] if len(layers) == 1 else lambda x: torch.cat([layer(x) for layer in layers], -1)
    weights: list[Any] = [layer.weight for layer in layers]
    together = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, together.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return lambda x: F.linear(x, together)


def _normed(norm: RMSNorm) -> Product:
    return lambda x: F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)


def _turned(x_nhd: Tensor, cos_n1d: Tensor, sin_n1d: Tensor) -> Tensor:
    """RoPE, as `pilgrim.model.layers.rotate` does it: the table's first sines are negative."""
    swapped = x_nhd.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(x_nhd * cos_n1d, swapped, sin_n1d)


def _first(x_nhd: Tensor) -> Tensor:
    """As attention wants it: [1, h, n, d]."""
    return x_nhd.transpose(0, 1)[None]
