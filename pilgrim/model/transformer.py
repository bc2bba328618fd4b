"""The network: a decoder-only transformer, numerically transformers' `Qwen3ForCausalLM`.

    ids -> embedding -> depth x [ x += attention(norm(x));  x += mlp(norm(x)) ] -> norm -> head -> logits

Parameter names are Hugging Face's ("model.layers.0.self_attn.q_proj.weight"), so exporting a model is
writing its tensors to a file. Nothing here knows of losses, optimizers or caches.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pilgrim.model.attention import Attend, Attention
from pilgrim.model.config import ModelConfig
from pilgrim.model.layers import MLP, Linear, RMSNorm, rotary_angles, softcapped, taken
from pilgrim.model.lora import MARK, merged


class Block(nn.Module):
    """One layer: attention, then MLP, each on a normalized copy and added back (pre-norm)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x_btw: Tensor,
        angles: tuple[Tensor, Tensor],
        attend: Attend,
        wanted_bn: Tensor | None = None,
    ) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(x_btw), angles, attend, wanted_bn)
        x_btw = (x_btw if wanted_bn is None else taken(x_btw, wanted_bn)) + mixed
        out: Tensor = x_btw + self.mlp(self.post_attention_layernorm(x_btw))
        return out


class Backbone(nn.Module):
    """Embedding, blocks and final norm: token ids in, hidden states out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.norm = RMSNorm(config.width, config.norm_eps)


class Transformer(nn.Module):
    """The whole model. Made with uninitialized weights: call `init.initialize` or load some."""

    cos_td: Tensor
    sin_td: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.windows = config.windows  # of every layer, for whoever makes the `attend` that it is run with
        self.recompute = False  # blocks keep only their input for backward, and are run again there
        self.model = Backbone(config)
        self.lm_head = Linear(config.width, config.vocab_size)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight  # type: ignore[assignment]
        # RoPE's angles for rows that begin at 0, as a table: a compiler would otherwise work out cosines
        # anew in every kernel that uses one (a tenth of a step on a CPU).
        cos_td, sin_td = rotary_angles(torch.arange(config.context), config.head_size, config.rope_theta)
        self.register_buffer("cos_td", cos_td, persistent=False)
        self.register_buffer("sin_td", sin_td, persistent=False)

    def forward(
        self,
        ids_bt: Tensor,
        attend: Attend,
        positions_bt: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        wanted_bn: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [b, t, width] in `dtype` after the final norm; `logits` turns them into scores.

        `positions_bt` defaults to 0, 1, 2 … in every row. RoPE only sees differences of positions, so
        packed documents need not start at 0.

        `wanted_bn`: of each row only these places are asked for, and [b, n, width] comes back. The last block
        then computes keys and values for all tokens, as the wanted ones look at them, and the rest for the
        wanted ones: with three blocks almost a third of the work. Its `attend` gets n queries.
        """
        angles = self._angles(ids_bt.shape[1], positions_bt)
        x_btw = self.model.embed_tokens(ids_bt).to(dtype)
        last = len(self.model.layers) - 1
        for number, block in enumerate(self.model.layers):
            if self.recompute and torch.is_grad_enabled():
                x_btw = checkpoint(block, x_btw, angles, attend, use_reentrant=False)
            else:
                x_btw = block(x_btw, angles, attend, wanted_bn if number == last else None)
        out: Tensor = self.model.norm(x_btw)
        return out

    def _angles(self, t: int, positions_bt: Tensor | None) -> tuple[Tensor, Tensor]:
        """cos and sin, [b or 1, 1, t, head size]: one head axis, shared by all heads."""
        if positions_bt is None and t <= self.config.context:
            return self.cos_td[None, None, :t], self.sin_td[None, None, :t]
        if positions_bt is None:
            positions_bt = torch.arange(t, device=self.cos_td.device)[None]
        cos_btd, sin_btd = rotary_angles(positions_bt, self.config.head_size, self.config.rope_theta)
        return cos_btd[:, None], sin_btd[:, None]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, [..., vocab_size], in the hidden states' dtype."""
        return softcapped(self.lm_head(hidden), self.config.softcap)

    def weights(self) -> dict[str, Tensor]:
        """Every parameter once, by its Hugging Face name: a tied head is the embedding and not repeated.

        Where there are adapters (lora.py), they are merged into what they adapt.
        """
        layers = ((name, layer) for name, layer in self.named_modules() if isinstance(layer, Linear))
        adapted = {f"{name}.weight": merged(layer) for name, layer in layers if layer.lora is not None}
        return {name: adapted.get(name, parameter.detach()) for name, parameter in self._own().items()}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy in what `weights()` gave; adapters stay. Raises ValueError if the names are not the same."""
        own = self._own()
        if own.keys() != weights.keys():
            raise ValueError(f"weights of another model: {sorted(own.keys() ^ weights.keys())[:4]} differ")
        for name, parameter in own.items():
            parameter.copy_(weights[name])

    def _own(self) -> dict[str, nn.Parameter]:
        """Its parameters without those of adapters."""
        return {name: parameter for name, parameter in self.named_parameters() if MARK not in name}
