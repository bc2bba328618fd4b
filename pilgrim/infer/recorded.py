"""Steps of writing as recordings: what a GPU has to do is written down once and then played back.

A step of writing is some hundred small kernels, and a fast GPU does each sooner than Python can ask for the
next. A CUDA graph is a recording of all of them that is started by one call. It plays back exactly what was
recorded: the same shapes, at the same addresses. So a step's inputs are copied into buffers of fixed places,
and for the number of texts there are a few sizes (1, 2, 4, …): texts that are missing are made up, and use a
block that belongs to nobody. The same fixed shapes are what torch.compile likes best.

Recording costs seconds for each size, compiling more, so only engines that live long do it. On a CPU there is
nothing to record, and compiled steps gain 9 to 24% there, for half a minute of compiling each size
(journal, 2026-11-23): not done.

Shapes: b texts, B texts of a size, v tokens in the vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pilgrim.infer.cache import PagedCache
from pilgrim.infer.paged_attention import Span
from pilgrim.infer.paged_kernel import Layout
from pilgrim.model.attention import Attend

Step = Callable[[], Tensor]
# (ids [1, B], positions [1, B], attend) -> scores [B, v]
Forward = Callable[[Tensor, Tensor, Attend], Tensor]


@dataclass(frozen=True)
class Buffers:
    """The inputs of a step, at fixed places."""

    ids: Tensor  # [1, B]
    positions: Tensor  # [1, B]
    slots: Tensor  # [B]
    layout: Layout


def cuda_graph(step: Step) -> Step:
    """A recording of `step`. Its result is overwritten by the next one."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is done for the first time must not be part of it
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def play() -> Tensor:
        graph.replay()
        return result

    return play


class Recorder:
    """Steps of writing for up to `rows` texts over one cache."""

    def __init__(
        self, forward: Forward, cache: PagedCache, rows: int, context: int, record: Callable[[Step], Step]
    ) -> None:
        """`record` is `cuda_graph`; tests hand in what just calls the step."""
        self._forward, self._cache, self._record = forward, cache, record
        self._sizes = [1 << i for i in range(rows.bit_length()) if 1 << i < rows] + [rows]
        self._context, self._recordings = context, dict[int, tuple[Buffers, Step]]()

    def scores(self, spans: Sequence[Span], ids: Sequence[int]) -> Tensor:
        """Reads one token of each text; scores [b, v] of what follows, valid until the next call."""
        size = next(size for size in self._sizes if size >= len(spans))
        if size not in self._recordings:
            buffers = self._buffers(size)
            attend = self._cache.through_kernel(buffers.slots, buffers.layout)
            step = self._record(lambda: self._forward(buffers.ids, buffers.positions, attend))
            self._recordings[size] = buffers, step
        buffers, step = self._recordings[size]
        self._fill(buffers, spans, ids)
        return step()[: len(spans)]

    def _buffers(self, size: int) -> Buffers:
        """For texts of one token each in the block that belongs to nobody."""
        nobody, block, device = self._cache.nobodys_block, self._cache.block_tokens, self._cache.keys.device

        def whole(*shape: int, value: int = 0, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        ends = torch.arange(size + 1, dtype=torch.int32, device=device)
        table = whole(size, -(-self._context // block), value=nobody, dtype=torch.int32)
        # One query for each text, and as many keys as any text can have, so that both are fixed.
        layout = Layout(ends, ends.clone(), whole(size, value=1, dtype=torch.int32), table, 1, self._context)
        return Buffers(whole(1, size), whole(1, size), whole(size, value=nobody * block), layout)

    def _fill(self, buffers: Buffers, spans: Sequence[Span], ids: Sequence[int]) -> None:
        nobody, block = self._cache.nobodys_block, self._cache.block_tokens
        size, width = buffers.layout.table.shape
        missing = size - len(spans)
        table = [[*s.blocks, *[nobody] * (width - len(s.blocks))] for s in spans] + [
            [nobody] * width
        ] * missing
        slots = [s.blocks[s.start // block] * block + s.start % block for s in spans]
        stored = [s.end for s in spans] + [1] * missing
        for buffer, values in (
            (buffers.ids[0], [*ids, *[0] * missing]),
            (buffers.positions[0], [*[s.start for s in spans], *[0] * missing]),
            (buffers.slots, [*slots, *[nobody * block] * missing]),
            (buffers.layout.stored, stored),
            (buffers.layout.table, table),
        ):
            buffer.copy_(torch.tensor(values, dtype=buffer.dtype))
        buffers.layout.keys[1:] = buffers.layout.stored.cumsum(0)
