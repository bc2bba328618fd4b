"""The KV cache: what attention has already worked out about the tokens so far.

To write the next token, attention needs the keys and values of all tokens before it. They never change,
so they are computed once and kept; a step then costs one token's work instead of the whole text's. The
network notices nothing: it asks for attention through `attend`, and here that function first stores the
new keys and values and then looks at everything stored.

A text's tokens lie in blocks of slots, and who has which is decided elsewhere (blocks.py). A pass takes the
new tokens of many texts behind each other, as if they were one row, without any padding: the linear maps
don't care whose tokens they multiply. Only attention has to keep the texts apart, and there are two ways:

- On a CPU, and wherever else nothing better is there, text by text: torch's fused kernel over a slice of the
  store where the text's blocks lie behind each other, which they mostly do, or over a copy of its slots.
  One call for each text costs less than putting all of them into one padded table (journal, 2026-11-23).
- On an NVIDIA GPU by FlashAttention, for all texts at once and straight from the blocks (paged_kernel.py).

A layer with a sliding window looks at the last slots only. All are kept nevertheless: a conversation may go
back to an earlier turn, and all layers share one numbering of slots. What a window saves is reading.

Shapes: h heads, g key/value heads, n new tokens of all texts, d head size.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.model.attention import BLOCK, Attend
from pilgrim.model.config import ModelConfig


class Span(NamedTuple):
    """A text's part of a pass: `count` new tokens behind the `start` that are stored, and all its blocks."""

    start: int
    count: int
    blocks: Sequence[int]


class Piece(NamedTuple):
    """Some queries of one text, the slots of the keys that they meet, and who of them sees what."""

    queries: slice  # of the n new tokens
    slots: slice | Tensor
    bias: Tensor | None  # [queries, slots], added to the scores; None: everything is seen, or
    causal: bool  # the first query sees the first key, and each query one more than the one before


class PagedCache:
    """Keys and values in `blocks` blocks of `block_tokens` slots, for every layer."""

    def __init__(
        self, config: ModelConfig, blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Memory is asked for at once; a CPU's comes as it is written to. No slot is read before that."""
        shape = config.depth, blocks * block_tokens, config.kv_heads, config.head_size
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.block_tokens, self.windows = block_tokens, config.windows

    @property
    def bytes(self) -> int:
        return 2 * self.keys.nbytes

    def attend(self, spans: Sequence[Span]) -> tuple[Tensor, Attend]:
        """The positions [1, n] of the new tokens, and the `attend` to run the network on them with."""
        device = self.keys.device
        positions_1n = torch.tensor([[p for s in spans for p in range(s.start, s.start + s.count)]])
        slots_n = torch.tensor([slot for span in spans for slot in self._slots(span)], device=device)
        pieces = {window: list(self._pieces(spans, window)) for window in set(self.windows)}

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.keys[layer], self.values[layer]
            keys.index_copy_(0, slots_n, k[0].transpose(0, 1))
            values.index_copy_(0, slots_n, v[0].transpose(0, 1))
            mixed = [_mixed(q, keys, values, piece) for piece in pieces[self.windows[layer]]]
            return mixed[0] if len(mixed) == 1 else torch.cat(mixed, 2)

        return positions_1n.to(device), attend

    def _slots(self, span: Span) -> list[int]:
        """Where a text's new tokens are stored."""
        size = self.block_tokens
        return [span.blocks[p // size] * size + p % size for p in range(span.start, span.start + span.count)]

    def _pieces(self, spans: Sequence[Span], window: int | None) -> Iterator[Piece]:
        """The queries of a pass in pieces, each with the few slots that any of them reaches in this window.

        A text that is read from its beginning is one piece, unless there is a window. Else a piece has up
        to BLOCK queries: with their keys they are a band, not a table of all queries by all keys.
        """
        at = 0
        for span in spans:
            whole = span.start == 0 and (window is None or span.count <= window)
            step = span.count if whole else BLOCK
            for begin in range(0, span.count, step):
                end = min(begin + step, span.count)
                first = 0 if window is None else max(0, span.start + begin - window + 1)
                slots = self._stored(span, first, span.start + end)
                one = end - begin == 1
                bias = None if whole or one else self._bias(span.start + begin, span.start + end, first, window)
                yield Piece(slice(at + begin, at + end), slots, bias, causal=whole and not one)
            at += span.count

    def _stored(self, span: Span, first: int, end: int) -> slice | Tensor:
        """The slots of a text's tokens `first` to `end`: a slice, if its blocks lie behind each other."""
        size = self.block_tokens
        blocks = span.blocks[first // size : -(-end // size)]
        skip, count = first % size, end - first
        if blocks[-1] - blocks[0] == len(blocks) - 1 and all(
            b == blocks[0] + i for i, b in enumerate(blocks)
        ):
            begin = blocks[0] * size + skip
            return slice(begin, begin + count)
        device = self.keys.device
        begins = torch.tensor(blocks, device=device)[:, None] * size
        return (begins + torch.arange(size, device=device)).flatten()[skip : skip + count]

    def _bias(self, begin: int, end: int, first: int, window: int | None) -> Tensor:
        """0 where the token at `begin` … sees the one at `first` …, else -inf: [end - begin, end - first]."""
        device = self.keys.device
        query, key = torch.arange(begin, end, device=device)[:, None], torch.arange(first, end, device=device)
        hidden = key > query
        if window is not None:
            hidden |= key <= query - window
        return torch.zeros((), dtype=self.keys.dtype, device=device).masked_fill(hidden, float("-inf"))


def _mixed(q: Tensor, keys: Tensor, values: Tensor, piece: Piece) -> Tensor:
    """Attention [1, h, queries, d] of one piece."""
    k, v = keys[piece.slots].transpose(0, 1)[None], values[piece.slots].transpose(0, 1)[None]
    return F.scaled_dot_product_attention(
        q[:, :, piece.queries],
        k,
        v,
        attn_mask=piece.bias,
        is_causal=piece.causal,
        enable_gqa=q.shape[1] != k.shape[1],
    )


class RowCache:
    """A cache of rows, each a block as long as the row can get; `lengths[i]` tokens of row i are stored.

    For whoever has a fixed set of texts and places of their own: scoring (evals/scoring.py) reads what
    options have in common once, and goes back to it by setting `lengths`.
    """

    def __init__(
        self, config: ModelConfig, rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._cache = PagedCache(config, rows, capacity, dtype, device)
        self.lengths = [0] * rows

    def extend(self, first: int, counts: Sequence[int]) -> tuple[Tensor, Attend]:
        """Makes room for `counts[i]` more tokens in row `first + i`; see `PagedCache.attend`."""
        starts = self.lengths[first : first + len(counts)]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        if max(ends) > self._cache.block_tokens:
            raise IndexError(
                f"the cache has {self._cache.block_tokens} slots a row, but {max(ends)} are needed"
            )
        self.lengths[first : first + len(counts)] = ends
        rows = zip(starts, counts, strict=True)
        return self._cache.attend([Span(start, n, [first + i]) for i, (start, n) in enumerate(rows)])
