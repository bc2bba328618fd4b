"""The KV cache: what attention has already worked out about the tokens so far.

To write the next token, attention needs the keys and values of all tokens before it. They never change,
so they are computed once and kept; a step then costs one token's work instead of the whole text's. The
network notices nothing: it asks for attention through `attend`, and here that function first stores the
new keys and values and then looks at everything stored.

Slot i of a row holds its token i, whatever the lengths of the other rows. Reading unequal prompts
together pads them at the right. The padding's keys land in slots behind the row's last token, where no
query of the row may look, and are overwritten by what the row gets later.

A layer with a sliding window looks at the last slots only. All are kept nevertheless: a conversation may go
back to an earlier turn, and all layers share one numbering of slots. What a window saves is reading.

Shapes: b rows, h heads, g key/value heads, t new tokens, d head size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.model.attention import BLOCK, Attend
from pilgrim.model.config import ModelConfig


class Part(NamedTuple):
    """Some of the new tokens, the slots that they look at through a window, and what that adds to scores."""

    queries: slice
    slots: slice
    bias: Tensor | None  # [b, 1, queries, slots]


class KVCache:
    """Keys and values of several sequences; `lengths[i]` tokens of row i are stored."""

    def __init__(
        self, config: ModelConfig, rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Memory for `rows` sequences of up to `capacity` tokens is taken at once."""
        shape = config.depth, rows, config.kv_heads, capacity, config.head_size
        # Zeros, because what the mask hides is still multiplied by 0, and 0 times stray NaNs is NaN.
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._windows = config.windows
        self.lengths = [0] * rows

    def extend(self, first: int, counts: Sequence[int]) -> tuple[Tensor, Attend]:
        """Makes room for `counts[i]` more tokens in row `first + i`; the rest is the network's pass.

        Returns the positions [b, t] of the new tokens and the `attend` to run the network with, where b
        is len(counts) and t is max(counts). Rows with fewer new tokens are padded at the right.
        """
        rows, new = slice(first, first + len(counts)), max(counts)
        starts = self.lengths[rows]
        end = max(starts) + new
        if end > self._keys.shape[3]:
            raise IndexError(f"the cache has {self._keys.shape[3]} slots a row, but {end} are needed")
        device = self._keys.device
        positions_bt = torch.tensor(starts, device=device)[:, None] + torch.arange(new, device=device)
        self.lengths[rows] = [start + count for start, count in zip(starts, counts, strict=True)]
        row_b1 = torch.arange(rows.start, rows.stop, device=device)[:, None]
        fresh = end == new
        bias = None if fresh else self._bias(positions_bt, starts, end)
        parts: dict[int | None, list[Part]] = {
            w: self._parts(positions_bt, starts, w) for w in set(self._windows) if w and w < end
        }

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._keys[layer].transpose(1, 2)[row_b1, positions_bt] = k.transpose(1, 2)
            self._values[layer].transpose(1, 2)[row_b1, positions_bt] = v.transpose(1, 2)
            if window_parts := parts.get(self._windows[layer]):
                return self._in_window(layer, rows, q, window_parts)
            if not fresh:
                k, v = self._keys[layer, rows, :, :end], self._values[layer, rows, :, :end]
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias, is_causal=fresh, enable_gqa=q.shape[1] != k.shape[1]
            )

        return positions_bt, attend

    def _bias(self, positions_bt: Tensor, starts: Sequence[int], end: int) -> Tensor | None:
        """What to add to the scores [b, 1, t, end]: -inf where a slot comes after the query's position."""
        if positions_bt.shape[1] == 1 and min(starts) == max(starts):
            return None  # one new token in rows of equal length sees every slot
        later = torch.arange(end, device=positions_bt.device) > positions_bt[:, None, :, None]
        return torch.zeros((), dtype=self._keys.dtype, device=later.device).masked_fill(later, float("-inf"))

    def _parts(self, positions_bt: Tensor, starts: Sequence[int], window: int) -> list[Part]:
        """The new tokens in blocks, each with the few slots that any of its windows reaches.

        Together they are a band of `window` plus a block, not a table of all new tokens by all slots.
        """
        parts, new = [], positions_bt.shape[1]
        for begin in range(0, new, BLOCK):
            queries = slice(begin, min(begin + BLOCK, new))
            slots = slice(max(0, min(starts) + begin - window + 1), max(starts) + queries.stop)
            if new == 1 and min(starts) == max(starts):
                parts.append(Part(queries, slots, None))  # all of these slots are in the window
                continue
            slot = torch.arange(slots.start, slots.stop, device=positions_bt.device)
            position = positions_bt[:, None, queries, None]
            hidden = (slot > position) | (slot <= position - window)
            bias = torch.zeros((), dtype=self._keys.dtype, device=slot.device)
            parts.append(Part(queries, slots, bias.masked_fill(hidden, float("-inf"))))
        return parts

    def _in_window(self, layer: int, rows: slice, q: Tensor, parts: Sequence[Part]) -> Tensor:
        """Attention [b, h, t, d] of a layer with a window over what is stored, part by part."""
        mixed = []
        for queries, slots, bias in parts:
            k, v = self._keys[layer, rows, :, slots], self._values[layer, rows, :, slots]
            grouped = q.shape[1] != k.shape[1]
            mixed.append(
                F.scaled_dot_product_attention(q[:, :, queries], k, v, attn_mask=bias, enable_gqa=grouped)
            )
        return torch.cat(mixed, 2)

    def drop(self, row: int) -> None:
        """Row `row` is over: the last row moves into its place, so that the rows in use stay together."""
        last = len(self.lengths) - 1
        if row != last:
            used = self.lengths[last]
            self._keys[:, row, :, :used] = self._keys[:, last, :, :used]
            self._values[:, row, :, :used] = self._values[:, last, :, :used]
            self.lengths[row] = used
        self.lengths.pop()

    def keep_only(self, length: int) -> None:
        """In a cache for one row: of all that was stored in it, only its first `length` tokens count."""
        self.lengths = [length]
