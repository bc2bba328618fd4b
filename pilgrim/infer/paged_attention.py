"""Attention over a paged cache with torch's fused kernel: on a CPU, and wherever nothing better is there.

A pass brings the new tokens of many texts behind each other. The kernel wants tensors of one text, or of
many texts of equal length. Two plans, and each text gets the better one:

- *Alone*: one call for each text, over a slice of the store if its blocks lie behind each other, else over
  a copy of its slots. Nothing is padded or masked in vain. Prompts are read like this, in pieces of queries.
- *In lanes*: replies that are being written have one new token each, and a call for each of them costs more
  than what it does. But a text that begins its lane (blocks.py) lies at the same place in it as all others,
  so neighbouring lanes *are* a padded table [lanes, slots], without copying anything. One call does it for
  all of them; a mask hides what is behind a text's end, or in lanes between that take no part.

Measured for 64 texts of 512 tokens: alone takes 1.05 to 1.3 times a dense cache's time, a padded copy 3 to 5
times; for 64 texts of 128 tokens, alone takes 2.5 to 3.3 times (journal, 2026-11-23).

Shapes: h heads, g key/value heads, n new tokens of all texts, d head size, s slots of a lane, r lanes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.infer.cache_bits import Stored

QUERIES = 256  # of a text in one piece
FEWEST_IN_LANES = 3  # texts; fewer are done sooner one by one
LANES_FOR_A_TEXT = 2  # at most; where more lanes lie idle in between, texts are done one by one


class Span(NamedTuple):
    """A text's part of a pass: `new` tokens behind the `start` that are stored, and all its blocks."""

    start: int
    new: int
    blocks: Sequence[int]

    @property
    def end(self) -> int:
        return self.start + self.new


class Store(NamedTuple):
    """How the slots of a cache are arranged; see blocks.py."""

    block_tokens: int
    lane_tokens: int
    dtype: torch.dtype
    device: torch.device


class Alone(NamedTuple):
    """Some queries of one text, the slots of the keys that they meet, and who of them sees what."""

    queries: slice  # of the n new tokens
    slots: slice | Tensor
    bias: Tensor | None  # [queries, slots], added to the scores; None: everything is seen, or
    causal: bool  # the first query sees the first key, and each query one more than the one before

    def mix(self, q: Tensor, keys: Stored, values: Stored) -> Tensor:
        """Attention [1, h, queries, d]."""
        k, v = (x[:, self.slots][None] for x in (keys, values))
        return _fused(q[:, :, self.queries], k, v, self.bias, self.causal)


class InLanes(NamedTuple):
    """One query of each of some texts in neighbouring lanes."""

    queries_r: Tensor  # which of the n new tokens is each lane's; any, where a lane takes no part
    lanes: slice
    slots: slice  # of each lane
    bias: Tensor  # [r, 1, 1, slots]
    lanes_n: Tensor  # for each of the queries, in their order, which of these lanes is its own

    def mix(self, q: Tensor, keys: Stored, values: Stored, lane_tokens: int) -> Tensor:
        """Attention [1, h, queries, d]."""
        k, v = (
            x.unflatten(1, (-1, lane_tokens))[:, self.lanes, self.slots].transpose(0, 1)
            for x in (keys, values)
        )
        q_rh1d = q[0].index_select(1, self.queries_r).transpose(0, 1)[:, :, None]
        mixed_rhd = _fused(q_rh1d, k, v, self.bias, causal=False)[:, :, 0]
        return mixed_rhd.index_select(0, self.lanes_n).transpose(0, 1)[None]


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, enable_gqa=grouped)


class Plan:
    """How the texts of one pass are attended to, for one window; the same in every layer that has it."""

    def __init__(self, spans: Sequence[Span], window: int | None, store: Store) -> None:
        self._store = store
        writing = sum(1 for _ in _beginning_with_one_token(spans))  # they come first (scheduler.py)
        self._lanes = _in_lanes(spans[:writing], window, store)
        first = writing if self._lanes else 0
        self._alone = list(_pieces(spans[first:], first, window, store))

    def mix(self, q: Tensor, keys: Stored, values: Stored) -> Tensor:
        """Attention [1, h, n, d] over one layer's store, [g, slots, d] each."""
        mixed = [piece.mix(q, keys, values) for piece in self._alone]
        if self._lanes:
            mixed.insert(0, self._lanes.mix(q, keys, values, self._store.lane_tokens))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, 2)


