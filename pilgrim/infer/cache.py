"""The KV cache: what attention has already worked out about the tokens so far.

To write the next token, attention needs the keys and values of all tokens before it. They never change,
so they are computed once and kept; a step then costs one token's work instead of the whole text's. The
network notices nothing: it asks for attention through `attend`, and here that function first stores the
new keys and values and then looks at everything stored.

A text's tokens lie in blocks of slots, and who has which is decided elsewhere (blocks.py). A pass takes the
new tokens of many texts behind each other, as if they were one row, without any padding: the linear maps
don't care whose tokens they multiply. Only attention has to keep the texts apart: on an NVIDIA GPU with a
kernel that knows blocks (paged_kernel.py), elsewhere with torch's fused one (paged_attention.py). The two
want the store arranged differently: slots first, or heads first.

Kept in 8 bits (cache_bits.py), a vector is numbers of one byte and a scale. torch's kernel can't read that:
the slots that it is to see are made full numbers first, in every layer of every step. That of an NVIDIA GPU
reads it as it is (rounded_kernel.py).

A layer with a sliding window looks at the last slots only. All are kept nevertheless: a conversation may go
back to an earlier turn, and all layers share one numbering of slots. What a window saves is reading.

Shapes: h heads, g key/value heads, n new tokens of all texts, d head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pilgrim.infer import paged_kernel
from pilgrim.infer.cache_bits import SCALE, CacheBits, Rounded, Stored, rounded
from pilgrim.infer.paged_attention import Plan, Span, Store
from pilgrim.model.attention import Attend
from pilgrim.model.config import ModelConfig


class PagedCache:
    """Keys and values in blocks of slots, for every layer."""

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        block_tokens: int,
        lane_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        kernel: paged_kernel.Mix | None = None,
        bits: CacheBits = "full",
    ) -> None:
        """Memory for `blocks` blocks, rounded up to whole lanes, and a block for nobody, is taken at once.

        `kernel`: one of paged_kernel.py where it can run; left out, torch's fused kernel does it. `bits`: of
        what is stored; "full" is that of `dtype`, in which attention computes.
        """
        # Where tokens go that only fill up a recording (recorded.py).
        self.nobodys_block, self.block_tokens = -(-blocks // lane_blocks) * lane_blocks, block_tokens
        slots = (self.nobodys_block + bool(kernel)) * block_tokens
        sizes = (slots, config.kv_heads) if kernel else (config.kv_heads, slots)
        shape = config.depth, *sizes, config.head_size
        # Zeros, because what a mask hides is still multiplied by 0, and 0 times stray NaNs is NaN.
        stored = dtype if bits == "full" else torch.int8
        self.keys = torch.zeros(shape, dtype=stored, device=device)
        self.values = torch.zeros(shape, dtype=stored, device=device)
        # Of keys and of values, what their numbers are multiplied with; None where they are full.
        self.scales: tuple[Tensor, Tensor] | None = None
        if bits != "full":
            key_scales, value_scales = torch.zeros(2, *shape[:-1], dtype=SCALE, device=device)
            self.scales = key_scales, value_scales
        self.bits = bits
        self._store = Store(block_tokens, lane_blocks * block_tokens, dtype, device)
        self._windows, self._kernel = config.windows, kernel

    @property
    def bytes(self) -> int:
        return sum(each.nbytes for each in (self.keys, self.values, *(self.scales or ())))

    def layer(self, layer: int) -> tuple[Stored, Stored]:
        """A layer's keys and values, [g, slots, d] each, or with a kernel [slots, g, d]."""
        keys, values = self.keys[layer], self.values[layer]
        if self.scales is None:
            return keys, values
        (k, v), dtype = self.scales, self._store.dtype
        return Rounded(keys, k[layer], self.bits, dtype), Rounded(values, v[layer], self.bits, dtype)

    def attend(self, spans: Sequence[Span]) -> tuple[Tensor, Attend]:
        """The positions [1, n] of the new tokens, and the `attend` to run the network on them with."""
        size, device = self._store.block_tokens, self._store.device
        places = [(span, p) for span in spans for p in range(span.start, span.end)]
        positions_1n = torch.tensor([[p for _, p in places]], device=device)
        slots = [span.blocks[p // size] * size + p % size for span, p in places]
        return positions_1n, (self._by_kernel if self._kernel else self._by_plan)(spans, slots)

    def _by_plan(self, spans: Sequence[Span], slots: Sequence[int]) -> Attend:
        # One text's new tokens mostly go to neighbouring slots: copying to a slice is faster.
        row = range(slots[0], slots[0] + len(slots))
        place = (
            slice(row.start, row.stop)
            if slots == list(row)
            else torch.tensor(slots, device=self._store.device)
        )
        plans = {window: Plan(spans, window, self._store) for window in set(self._windows)}

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.layer(layer)
            keys[:, place], values[:, place] = k[0], v[0]
            return plans[self._windows[layer]].mix(q, keys, values)

        return attend

    def _by_kernel(self, spans: Sequence[Span], slots: Sequence[int]) -> Attend:
        device = self._store.device
        return self.through_kernel(torch.tensor(slots, device=device), paged_kernel.layout_of(spans, device))

    def through_kernel(self, slots_n: Tensor, layout: paged_kernel.Layout) -> Attend:
        """The `attend` of a pass whose tokens go to these slots; the tensors may be filled in later."""
        kernel, block = self._kernel, self._store.block_tokens
        assert kernel is not None

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.layer(layer)
            _copy(keys, slots_n, k[0].transpose(0, 1))
            _copy(values, slots_n, v[0].transpose(0, 1))
            return kernel(q, keys, values, layout, self._windows[layer], block)

        return attend


def _copy(store: Stored, slots_n: Tensor, x_ngd: Tensor) -> None:
    """`x_ngd` to these slots of a store [slots, g, d]: `store[slots_n] = x_ngd`, but fit for a recording."""
    if isinstance(store, Tensor):
        store.index_copy_(0, slots_n, x_ngd)
    else:
        for kept, new in zip((store.numbers, store.scales), rounded(x_ngd, store.bits), strict=True):
            kept.index_copy_(0, slots_n, new)
