"""Texts read piece by piece through the paged cache, each in one long block: no scheduler, no sampling."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from pilgrim.infer.cache import PagedCache
from pilgrim.infer.cache_bits import CacheBits
from pilgrim.infer.paged_attention import Span
from pilgrim.model.transformer import Transformer


class Reader:
    """Rows of texts; each may go on where it is."""

    def __init__(
        self,
        model: Transformer,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        bits: CacheBits = "full",
    ) -> None:
        self.model, self.dtype, self.lengths = model, dtype, [0] * rows
        self.cache = PagedCache(model.config, rows, capacity, 1, dtype, torch.device("cpu"), bits=bits)

    @torch.inference_mode()
    def read(self, first: int, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Row `first + i` reads `tokens[i]`; the scores [b, v] of what follows each."""
        rows = range(first, first + len(tokens))
        counts = [len(ids) for ids in tokens]
        spans = [Span(self.lengths[row], n, [row]) for row, n in zip(rows, counts, strict=True)]
        for row, n in zip(rows, counts, strict=True):
            self.lengths[row] += n
        positions_1n, attend = self.cache.attend(spans)
        ids_1n = torch.tensor([[i for ids in tokens for i in ids]])
        hidden_nw = self.model(ids_1n, attend, positions_1n, self.dtype)[0]
        ends = [end - 1 for end in accumulate(counts)]
        return self.model.logits(hidden_nw[ends]).float()
