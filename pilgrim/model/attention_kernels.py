"""Attention within documents and windows on NVIDIA GPUs, without a table of every pair.

Two kernels do it, each with its own idea of sparseness:

- *varlen* (Dao 2023, FlashAttention-2; Shah et al. 2024, FlashAttention-3): the documents of all rows lie
  behind each other as one long row of sequences, and the kernel is told where each begins. It never leaves
  a sequence, and with a window visits only the keys within it. `torch.nn.attention.varlen` brings version
  2; where the packages of versions 3 or 4 are installed, torch can be told to call those instead.
- *flex* (Dong et al. 2024, arXiv 2412.05496): torch.compile writes a kernel around the question "may this
  query see this key?", which is asked only in blocks where the answer differs from pair to pair. Blocks
  that nobody sees are not visited at all.

What the kernels need to know about a batch is made once, outside the compiled step (`prepare`), and shared
by all layers. There it may be of any length without a graph break, and FlexAttention finds its numbers in
the graph's inputs, which is where its code generators expect them.

Shapes: b rows, h heads, g key/value heads, t tokens, d head size; n = b · t.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from pilgrim.model.attention_spans import (
    SPARSE_BLOCK,
    Attend,
    Blocks,
    Windows,
    block_lists,
    cumulative_starts,
    different,
    document_starts,
    window_of,
)

Backend = Literal["varlen", "fa3", "fa4", "flex", "sdpa", "blocks", "documents", "reference"]
FLASH: tuple[Backend, ...] = ("varlen", "fa3", "fa4")  # one interface, three sets of kernels

# What a backend wants to know of a batch: where documents begin, or which blocks to visit for each window.
Layout = Tensor | dict[int | None, Blocks] | None


def prepare(
    documents_bt: Tensor, starts_bd: Tensor | None, windows: Windows, backend: Backend | None
) -> Layout:
    """What `backend` needs to know of a batch; None if it works from `documents_bt` itself.

    Called outside of compiled code. `starts_bd` is `document_starts(documents_bt)`: without it, it is made
    here, which waits for the device.
    """
    if backend in FLASH:
        starts_bd = document_starts(documents_bt) if starts_bd is None else starts_bd
        layout = cumulative_starts(starts_bd, documents_bt.shape[1])
        # Every batch has another number of documents; said so, it is compiled once for all numbers.
        torch._dynamo.mark_dynamic(layout, 0)
        return layout
    if backend == "flex":
        return {window: block_lists(documents_bt, window) for window in different(windows)}
    return None


def varlen_attention(cumulative: Tensor, windows: Windows) -> Attend:
    """`cumulative` as from `cumulative_starts`. bf16 only, on CUDA only."""
    from torch.nn.attention.varlen import varlen_attn  # costs a second to import, and only GPUs want it

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, _, t, _ = q.shape
        q_nhd, k_ngd, v_ngd = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        window = window_of(windows, layer)
        # FlashAttention counts the keys to the left of the query, and -1 is all of them; the query's own
        # comes on top. max_q and max_k only bound the kernel's grid; no document is longer than its row.
        left = -1 if window is None else window - 1
        out: Any = varlen_attn(
            q_nhd,
            k_ngd,
            v_ngd,
            cumulative,
            cumulative,
            t,
            t,
            window_size=(left, 0),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        mixed: Tensor = out.unflatten(0, (b, t)).transpose(1, 2)
        return mixed

    return attend


def flex_attention(blocks: dict[int | None, Blocks], windows: Windows) -> Attend:
    """`blocks` as from `block_lists`, for each window. Is fast, and sparse, only in compiled code."""
    from torch.nn.attention.flex_attention import flex_attention as kernel

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = _block_mask(blocks[window_of(windows, layer)], q.shape[2])
        mixed: Any = kernel(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        out: Tensor = mixed
        return out

    return attend


def _block_mask(blocks: Blocks, t: int) -> Any:
    """torch's own class around our lists. What a pair is asked is a comparison with two ends.

    Not "are the documents equal?": with a first key the allowed keys are an interval for every query, which
    torch's generator for Blackwell (torch/_inductor/kernel/flex/interval_mask_packing.py) can use.
    """
    from torch.nn.attention.flex_attention import BlockMask

    first_bt, *lists = blocks

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first_bt[b, query])

    named = dict(zip(Blocks._fields[1:], lists, strict=True))
    size = SPARSE_BLOCK, SPARSE_BLOCK
    return BlockMask(seq_lengths=(t, t), BLOCK_SIZE=size, mask_mod=visible, **named)  # type: ignore[arg-type]
