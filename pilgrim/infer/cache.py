"""The KV cache: what attention has already worked out about the tokens so far.

To write the next token, attention needs the keys and values of all tokens before it. They never change,
so they are computed once and kept; a step then costs one token's work instead of the whole text's. The
network notices nothing: it asks for attention through `attend`, and here that function first stores the
new keys and values and then looks at everything stored.

Slot i of a row holds its token i, whatever the lengths of the other rows. Reading unequal prompts
together pads them at the right. The padding's keys land in slots behind the row's last token, where no
query of the row may look, and are overwritten by what the row gets later.

Shapes: b rows, h heads, g key/value heads, t new tokens, d head size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.model.attention import Attend
from pilgrim.model.config import ModelConfig


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

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._keys[layer].transpose(1, 2)[row_b1, positions_bt] = k.transpose(1, 2)
            self._values[layer].transpose(1, 2)[row_b1, positions_bt] = v.transpose(1, 2)
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
