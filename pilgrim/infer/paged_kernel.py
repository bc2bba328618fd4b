"""Attention over a paged cache on an NVIDIA GPU: one kernel for all texts of a pass, from the blocks.

FlashAttention (Dao 2023) takes the queries of many texts behind each other, as our passes have them, and a
table that says which block holds which part of a text. Prompts, chunks of prompts and replies of any lengths
go through it together, nothing is padded or copied, and windows are skipped over. torch brings it along
(`torch.nn.attention.varlen`, with `block_table` since 2.12).

`num_splits=1`: the kernel must not divide a text's keys among several workers. Their results are put
together wrongly where blocks are paged (pytorch/pytorch issue 194167), and how many there are would depend on
the longest text of the batch, and with that the rounding of all the others.

It reads halves. For a cache in 8 bits there is a kernel of our own instead (rounded_kernel.py), which is told
the same and divides nothing either.

Shapes: b texts, n new tokens of all of them, h heads, g key/value heads, d head size.
"""

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pilgrim.infer.cache_bits import CacheBits, Rounded, Stored
from pilgrim.infer.paged_attention import Span

BLOCK_TOKENS = 256  # FlashAttention 2 wants a multiple of it ("Paged KV cache block size")
LARGEST_HEAD = 256


class Layout(NamedTuple):
    """What the kernel wants to know of a pass. All tensors are int32."""

    queries: Tensor  # [b + 1]: where each text's new tokens begin among the n
    keys: Tensor  # [b + 1]: where each text's keys would begin if they lay behind each other
    stored: Tensor  # [b]: tokens of each text, the new ones included
    table: Tensor  # [b, blocks]: which block holds its tokens; any, behind its end
    longest_query: int
    longest_key: int


# Both kernels: (queries, one layer's keys and values, layout, window, block_tokens) -> what they mix to
Mix = Callable[[Tensor, Stored, Stored, Layout, int | None, int], Tensor]


def trouble(device: torch.device, dtype: torch.dtype, head_size: int, bits: CacheBits = "full") -> str | None:
    """What keeps `kernel_for(bits)` from being used, as a clause; None if nothing does."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "it needs an NVIDIA GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in halves, not in {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    if head_size % 8 or head_size > LARGEST_HEAD:
        return f"heads of {head_size} are no multiple of 8 up to {LARGEST_HEAD}"
    if bits != "full":
        found = importlib.util.find_spec("triton") is not None
        return None if found else "triton is not installed, in which the kernel for 8 bits is written"
    from torch.nn.attention.varlen import varlen_attn

    if not {"block_table", "num_splits"} <= inspect.signature(varlen_attn).parameters.keys():
        return f"torch {torch.__version__} has no paged varlen_attn; 2.13 has"
    return None


def kernel_for(bits: CacheBits) -> Mix:
    """What computes attention over a cache of these bits."""
    return mix if bits == "full" else mix_rounded


def layout_of(spans: Sequence[Span], device: torch.device) -> Layout:
    """The layout of a pass."""
    widest = max(len(span.blocks) for span in spans)
    table = [[*span.blocks, *[0] * (widest - len(span.blocks))] for span in spans]
    counts, ends = [span.new for span in spans], [span.end for span in spans]
    return Layout(
        _sums(counts, device),
        _sums(ends, device),
        torch.tensor(ends, dtype=torch.int32, device=device),
        torch.tensor(table, dtype=torch.int32, device=device),
        max(counts),
        max(ends),
    )


def mix(q: Tensor, keys: Stored, values: Stored, layout: Layout, window: int | None, block: int) -> Tensor:
    """Attention [1, h, n, d] of `q` over a layer's store, [slots, g, d] each, in blocks of `block` slots."""
    from torch.nn.attention.varlen import varlen_attn  # costs a second to import, and only GPUs want it

    assert isinstance(keys, Tensor) and isinstance(values, Tensor)
    k, v = (x.unflatten(0, (-1, block)) for x in (keys, values))
    mixed: Any = varlen_attn(
        q[0].transpose(0, 1),
        k,
        v,
        layout.queries,
        layout.keys,
        layout.longest_query,
        layout.longest_key,
        # Counted is to the left of the query, and -1 is all; the query's own key comes on top.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[2],
        seqused_k=layout.stored,
        block_table=layout.table,
        num_splits=1,
    )
    out: Tensor = mixed.transpose(0, 1)[None]
    return out


def mix_rounded(
    q: Tensor, keys: Stored, values: Stored, layout: Layout, window: int | None, block: int
) -> Tensor:
    """The same over a store in 8 bits, by a kernel of our own: FlashAttention's wants full numbers."""
    from pilgrim.infer import rounded_kernel  # triton comes with torch's builds for CUDA only

    assert isinstance(keys, Rounded) and isinstance(values, Rounded)
    return rounded_kernel.mix(q, keys, values, layout, window, block)


def reference(
    q: Tensor, keys: Stored, values: Stored, layout: Layout, window: int | None, block: int
) -> Tensor:
    """The slow twin of both: the formula, in fp32 or more, text by text."""
    mixed, wide = [], torch.promote_types(q.dtype, torch.float32)
    for text, (begin, end) in enumerate(
        zip(layout.queries[:-1].tolist(), layout.queries[1:].tolist(), strict=True)
    ):
        stored = int(layout.stored[text])
        slots = (layout.table[text].long()[:, None] * block + torch.arange(block, device=q.device)).flatten()
        k, v = (x[slots[:stored]].to(wide) for x in (keys, values))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1).transpose(0, 1) for x in (k, v))
        query = torch.arange(stored - (end - begin), stored, device=q.device)[:, None]
        key = torch.arange(stored, device=q.device)
        hidden = (key > query) | (key <= query - (stored if window is None else window))
        scores = q[0, :, begin:end].to(wide) @ k.mT * q.shape[3] ** -0.5
        mixed.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v)
    return torch.cat(mixed, 1)[None].to(q.dtype)


def _sums(counts: Sequence[int], device: torch.device) -> Tensor:
    """0, and the sums of the first one, two, … counts."""
    return torch.tensor([0, *counts], device=device).cumsum(0).int()