def _beginning_with_one_token(spans: Sequence[Span]) -> Iterator[Span]:
    for span in spans:
        if span.new > 1:
            return
        yield span


def _in_lanes(spans: Sequence[Span], window: int | None, store: Store) -> InLanes | None:
    """A plan for texts with one new token each, if it is worth it and each begins its lane."""
    if len(spans) < FEWEST_IN_LANES:
        return None
    lane_blocks = store.lane_tokens // store.block_tokens
    lanes = [span.blocks[0] // lane_blocks for span in spans]
    low, high = min(lanes), max(lanes)
    if high - low >= LANES_FOR_A_TEXT * len(spans):
        return None
    for span in spans:
        if span.blocks[0] % lane_blocks or not _neighbours(span.blocks):
            return None
    firsts = [0 if window is None else max(0, span.end - window) for span in spans]
    slots = slice(min(firsts), max(span.end for span in spans))
    # A lane that takes no part sees one slot: a row that sees nothing has no softmax.
    begin, end = [slots.start] * (high - low + 1), [slots.start + 1] * (high - low + 1)
    queries = [0] * (high - low + 1)
    for at, (span, lane, first) in enumerate(zip(spans, lanes, firsts, strict=True)):
        begin[lane - low], end[lane - low], queries[lane - low] = first, span.end, at
    device = store.device
    slot_s = torch.arange(slots.start, slots.stop, device=device)
    begin_r1, end_r1 = (torch.tensor(x, device=device)[:, None] for x in (begin, end))
    return InLanes(
        torch.tensor(queries, device=device),
        slice(low, high + 1),
        slots,
        _minus_infinity_where((slot_s < begin_r1) | (slot_s >= end_r1), store.dtype)[:, None, None],
        torch.tensor([lane - low for lane in lanes], device=device),
    )


def _pieces(spans: Sequence[Span], at: int, window: int | None, store: Store) -> Iterator[Alone]:
    """The queries of texts in pieces, each with the few slots that any of them reaches in this window.

    A text that is read from its beginning is one piece, unless there is a window. Else a piece has up to
    QUERIES queries: with their keys they are a band, not a table of all queries by all keys.
    """
    for span in spans:
        whole = span.start == 0 and (window is None or span.new <= window)
        step = span.new if whole else QUERIES
        for begin in range(0, span.new, step):
            end = min(begin + step, span.new)
            first = 0 if window is None else max(0, span.start + begin - window + 1)
            slots = _stored(span, first, span.start + end, store)
            one = end - begin == 1
            bias = None
            if not (whole or one):
                bias = _band(span.start + begin, span.start + end, first, window, store)
            yield Alone(slice(at + begin, at + end), slots, bias, causal=whole and not one)
        at += span.new


def _stored(span: Span, first: int, end: int, store: Store) -> slice | Tensor:
    """The slots of a text's tokens `first` to `end`: a slice, if its blocks lie behind each other."""
    size = store.block_tokens
    blocks = span.blocks[first // size : -(-end // size)]
    skip, count = first % size, end - first
    if _neighbours(blocks):
        return slice(blocks[0] * size + skip, blocks[0] * size + skip + count)
    begins = torch.tensor(blocks, device=store.device)[:, None] * size
    return (begins + torch.arange(size, device=store.device)).flatten()[skip : skip + count]


def _neighbours(blocks: Sequence[int]) -> bool:
    """Whether they lie behind each other."""
    return list(blocks) == list(range(blocks[0], blocks[0] + len(blocks)))


def _band(begin: int, end: int, first: int, window: int | None, store: Store) -> Tensor:
    """0 where the token at `begin` … sees the one at `first` …, else -inf: [end - begin, end - first]."""
    query = torch.arange(begin, end, device=store.device)[:, None]
    key = torch.arange(first, end, device=store.device)
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return _minus_infinity_where(hidden, store.dtype)


def _minus_infinity_where(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Added to the scores in the activations' dtype: on CPUs that is faster than a boolean mask."""
    return torch.zeros((), dtype=dtype, device=hidden.device).masked_fill(hidden, float("-inf"))
